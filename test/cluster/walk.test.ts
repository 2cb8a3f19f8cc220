/** Every answer that the document promises is given: those of one operation's own by a walk, those of all by a loop. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { problemCodes } from '../../src/cluster/problem.ts';
import { HostRefusal } from '../../src/host/host-error.ts';
import { hostLeftKey, hostLeftPrefix } from '../../src/records/index.ts';
import { prefixRange, StoreError } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { addHost, imageElsewhere } from './hosts.ts';
import { type HttpAnswer, type HttpRequest, readEvents } from './http.ts';

const spec = 'porthole: 1\nmetadata:\n  instance: { hostname: web-1 }\n  secrets: { db: hunter2 }\n';

const made = async (api: TestApi, name: string, more: object = {}): Promise<void> => {
  const body = { name, kind: 'attached', spec, ...more };
  const created = await api.ask({ method: 'POST', path: '/v1/vms', body });
  assert.equal(created.status, 202, created.text);
  await until(`the VM ${name}`, () => api.host.vms.has(name));
};

const expect = async (api: TestApi, status: number, code: string, request: HttpRequest): Promise<HttpAnswer> => {
  const answer = await api.ask(request);
  assert.deepEqual([answer.status, answer.json?.['code'] ?? ''], [status, code], `${request.path}: ${answer.text}`);
  return answer;
};

test('every operation gives the answers that are its own', async (t) => {
  const api = await startApi(t, { listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const ok = (status: number, request: HttpRequest): Promise<HttpAnswer> => expect(api, status, '', request);
  const vm = '/v1/vms/web-1';
  const db = `${vm}/metadata/secrets/db`;

  // Server
  await ok(200, { path: '/healthz' });
  const { text: metrics } = await ok(200, { path: '/metrics' });
  assert.match(metrics, /^porthole_metadata_server_requests_total 5$/m);
  assert.match(metrics, /^porthole_metadata_server_rejected_total\{reason="token-taken"\} 2$/m);
  await ok(200, { path: '/docs' });
  await ok(200, { path: '/openapi.json' });
  const { stores } = (await ok(200, { path: '/v1/host' })).json;
  const here = { engine: 'sqlite', reachable: true };
  assert.deepEqual(stores, { region: here, global: here });
  assert.equal((await ok(200, { path: '/v1/self' })).json['role'], 'admin');

  // VMs
  await made(api, 'web-1');
  await expect(api, 409, 'NAME_TAKEN', { method: 'POST', path: '/v1/vms', body: { name: 'web-1', kind: 'attached' } });
  await expect(api, 404, 'NOT_FOUND', {
    method: 'POST',
    path: '/v1/vms',
    body: { name: 'web-2', type: 'small', image: { name: 'none' } },
  });
  const bad = await expect(api, 422, 'BAD_SPEC', {
    method: 'POST',
    path: '/v1/vms',
    body: { name: 'web-2', kind: 'attached', spec: 'porthole: 1\nmetadata:\n  a: { file: /etc/shadow }\npolicy: 3\n' },
  });
  assert.ok(JSON.stringify(bad.json['problems']).includes('"line":4'), bad.text);
  await ok(200, { path: '/v1/vms' });
  await expect(api, 400, 'BAD_CURSOR', { path: '/v1/vms?cursor=zzz' });
  await until(
    'the count',
    async () =>
      (await ok(200, { path: '/v1/counts' })).text.includes('"status":"running"') ||
      (await ok(200, { path: '/v1/counts' })).text.includes('"status":"stopped"'),
  );
  await ok(200, { path: vm });
  await expect(api, 404, 'VM_NOT_FOUND', { path: '/v1/vms/none' });
  for (const action of ['start', 'stop', 'reboot'])
    await expect(api, 409, 'WRONG_STATE', { method: 'POST', path: `${vm}/${action}` });
  await ok(200, { path: `${vm}/statistics` });
  assert.deepEqual((await ok(200, { path: `${vm}/top` })).json['inside'], { problems: [] });
  await ok(200, { path: `${vm}/attachment` });
  assert.equal((await ok(201, { method: 'POST', path: `${vm}/boots` })).json['number'], 1);
  const renewed = await ok(200, { method: 'POST', path: `${vm}/device/renew` });
  assert.deepEqual(renewed.json, { version: '0.1.0+0123456789ab', outdated: false });
  api.host.vms.get('web-1')!.unrenewable = 'nothing serves it';
  await expect(api, 409, 'WRONG_STATE', { method: 'POST', path: `${vm}/device/renew` });

  // Images, and a managed VM
  await ok(202, { method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
  await until('the image', async () => (await api.ask({ path: '/v1/images/tiny/1' })).status === 200);
  await ok(200, { path: '/v1/images' });
  await expect(api, 404, 'NOT_FOUND', { path: '/v1/images/none/1' });
  await expect(api, 409, 'NAME_TAKEN', {
    method: 'POST',
    path: '/v1/images',
    body: { name: 'tiny', version: '1', recipe: 'tiny' },
  });
  const uploaded = await ok(201, { method: 'POST', path: '/v1/uploads', body: new Uint8Array(5) });
  const upload = uploaded.json['id'];
  const kernel = { kernel: { upload }, initrd: { file: '/boot/initrd' }, commandLine: 'quiet' };
  await ok(202, { method: 'POST', path: '/v1/images', body: { name: 'kernel', kernel } });
  await expect(api, 400, 'BAD_REQUEST', { method: 'POST', path: '/v1/images', body: { name: 'x', kernel, upload } });
  await expect(api, 400, 'BAD_REQUEST', { method: 'POST', path: '/v1/uploads' });
  await api.stores.global.commit({ operations: [imageElsewhere('far')] });
  const copy = (path: string) => ({ method: 'POST', path: `/v1/images/${path}/1/copy`, body: {} });
  await ok(202, copy('far'));
  await until('the copy', async () => (await api.ask({ path: '/v1/images/far/1' })).text.includes('"local"'));
  await expect(api, 409, 'WRONG_STATE', copy('far'));
  await expect(api, 404, 'NOT_FOUND', copy('none'));
  const blob = `/v1/images/far/1/blobs/sha256:${'b'.repeat(64)}`;
  await expect(api, 404, 'NOT_FOUND', { path: blob });
  api.host.blobs.set(`sha256:${'b'.repeat(64)}`, Buffer.from('manifest'));
  assert.equal((await ok(200, { path: `${blob}?offset=4` })).text, 'fest');
  const pieces = `/v1/uploads/up-${'a'.repeat(32)}`;
  const piece = { method: 'PATCH', path: `${pieces}?offset=0&sizeBytes=10`, body: new Uint8Array(5) };
  await expect(api, 404, 'NOT_FOUND', { path: pieces });
  await ok(200, piece);
  assert.equal((await ok(200, { path: pieces })).json['receivedBytes'], 5);
  await expect(api, 409, 'WRONG_STATE', piece);
  await expect(api, 413, 'TOO_LARGE', { method: 'POST', path: '/v1/uploads', body: new Uint8Array(9 * 1024 * 1024) });
  await ok(202, { method: 'POST', path: '/v1/vms', body: { name: 'ours', type: 'nano', image: { name: 'tiny' } } });
  await expect(api, 409, 'WRONG_STATE', { method: 'POST', path: '/v1/vms/ours/boots' });
  for (const action of ['stop', 'start', 'reboot']) await ok(202, { method: 'POST', path: `/v1/vms/ours/${action}` });
  await ok(202, { method: 'POST', path: '/v1/vms/ours/stop', body: { graceSeconds: 0 } });
  await expect(api, 409, 'IMAGE_IN_USE', { method: 'DELETE', path: '/v1/images/tiny/1' });
  await ok(202, { method: 'DELETE', path: '/v1/vms/ours' });
  await until('the end', async () => (await api.ask({ path: '/v1/vms/ours' })).status === 404);
  await ok(204, { method: 'DELETE', path: '/v1/images/tiny/1' });
  await expect(api, 404, 'NOT_FOUND', { method: 'DELETE', path: '/v1/images/tiny/1' });

  // Operations
  const operations = await ok(200, { path: '/v1/operations?limit=2' });
  const id = operations.json['operations']![0 as never]!['id'] as unknown as string;
  await ok(200, { path: `/v1/operations?cursor=${String(operations.json['next'])}` });
  await ok(200, { path: `/v1/operations/${id}` });
  await expect(api, 404, 'NOT_FOUND', { path: `/v1/operations/op-${'0'.repeat(22)}` });
  await expect(api, 404, 'NOT_FOUND', { path: `/v1/operations/op-${'0'.repeat(22)}/events` });
  const told = await ok(200, { path: `/v1/operations/${id}/events` });
  assert.match(told.text, /event: operation\nid: \d+\ndata: \{.*"state":"succeeded"/);
  await expect(api, 409, 'WRONG_STATE', { method: 'POST', path: `/v1/operations/${id}/cancel` });
  await expect(api, 404, 'NOT_FOUND', { method: 'POST', path: `/v1/operations/op-${'0'.repeat(22)}/cancel` });

  // Console
  const { console } = api.host.vms.get('web-1')!;
  console.print('hello\n');
  const log = await ok(200, { path: `${vm}/console?tail=3` });
  assert.deepEqual([log.text, log.headers['console-offset'], log.headers['console-end']], ['lo\n', '3', '6']);
  await ok(204, { method: 'POST', path: `${vm}/console/input`, body: 'ls\n' });
  console.isRunning = false;
  await expect(api, 409, 'WRONG_STATE', { method: 'POST', path: `${vm}/console/input`, body: 'ls\n' });
  await readEvents(api, { path: `${vm}/console/stream?offset=0` }, 2);

  // Metadata
  const read = await ok(200, { path: db });
  assert.deepEqual(
    [read.text, read.headers['porthole-kind'], read.headers['porthole-mode']],
    ['hunter2', 'file', '0400'],
  );
  const etag = String(read.headers['etag']);
  await ok(304, { path: db, headers: { 'if-none-match': etag } });
  await ok(200, { method: 'HEAD', path: db });
  await ok(200, { path: `${vm}/metadata/` });
  await ok(200, { path: `${vm}/metadata/?view=tree` });
  await ok(200, { path: `${db}?view=stat` });
  await expect(api, 404, 'PATH_NOT_FOUND', { path: `${vm}/metadata/none` });
  await expect(api, 404, 'VM_NOT_FOUND', { path: '/v1/vms/none/metadata/a' });
  await expect(api, 409, 'NOT_DIRECTORY', { path: `${db}/below` });
  await expect(api, 400, 'BAD_PATH', { path: `${vm}/metadata/a//b` });
  const put = await ok(200, { method: 'PUT', path: db, body: 'new', headers: { 'if-match': etag } });
  await expect(api, 412, 'PRECONDITION_FAILED', {
    method: 'PUT',
    path: db,
    body: 'newer',
    headers: { 'if-match': etag },
  });
  await expect(api, 412, 'PRECONDITION_FAILED', {
    method: 'PUT',
    path: db,
    body: 'x',
    headers: { 'if-none-match': '*' },
  });
  await expect(api, 412, 'PRECONDITION_FAILED', {
    method: 'PUT',
    path: db,
    body: 'x',
    headers: { 'if-match': '"0.3"' },
  });
  await expect(api, 409, 'IS_DIRECTORY', { method: 'PUT', path: `${vm}/metadata/secrets`, body: 'x' });
  await expect(api, 409, 'NOT_DIRECTORY', { method: 'PUT', path: `${db}/below`, body: 'x' });
  await expect(api, 404, 'VM_NOT_FOUND', { method: 'PUT', path: '/v1/vms/none/metadata/a', body: 'x' });
  await ok(200, { method: 'PUT', path: `${vm}/metadata/l?kind=symlink`, body: 'secrets/db' });
  assert.equal((await ok(200, { path: `${vm}/metadata/l` })).text, 'secrets/db');
  await ok(200, { method: 'PUT', path: `${vm}/metadata/d/e?kind=directory` });
  assert.equal(
    (await ok(200, { method: 'PUT', path: db, body: 'new' })).json['dataRevision'],
    put.json['dataRevision'],
  );
  await expect(api, 409, 'NOT_EMPTY', { method: 'DELETE', path: `${vm}/metadata/d` });
  await expect(api, 412, 'PRECONDITION_FAILED', { method: 'DELETE', path: db, headers: { 'if-match': etag } });
  await ok(200, { method: 'DELETE', path: `${vm}/metadata/d?recursive=true` });
  await expect(api, 404, 'PATH_NOT_FOUND', { method: 'DELETE', path: `${vm}/metadata/d` });
  await expect(api, 400, 'BAD_PATH', { method: 'DELETE', path: `${vm}/metadata/` });
  const path = `${vm}/transactions`;
  const dataRevision = put.json['dataRevision'];
  await ok(200, {
    method: 'POST',
    path,
    body: {
      conditions: [
        { path: '/secrets/db', dataRevision },
        { path: '/none', exists: false },
      ],
      edits: [
        { op: 'put', path: '/a/text', text: 'é' },
        { op: 'put', path: '/a/bytes', base64: '/w==' },
        { op: 'symlink', path: '/a/link', target: 'text' },
        { op: 'directory', path: '/a/directory' },
        { op: 'remove', path: '/l' },
      ],
    },
  });
  const tree = (await ok(200, { path: `${vm}/metadata/a?view=tree` })).json['entries'] as unknown as readonly {
    readonly path: string;
  }[];
  assert.deepEqual(
    tree
      .map((entry) => [
        entry.path,
        (entry as Record<string, unknown>)['text'] ??
          (entry as Record<string, unknown>)['base64'] ??
          (entry as Record<string, unknown>)['target'],
      ])
      .toSorted((a, b) => (a[0]! < b[0]! ? -1 : 1)),
    [
      ['/a', undefined],
      ['/a/bytes', '/w=='],
      ['/a/directory', undefined],
      ['/a/link', 'text'],
      ['/a/text', 'é'],
    ],
  );
  const edits = [{ op: 'put', path: '/secrets/db', text: 'x' }];
  await expect(api, 412, 'PRECONDITION_FAILED', {
    method: 'POST',
    path,
    body: { edits, conditions: [{ path: '/none', exists: true }] },
  });
  await expect(api, 409, 'IS_DIRECTORY', {
    method: 'POST',
    path,
    body: { edits: [{ op: 'put', path: '/a', text: '' }] },
  });
  await expect(api, 404, 'PATH_NOT_FOUND', {
    method: 'POST',
    path,
    body: { edits: [{ op: 'remove', path: '/none' }] },
  });
  await expect(api, 400, 'BAD_PATH', {
    method: 'POST',
    path,
    body: { edits: [{ op: 'put', path: '/a/../b', text: '' }] },
  });

  // Specs and policies
  const exported = await ok(200, { path: `${vm}/spec` });
  assert.match(exported.text, /^porthole: 1\n/);
  const yaml = { 'content-type': 'application/yaml' };
  await ok(200, { method: 'PUT', path: `${vm}/spec`, body: exported.text, headers: yaml });
  await expect(api, 422, 'BAD_SPEC', { method: 'PUT', path: `${vm}/spec`, body: 'metadata: 3\n', headers: yaml });
  await expect(api, 415, 'WRONG_MEDIA_TYPE', { method: 'PUT', path: `${vm}/spec`, body: exported.text });
  await expect(api, 412, 'PRECONDITION_FAILED', {
    method: 'PUT',
    path: `${vm}/spec`,
    body: spec,
    headers: { ...yaml, 'if-match': '"1.1"' },
  });
  const policy = 'policy:\n  - { path: /secrets/db, owner: 1000, mode: "0400" }\n';
  const policyTag = String((await ok(200, { path: `${vm}/policy` })).headers['etag']);
  await ok(200, { method: 'PUT', path: `${vm}/policy`, body: policy, headers: { ...yaml, 'if-match': policyTag } });
  await expect(api, 412, 'PRECONDITION_FAILED', {
    method: 'PUT',
    path: `${vm}/policy`,
    body: policy,
    headers: { ...yaml, 'if-match': policyTag },
  });
  await expect(api, 422, 'BAD_SPEC', {
    method: 'PUT',
    path: `${vm}/policy`,
    body: 'policy: [{ paht: /a }]\n',
    headers: yaml,
  });
  await expect(api, 415, 'WRONG_MEDIA_TYPE', { method: 'PUT', path: `${vm}/policy`, body: policy });
  assert.equal(
    (await ok(200, { path: `${vm}/policy/explain?path=/secrets/db&uid=1000` })).json['read']!['allowed'] as unknown,
    true,
  );
  assert.equal(
    (await ok(200, { path: `${vm}/policy/explain?path=/secrets/db&uid=1001&group=4&group=5` })).json['read']![
      'allowed'
    ] as unknown,
    false,
  );
  await expect(api, 404, 'PATH_NOT_FOUND', { path: `${vm}/policy/explain?path=/none&uid=0` });
  await expect(api, 409, 'NOT_DIRECTORY', { path: `${vm}/policy/explain?path=/secrets/db/x&uid=0` });

  const otherPolicy = 'users: { app: 1000 }\npolicy:\n  - { path: /secrets/db, owner: app, mode: "0400" }\n';
  const badPolicy = 'policy:\n  - { path: /a, mdoe: "0400" }\n';
  await ok(200, { path: `${vm}/metadata/?view=below&limit=2&after=/instance` });
  for (const [method, path] of [
    ['GET', `${vm}/policy/view?uid=1000`],
    ['POST', `${vm}/policy/view?uid=1000&program=/bin/a`],
    ['POST', `${vm}/policy/preview`],
  ] as const) {
    const asked = (more: string, body = otherPolicy): HttpRequest => ({
      method,
      path: `${path}${path.includes('?') ? '&' : '?'}${more}`,
      ...(method === 'POST' && { headers: yaml, body }),
    });
    await ok(200, asked('path=/secrets&limit=1'));
    await expect(api, 404, 'PATH_NOT_FOUND', asked('path=/none'));
    await expect(api, 409, 'NOT_DIRECTORY', asked('path=/secrets/db/x'));
    await expect(api, 400, 'BAD_PATH', asked('path=none'));
    await expect(api, 404, 'VM_NOT_FOUND', { ...asked('path=/'), path: asked('path=/').path.replace('web-1', 'none') });
    if (method === 'GET') continue;
    await expect(api, 415, 'WRONG_MEDIA_TYPE', { method, path, body: otherPolicy });
    const refused = await expect(api, 422, 'BAD_SPEC', asked('path=/', badPolicy));
    assert.ok(JSON.stringify(refused.json['problems']).includes('"line":2'), refused.text);
  }

  // Streams of a tree
  await readEvents(api, { path: `${vm}/changes?from=1.1` }, 2);
  api.host.vms.get('web-1')!.tree.remembered = 1;
  await expect(api, 410, 'COMPACTED', { path: `${vm}/changes?from=1.1` });
  await expect(api, 410, 'COMPACTED', { path: `${vm}/changes`, headers: { 'last-event-id': '0.900' } });
  await expect(api, 422, 'BAD_SPEC', { path: `${vm}/changes?from=1.99999` });

  // Audit
  const record = {
    timeMs: 1_777_593_600_000,
    vm: 'web-1',
    way: 'virtiofs',
    operation: 'open',
    path: '/secrets/db',
    uid: 5,
    gid: 5,
    pid: 7,
    revision: 3,
    verdict: 'denied' as const,
    rule: 'default',
    errno: 'EACCES',
  };
  for (let n = 0; n < 3; n++) api.host.recorded(record);
  const audit = await ok(200, { path: '/v1/audit?vm=web-1&verdict=denied&limit=2' });
  await ok(200, { path: `/v1/audit?vm=web-1&cursor=${String(audit.json['next'])}` });
  await expect(api, 400, 'BAD_CURSOR', { path: '/v1/audit?cursor=x' });
  await expect(api, 404, 'NOT_FOUND', { path: '/v1/hosts/none/audit/check' });
  const checked = await ok(200, { path: '/v1/hosts/local/audit/check' });
  await ok(200, { path: `/v1/hosts/local/audit/check?after=${String(checked.json['last'])}` });
  await readEvents(api, { path: '/v1/audit/stream?uid=5', headers: { 'last-event-id': '1' } }, 2);
  await expect(api, 410, 'COMPACTED', { path: '/v1/audit/stream', headers: { 'last-event-id': '9' } });

  // Keys
  const key = await ok(201, {
    method: 'POST',
    path: '/v1/keys',
    body: { name: 'ci', role: 'viewer', expiresInSeconds: 60 },
  });
  await ok(200, { path: '/v1/keys' });
  const keyPath = `/v1/keys/${String(key.json['key']!['id'])}`;
  await ok(204, { method: 'DELETE', path: keyPath });
  await expect(api, 404, 'NOT_FOUND', { method: 'DELETE', path: keyPath });
  const once = {
    method: 'POST',
    path: '/v1/keys',
    body: { name: 'ci', role: 'viewer' },
    headers: { 'idempotency-key': 'k' },
  };
  await ok(201, once);
  await expect(api, 409, 'IDEMPOTENCY_SECRET', once);
  await expect(api, 422, 'IDEMPOTENCY_MISMATCH', { ...once, body: { name: 'other', role: 'viewer' } });

  // Sessions
  const viewer = String((await ok(201, { ...once, headers: {} })).json['text']);
  const inPage = (cookie: string, more: object = {}) => ({
    path: '/v1/session',
    url: api.server.url,
    headers: { origin: api.server.url!, 'porthole-console': '1', cookie },
    ...more,
  });
  const signedIn = await ok(201, { method: 'POST', path: '/v1/session', url: api.server.url, key: viewer });
  const cookie = String(signedIn.headers['set-cookie']).split(';')[0]!;
  await expect(api, 409, 'WRONG_STATE', { method: 'POST', path: '/v1/session' });
  await expect(api, 404, 'NOT_FOUND', { path: '/v1/session' });
  await expect(api, 404, 'NOT_FOUND', { method: 'DELETE', path: '/v1/session' });
  assert.equal((await ok(200, inPage(cookie))).json['role'], 'viewer');
  await ok(204, inPage(cookie, { method: 'DELETE' }));
  await expect(api, 401, 'BAD_KEY', inPage(cookie));

  // Accounts, with a region that exists by name only, which could not say what it has of one
  const created = await ok(201, { method: 'POST', path: '/v1/accounts', body: { name: 'team' } });
  assert.deepEqual([created.json['state'], created.json['quotas']], ['active', {}]);
  await expect(api, 409, 'NAME_TAKEN', { method: 'POST', path: '/v1/accounts', body: { name: 'team' } });
  const quotas = { local: { attached: 1 }, eu: { small: 0 } };
  const limited = await ok(200, { method: 'PUT', path: '/v1/accounts/team/quotas', body: quotas });
  assert.deepEqual(limited.json['quotas'], quotas);
  await expect(api, 400, 'BAD_REQUEST', {
    method: 'PUT',
    path: '/v1/accounts/team/quotas',
    body: { local: { huge: 1 } },
  });
  assert.equal((await ok(200, { path: '/v1/accounts' })).json['accounts']!['length'] as unknown, 2);
  await ok(200, { path: '/v1/accounts/team' });
  await expect(api, 404, 'NOT_FOUND', { path: '/v1/accounts/none' });
  await expect(api, 404, 'NOT_FOUND', { method: 'PUT', path: '/v1/accounts/none/quotas', body: quotas });
  await expect(api, 404, 'NOT_FOUND', { method: 'DELETE', path: '/v1/accounts/none' });
  await expect(api, 409, 'WRONG_STATE', { method: 'DELETE', path: '/v1/accounts/default' });
  const keyOf = (account: string) => ({
    method: 'POST',
    path: '/v1/keys',
    body: { name: 'k', role: 'admin', account },
  });
  await expect(api, 404, 'NOT_FOUND', keyOf('none'));
  const { text: team } = (await ok(201, keyOf('team'))).json;
  const { url } = api.server;
  const asTeam = { url, key: `${team}` };
  const own = { method: 'POST', path: '/v1/vms', body: { name: 'team-1', kind: 'attached' }, ...asTeam };
  await ok(202, own);
  const over = await expect(api, 409, 'QUOTA_EXCEEDED', { ...own, body: { name: 'team-2', kind: 'attached' } });
  assert.match(`${over.json['detail']}`, /may have 1 VMs of type "attached" in the region "local" and has 1;/);
  const kept = await expect(api, 409, 'IN_USE', { method: 'DELETE', path: '/v1/accounts/team' });
  assert.match(`${kept.json['detail']}`, /the account "team" has 1 VMs in the region "local"; delete them first/);
  await ok(202, { method: 'DELETE', path: '/v1/vms/team-1', ...asTeam });
  await until('its end', async () => (await api.ask({ path: '/v1/vms/team-1', ...asTeam })).status === 404);
  await ok(204, { method: 'DELETE', path: '/v1/accounts/team' });
  await until('its key to end', async () => (await api.ask({ path: '/v1/self', ...asTeam })).status === 401);

  // Regions and hosts
  const region = { addresses: ['https://eu-1.example:8443'] };
  await ok(200, { method: 'PUT', path: '/v1/regions/eu', body: region });
  assert.equal((await ok(200, { path: '/v1/regions/local' })).json['isHere'], true);
  assert.equal((await ok(200, { path: '/v1/regions' })).json['regions']!['length'] as unknown, 2);
  await expect(api, 404, 'NOT_FOUND', { path: '/v1/regions/none' });
  await expect(api, 409, 'IN_USE', { method: 'DELETE', path: '/v1/regions/eu' });
  await ok(204, { method: 'DELETE', path: '/v1/regions/eu?lost=true' });
  await ok(200, { method: 'PUT', path: '/v1/prefixes', body: { ipv4: ['10.20.0.0/30'] } });
  await expect(api, 400, 'BAD_REQUEST', { method: 'PUT', path: '/v1/prefixes', body: { ipv4: ['10.20.0.1/30'] } });
  assert.deepEqual((await ok(200, { path: '/v1/prefixes' })).json, { ipv4: ['10.20.0.0/30'], ipv6: [], dns: [] });
  await expect(api, 404, 'NOT_FOUND', { method: 'DELETE', path: '/v1/regions/eu' });
  await expect(api, 409, 'WRONG_STATE', { method: 'DELETE', path: '/v1/regions/local' });
  await addHost(api.stores.region, 'other', { capacity: { vcpus: 2, memoryMiB: 1024, diskBytes: 10_000 } });
  const hosts = await ok(200, { path: '/v1/hosts' });
  assert.equal(hosts.json['hosts']!['length'] as unknown, 2);
  const cordoned = await ok(200, { method: 'PATCH', path: '/v1/hosts/local', body: { cordoned: true } });
  assert.equal(cordoned.json['cordoned'], true);
  const onOther = (body: object) => ({
    method: 'POST',
    path: '/v1/vms',
    body: { kind: 'managed', type: 'micro', image: { name: 'kernel' }, start: false, ...body },
  });
  const placed = await ok(202, onOther({ name: 'placed' }));
  assert.equal(placed.json['vm']!['host'] as unknown, 'other');
  assert.deepEqual((await ok(200, { path: '/v1/hosts/other' })).json['vms'], ['placed']);
  const full = await expect(api, 507, 'NO_HOST', onOther({ name: 'large', type: 'small' }));
  assert.match(`${full.json['detail']}`, /: 1 host is cordoned, 1 host has less than 1024 MiB of memory free$/);
  await expect(api, 507, 'NO_HOST', onOther({ name: 'none', placement: { host: 'none' } }));
  await expect(api, 409, 'IN_USE', { method: 'DELETE', path: '/v1/hosts/other' });
  await expect(api, 409, 'WRONG_STATE', { method: 'DELETE', path: '/v1/hosts/local' });
  await ok(202, { method: 'DELETE', path: '/v1/vms/placed' });
  await until('its end', async () => (await api.ask({ path: '/v1/vms/placed' })).status === 404);
  const drain = { method: 'POST', path: '/v1/hosts/other/drain' };
  const draining = `/v1/operations/${String((await ok(202, drain)).json['operation']!['id'])}`;
  await until('it to be empty', async () => `${(await api.ask({ path: draining })).json['state']}` === 'succeeded');
  const { region: store } = api.stores;
  for (const tens of [0, 1])
    await store.commit({
      operations: Array.from({ length: 90 }, (_, i) => ({
        type: 'put',
        key: hostLeftKey('other', `left-${90 * tens + i}`),
        value: new Uint8Array(),
      })),
    });
  await ok(204, { method: 'DELETE', path: '/v1/hosts/other' });
  assert.deepEqual((await store.range(prefixRange(hostLeftPrefix('other')))).entries, []);
  await expect(api, 404, 'NOT_FOUND', drain);
  const joining = { method: 'POST', path: '/v1/join-keys', body: { host: 'h7' } };
  const joinKey = await ok(201, joining);
  assert.match(String(joinKey.json['text']), /^phj_/);
  const keyed = { ...joining, headers: { 'idempotency-key': 'join' } };
  await ok(201, keyed);
  await expect(api, 409, 'IDEMPOTENCY_SECRET', keyed);
  const { joinKeys } = (await ok(200, { path: '/v1/join-keys' })).json;
  assert.deepEqual([joinKeys!['length'], JSON.stringify(joinKeys).includes('secret')], [2, false]);
  const revoking = { method: 'DELETE', path: `/v1/join-keys/${String(joinKey.json['joinKey']!['id'])}` };
  await ok(204, revoking);
  await expect(api, 404, 'NOT_FOUND', revoking);
  await expect(api, 404, 'NOT_FOUND', { path: '/v1/hosts/other' });
  await expect(api, 404, 'NOT_FOUND', { method: 'PATCH', path: '/v1/hosts/other', body: { draining: true } });
  await ok(200, { method: 'PATCH', path: '/v1/hosts/local', body: { cordoned: false } });

  // Many at once
  const several = { name: 'many', kind: 'attached', count: 3 };
  const all = `/v1/operations/${String((await ok(202, { method: 'POST', path: '/v1/vms', body: several })).json['operation']!['id'])}`;
  await until('all of them', async () => `${(await api.ask({ path: all })).json['state']}` === 'succeeded');
  await ok(200, { path: `${all}/vms` });
  await expect(api, 404, 'NOT_FOUND', { path: `/v1/operations/op-${'0'.repeat(22)}/vms` });
  await expect(api, 400, 'BAD_REQUEST', { method: 'POST', path: '/v1/vms', body: { ...several, name: 'Many' } });
  await ok(202, { method: 'POST', path: '/v1/vm-actions', body: { action: 'delete', selector: { prefix: 'many-' } } });
  await expect(api, 400, 'BAD_REQUEST', {
    method: 'POST',
    path: '/v1/vm-actions',
    body: { action: 'stop', selector: {} },
  });

  // The stores as a whole
  const backup = await ok(200, { method: 'POST', path: '/v1/store/backup' });
  assert.match(backup.text, /^SQLite format 3\0/);
  const rotate = { method: 'POST', path: '/v1/store/rotate', body: {} };
  const rotating = `/v1/operations/${String((await ok(202, rotate)).json['id'])}`;
  await until('the rotation', async () => `${(await api.ask({ path: rotating })).json['state']}` === 'succeeded');
  await expect(api, 409, 'WRONG_STATE', { method: 'POST', path: `${rotating}/cancel` });

  // A start that has not happened yet becomes a stop; an image that is being added is dropped.
  api.host.addImageWith = (_request, { signal, progress }) => {
    const { promise, reject } = Promise.withResolvers<never>();
    progress({ step: 'converting', done: 1, total: 2 });
    signal!.addEventListener('abort', () => reject(signal!.reason));
    return promise;
  };
  const adding = await ok(202, { method: 'POST', path: '/v1/images', body: { name: 'slow', recipe: 'tiny' } });
  const cancel = `/v1/operations/${String(adding.json['id'])}`;
  await ok(202, { method: 'POST', path: `${cancel}/cancel` });
  await until('the cancel', async () => `${(await api.ask({ path: cancel })).json['state']}` === 'cancelled');

  const promised = api.contract.operations.flatMap(({ id: operation, statuses }) =>
    statuses.filter((status) => status < 400).map((status) => `${operation} ${status}`),
  );
  const streams = new Set(['streamConsole 200', 'followEvents 200', 'watchMetadata 200', 'followAudit 200']);
  assert.deepEqual(
    promised.filter((one) => !api.contract.seen.has(one) && !streams.has(one)),
    [],
  );
});

/** Statuses that come from what all requests go through. */
const common = new Set([400, 401, 403, 421, 429, 500, 503]);

test('every operation refuses in the ways that all of them share', async (t) => {
  const api = await startApi(t, { listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const url = api.server.url!;
  const keyOf = async (role: string): Promise<string> =>
    String((await api.ask({ method: 'POST', path: '/v1/keys', body: { name: role, role } })).json['text']);
  const viewer = await keyOf('viewer');
  const operator = await keyOf('operator');
  await made(api, 'web-1');
  for (const { id, method, path, access, operation } of api.contract.operations) {
    const target = path
      .replace('{name}', 'web-1')
      .replace('{path}', 'a')
      .replace('{image}', 'i')
      .replace('{version}', '1')
      .replace('{digest}', `sha256:${'0'.repeat(64)}`)
      .replace('{upload}', `up-${'0'.repeat(32)}`)
      .replace(/\{(account|region|host)\}/, 'local')
      .replace('{id}', id.includes('Key') ? '0'.repeat(16) : `op-${'0'.repeat(22)}`);
    const asked = (request: Partial<HttpRequest>): Promise<HttpAnswer> =>
      api.ask({ method, path: target, url, ...request });
    const code = async (request: Partial<HttpRequest>): Promise<string> => {
      const { json, status } = await asked(request);
      return `${status} ${json?.['code'] ?? ''}`;
    };
    assert.equal(await code({ headers: { host: 'evil.example' } }), '421 BAD_HOST', id);
    assert.equal(await code({ headers: { origin: 'https://evil.example' } }), '403 BAD_ORIGIN', id);
    if (access === 'none') continue;
    assert.equal(await code({}), '401 NO_KEY', id);
    if (access !== 'viewer') assert.equal(await code({ key: viewer }), '403 FORBIDDEN', id);
    if (access === 'admin') assert.equal(await code({ key: operator }), '403 FORBIDDEN', id);
    if (operation.parameters?.some((parameter) => parameter.in === 'query'))
      assert.equal(
        await code({ path: `${target}?nonsense=1`, socketPath: api.socketPath, url: undefined }),
        '400 BAD_REQUEST',
        id,
      );
  }
  // One mapping answers for all; here its other half, by what a host or a store can say.
  for (const [refusal, status] of [
    [new HostRefusal('HOST_UNAVAILABLE', 'the host is away'), 503],
    [new HostRefusal('HOST_FULL', 'the disk is full'), 507],
    [new HostRefusal('HOST_UNSUPPORTED', 'not here'), 501],
    [new HostRefusal('HOST_BURNED', 'gone'), 410],
    [new HostRefusal('HOST_TOO_LARGE', 'too much'), 413],
    [new StoreError('STORE_FULL', 'x'), 507],
    [new Error('a bug that quotes hunter2'), 500],
  ] as const) {
    api.host.broken = refusal;
    const answer = await http500(api, status);
    assert.ok(String(answer.json['code']) in problemCodes, answer.text);
    assert.doesNotMatch(answer.text, /hunter2/);
  }
  for (const { id, statuses } of api.contract.operations)
    for (const status of common) assert.ok(statuses.includes(status), `${id} does not document ${status}`);
});

/** The same refusal of the host behind two operations, of which at least one documents the status. */
const http500 = async (api: TestApi, status: number): Promise<HttpAnswer> => {
  const path =
    status === 507
      ? '/v1/vms/web-1/metadata/a'
      : status === 501
        ? '/v1/vms/web-1/statistics'
        : '/v1/vms/web-1/metadata/instance';
  const answer = await api.ask(status === 507 ? { method: 'PUT', path, body: 'x' } : { path });
  assert.equal(answer.status, status, answer.text);
  return answer;
};
