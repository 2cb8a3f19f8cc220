/** The rules of each cloud's API, one after the other, as their documents and clients have them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Asked, Stage } from '../../test/imds/stage.ts';
import type { WorldSpec } from '../../test/tree/world.ts';
import { until } from '../../test/until.ts';

const credentials = JSON.stringify({
  AccessKeyId: 'a',
  SecretAccessKey: 's',
  Token: 't',
  Expiration: '2030-01-01T00:00:00Z',
});

const spec: WorldSpec = {
  content: {
    instance: {
      id: 'i-1',
      hostname: 'web-1',
      zone: 'eu-1a',
      type: 'small',
      tags: { role: 'db' },
      attributes: { 'enable-guest-attributes': 'TRUE', 'My-Key': 'v' },
    },
    network: { ipv4: '10.0.0.5', mac: '02:AA:00:00:00:01' },
    user: { name: 'admin', 'ssh-keys': 'ssh-ed25519 AAAA me@home\n' },
    'cloud-init': { 'user-data': '#cloud-config\n' },
    secrets: {
      credentials: { ec2: { web: credentials }, gce: { default: { token: '{"access_token":"x"}', email: 'e@x' } } },
    },
    cluster: { 'project-id': 'p1', 'numeric-project-id': '42' },
    guest: { attributes: {} },
  },
  rules: [
    { path: '/secrets/credentials/**', facade: true },
    { path: '/guest/attributes', mode: 0o1777 },
    { path: '/guest/attributes/**', facade: true },
  ],
};

const put = (headers: Readonly<Record<string, string>>, body?: string): Asked => ({
  method: 'PUT',
  headers,
  ...(body !== undefined && { body }),
});
const TTL = 'x-aws-ec2-metadata-token-ttl-seconds';

test('EC2 gives a session to who asks by PUT with a TTL from 1 to 21600, and echoes it', async () => {
  await using stage = await Stage.start(spec);
  const session = await stage.ask('/latest/api/token', put({ [TTL]: '21600' }));
  assert.equal(session.status, 200);
  assert.equal(session.headers[TTL], '21600');
  assert.match(session.headers['content-type']!, /^text\/plain/);
  assert.match(session.body, /^[\w-]{56}$/);
  for (const ttl of ['0', '21601', '-1', '1.5', '', 'x', '99999999999'])
    assert.equal((await stage.ask('/latest/api/token', put({ [TTL]: ttl }))).status, 400, ttl);
  assert.equal((await stage.ask('/latest/api/token', put({}))).status, 400);
  assert.equal((await stage.ask('/latest/api/token', put({ 'x-metadata-token-ttl-seconds': '5' }))).status, 200);
  assert.equal((await stage.ask('/2021-03-23/api/token', put({ [TTL]: '60' }))).status, 403, 'as Amazon means it');
  const wrong = await stage.ask('/latest/api/token');
  assert.deepEqual([wrong.status, wrong.headers.allow], [405, 'PUT']);
});

test('EC2 answers 401 without a session, with a wrong one, and once it has expired', async () => {
  await using stage = await Stage.start(spec);
  const { body: session } = await stage.ask('/latest/api/token', put({ [TTL]: '60' }));
  const ask = (token: string | undefined, name = 'x-aws-ec2-metadata-token') =>
    stage.ask('/latest/meta-data/instance-id', { headers: token === undefined ? {} : { [name]: token } });
  assert.equal((await ask(session)).body, 'i-1');
  assert.equal((await ask(session, 'x-metadata-token')).body, 'i-1');
  assert.deepEqual([(await ask(undefined)).status, (await ask('x')).status], [401, 401]);
  const forged = `${session.slice(0, 12)}${session[12] === 'A' ? 'B' : 'A'}${session.slice(13)}`;
  assert.equal((await ask(forged)).status, 401);
  stage.world.clock.advance(60_000);
  assert.equal((await ask(session)).status, 401);
  assert.equal(stage.server.counters()['rejected.no-session'], 4);
});

test('EC2 answers version 1 where that is allowed, but no wrong session', async () => {
  await using stage = await Stage.start(spec, { allowImdsV1: true });
  assert.equal((await stage.ask('/latest/meta-data/instance-id')).body, 'i-1');
  const wrong = await stage.ask('/latest/meta-data/instance-id', { headers: { 'x-aws-ec2-metadata-token': 'x' } });
  assert.equal(wrong.status, 401);
});

test('EC2 lists names by line, directories with a slash, and takes "//" for "/"', async () => {
  await using stage = await Stage.start(spec);
  assert.equal((await stage.ec2('/')).body.split('\n').at(-1), 'latest');
  assert.equal((await stage.ec2('/latest/')).body, 'dynamic\nmeta-data');
  assert.equal((await stage.ec2('/latest/meta-data/tags/')).body, 'instance/');
  assert.equal((await stage.ec2('//latest//meta-data/tags/instance/')).body, 'role');
  assert.equal((await stage.ec2('/2018-09-24/meta-data/tags/instance/role')).body, 'db');
  assert.equal((await stage.ec2('/latest/meta-data/public-keys/')).body, '0=me@home');
  assert.equal((await stage.ec2('/latest/meta-data/public-keys/0/openssh-key')).body, 'ssh-ed25519 AAAA me@home');
  assert.equal((await stage.ec2('/latest/meta-data/placement/region')).body, 'eu-1');
  assert.equal((await stage.ec2('/latest/meta-data/network/interfaces/macs/')).body, '02:aa:00:00:00:01/');
  const document = JSON.parse((await stage.ec2('/latest/dynamic/instance-identity/document')).body) as Record<
    string,
    unknown
  >;
  assert.deepEqual([document['instanceId'], document['privateIp']], ['i-1', '10.0.0.5']);
});

test('EC2 answers 404 with nothing in it, 405 with what is allowed, and no redirect', async () => {
  await using stage = await Stage.start(spec);
  for (const path of [
    '/latest/meta-data/nothing',
    '/latest/meta-data/instance-id/',
    '/1999-01-01/meta-data/',
    '/latest/user-data',
  ]) {
    const { status, body } = await stage.ec2(path);
    assert.deepEqual([status, body], [404, ''], path);
  }
  for (const method of ['POST', 'DELETE', 'PUT', 'PATCH', 'OPTIONS']) {
    const { status, headers } = await stage.ask('/latest/meta-data/', { method });
    assert.deepEqual([status, headers.allow], [405, 'GET, HEAD'], method);
  }
  const head = await stage.ask('/latest/meta-data/instance-id', { method: 'HEAD' });
  assert.equal(head.status, 401);
});

test('EC2 shows credentials that a rule opens, and records who read them', async () => {
  await using stage = await Stage.start(spec);
  const base = '/latest/meta-data/iam/security-credentials/';
  assert.equal((await stage.ec2(base)).body, 'web');
  assert.equal(stage.world.audit.length, 0, 'a list reads nothing');
  assert.equal((await stage.ec2(`${base}web`)).body, credentials);
  const [record] = stage.world.audit;
  assert.deepEqual(
    [record!.way, record!.operation, record!.path, record!.verdict],
    ['facade', 'read', '/secrets/credentials/ec2/web', 'allowed'],
  );
  stage.world.auditWorks = false;
  assert.equal((await stage.ec2(`${base}web`)).status, 503, 'what cannot be recorded is not given out');
});

test('a façade records who asks for what is there and not for everybody', async () => {
  await using stage = await Stage.start(spec);
  assert.equal((await stage.ec2('/latest/user-data')).status, 404);
  const [record] = stage.world.audit;
  assert.deepEqual([record!.path, record!.verdict, record!.errno], ['/cloud-init/user-data', 'denied', 'ENOENT']);
});

test('GCE wants Metadata-Flavor, and says it in every answer', async () => {
  await using stage = await Stage.start(spec);
  for (const path of [
    '/',
    '/computeMetadata/v1/instance/id',
    '/computeMetadata/v1/nothing',
    '/computeMetadata/v2/',
    '/computeMetadata/v1/?alt=xml',
  ]) {
    const { headers, status } = await stage.gce(path);
    assert.equal(headers['metadata-flavor'], 'Google', `${path}: ${status}`);
  }
  const without = await stage.ask('/computeMetadata/v1/instance/id');
  assert.deepEqual([without.status, without.headers['metadata-flavor']], [403, 'Google']);
  assert.equal(stage.server.counters()['rejected.no-flavor'], 1);
});

test('GCE answers leaves as text, lists by line, and trees as JSON with its own names', async () => {
  await using stage = await Stage.start(spec);
  assert.match((await stage.gce('/computeMetadata/v1/instance/id')).body, /^[1-9]\d{15,18}$/);
  assert.equal((await stage.gce('/computeMetadata/v1/instance/zone')).body, 'projects/42/zones/eu-1a');
  assert.equal((await stage.gce('/computeMetadata/v1/instance/zone?alt=json')).body, '"projects/42/zones/eu-1a"');
  assert.equal((await stage.gce('/computeMetadata/v1/project/')).body, 'attributes/\nnumeric-project-id\nproject-id\n');
  assert.equal((await stage.gce('/computeMetadata/v1/instance/id/')).status, 404);
  const all = await stage.gce('/computeMetadata/v1/?recursive=true');
  assert.equal(all.headers['content-type'], 'application/json');
  assert.match(all.body, /"id":\d{16,19},/);
  const { instance, project } = JSON.parse(all.body) as {
    instance: Record<string, unknown>;
    project: Record<string, unknown>;
  };
  assert.deepEqual(instance['networkInterfaces'], [{ ip: '10.0.0.5', mac: '02:AA:00:00:00:01' }]);
  assert.deepEqual(instance['attributes'], {
    'enable-guest-attributes': 'TRUE',
    'My-Key': 'v',
    'ssh-keys': 'admin:ssh-ed25519 AAAA me@home',
  });
  assert.deepEqual(instance['serviceAccounts'], { default: { email: 'e@x' } }, 'tokens are asked for alone');
  assert.equal(project['numericProjectId'], 42);
  assert.equal(
    (await stage.gce('/computeMetadata/v1/instance/service-accounts/default/token')).body,
    '{"access_token":"x"}',
  );
  const text = await stage.gce('/computeMetadata/v1/instance/attributes/?recursive=True&alt=text');
  assert.match(text.body, /^My-Key v$/m);
});

test('GCE waits for a change of what is asked for, from an etag', async () => {
  await using stage = await Stage.start(spec);
  const path = '/computeMetadata/v1/instance/attributes/?recursive=true';
  const { etag } = (await stage.gce(path)).headers;
  const asWas = await stage.gce(`${path}&wait_for_change=true&last_etag=NONE`);
  assert.equal(asWas.headers.etag, etag, 'another etag than the last is answered at once');
  let isAnswered = false;
  const waiting = stage.gce(`${path}&wait_for_change=true&last_etag=${etag}&timeout_sec=200`).then((answered) => {
    isAnswered = true;
    return answered;
  });
  await until('it waits', () => stage.server.counters()['inFlight'] === 1);
  await stage.world.authority.edit([{ op: 'put', path: '/instance/hostname', bytes: Buffer.from('web-2') }]);
  assert.equal((await stage.gce(path)).headers.etag, etag, 'a change elsewhere is none here');
  assert.equal(isAnswered, false);
  await stage.world.authority.edit([{ op: 'put', path: '/instance/attributes/new', bytes: Buffer.from('1') }]);
  const changed = await waiting;
  assert.match(changed.body, /"new":"1"/);
  assert.notEqual(changed.headers.etag, etag);
  const late = await stage.gce(`${path}&wait_for_change=true&last_etag=${changed.headers.etag}&timeout_sec=0`);
  assert.equal(late.headers.etag, changed.headers.etag, 'when the time is over, what is there');
});

test('GCE takes guest attributes of two names, where they are on, and shows them by a rule', async () => {
  await using stage = await Stage.start(spec);
  const base = '/computeMetadata/v1/instance/guest-attributes';
  const flavor = { 'metadata-flavor': 'Google' };
  assert.equal((await stage.ask(`${base}/hostkeys/ed25519`, put(flavor, 'AAAA'))).status, 200);
  assert.equal((await stage.gce(`${base}/hostkeys/ed25519`)).body, 'AAAA');
  assert.equal((await stage.ask(`${base}/hostkeys/ed25519`, put(flavor, 'B'))).status, 200);
  assert.equal((await stage.gce(`${base}/hostkeys/?recursive=true`)).body, '{"ed25519":"B"}');
  assert.equal(
    Buffer.from(stage.world.authority.snapshot.resolve('/guest/attributes/hostkeys/ed25519')!.bytes!).toString(),
    'B',
  );
  assert.equal((await stage.ask(`${base}/one`, put(flavor, ''))).status, 400);
  assert.equal((await stage.ask(`${base}/a/b/c`, put(flavor, ''))).status, 400);
  assert.equal((await stage.ask(`${base}/a/%2e%2e`, put(flavor, ''))).status, 400);
  assert.equal((await stage.ask(`${base}/a/b`, put({}, 'x'))).status, 403);
  assert.equal((await stage.ask(`${base}/a/b`, put(flavor, 'x'.repeat(300_000)))).status, 413);
  assert.equal((await stage.ask(`${base}/hostkeys/ed25519`, { method: 'DELETE', headers: flavor })).status, 200);
  assert.equal((await stage.gce(`${base}/hostkeys/ed25519`)).status, 404);
  await using off = await Stage.start({ ...spec, content: { guest: {} } });
  assert.equal((await off.ask(`${base}/a/b`, put(flavor, 'x'))).status, 403);
});

test('OpenStack lists its versions, and has the same documents in each', async () => {
  await using stage = await Stage.start(spec);
  const versions = (await stage.ask('/openstack')).body.split('\n');
  assert.ok(versions.includes('2018-08-27') && versions.includes('latest'));
  const { body, headers } = await stage.ask('/openstack/2018-08-27/meta_data.json');
  assert.equal(headers['content-type'], 'application/json');
  const document = JSON.parse(body) as Record<string, unknown>;
  assert.deepEqual(
    [document['uuid'], document['hostname'], document['meta']],
    ['i-1', 'web-1', { 'enable-guest-attributes': 'TRUE', 'My-Key': 'v' }],
  );
  assert.equal((await stage.ask('/openstack/latest/user_data')).status, 404);
  assert.equal((await stage.ask('/openstack/1999-01-01/meta_data.json')).status, 404);
  assert.equal((await stage.ask('/openstack/latest/', { method: 'POST' })).status, 405);
});

test('NoCloud has what cloud-init must find, also where there is nothing to say', async () => {
  await using stage = await Stage.start(spec);
  assert.match((await stage.ask('/nocloud/meta-data')).body, /^instance-id: "i-1"\nlocal-hostname: "web-1"\n/);
  const data = await stage.ask('/nocloud/user-data');
  assert.deepEqual([data.status, data.body], [200, '']);
  assert.equal((await stage.ask('/nocloud/network-config')).status, 404);
});

test('façades that are not wanted are not there', async () => {
  await using stage = await Stage.start(spec, { facades: ['nocloud'] });
  for (const path of ['/latest/meta-data/', '/openstack', '/computeMetadata/v1/', '/'])
    assert.equal((await stage.gce(path)).status, 404, path);
  assert.equal((await stage.ask('/nocloud/meta-data')).status, 200);
});
