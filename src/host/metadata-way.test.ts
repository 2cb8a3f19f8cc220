import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { RemoteClient } from '../../test/ninep/remote.ts';
import { World } from '../../test/tree/world.ts';
import { until } from '../../test/until.ts';
import { tokenStoreInMemory } from '../imds/index.ts';
import { abi } from '../ninep/index.ts';
import { EACCES } from '../wire/index.ts';
import { MetadataWay, parseAddress } from './metadata-way.ts';
import { type ServeEvent, serve } from './serve.ts';
import { ServeError } from './serve-targets.ts';

const specText = (id: string): string => `porthole: 1
metadata: { instance: { id: ${id} }, secrets: { token: t-1 }, guest: {} }
ninep: { mountUser: root }
`;

/** A server that listens on a socket in a directory of its own, with what it told. */
const stage = async (t: TestContext, suffix = '', ninep: readonly string[] = []) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-http-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const file = join(directory, 'web.yaml');
  const socket = join(directory, 's');
  const events: ServeEvent[] = [];
  writeFileSync(file, specText('one'));
  const server = await serve({
    file,
    vhostUser: [],
    mounts: [],
    ninep: ninep.map((name) => join(directory, name)),
    audit: join(directory, 'audit'),
    http: { addresses: [`unix:${socket}${suffix}`, '127.0.0.1:0'] },
    writeStdout: () => true,
    onEvent: (event) => events.push(event),
  });
  t.after(() => server.stop());
  const ask = (path: string, body?: object, token?: string): Promise<{ status: number; text: string }> =>
    new Promise((resolve, reject) => {
      const headers = {
        ...(body !== undefined && { 'content-type': 'application/json' }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
      };
      request({ socketPath: socket, path, method: body === undefined ? 'GET' : 'POST', headers }, (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (part: string) => (text += part));
        response.once('end', () => resolve({ status: response.statusCode!, text }));
      })
        .once('error', reject)
        .end(body === undefined ? undefined : JSON.stringify(body));
    });
  return { directory, file, socket, events, server, ask };
};

test('serve answers over HTTP without any device process, and what the file says at once', async (t) => {
  const { file, socket, events, server, ask } = await stage(t);
  assert.equal(server.devicePid, undefined);
  assert.equal((await ask('/nocloud/meta-data')).text, 'instance-id: "one"\n');
  const addresses = events.flatMap((event) => (event.event === 'http' ? [event.address] : []));
  assert.equal(addresses[0], `unix:${socket}`);
  assert.match(await (await fetch(`${addresses[1]}/nocloud/meta-data`)).text(), /one/);
  writeFileSync(`${file}.new`, specText('two'));
  renameSync(`${file}.new`, file);
  const reloaded = await until('it is loaded again', () => events.find(({ event }) => event === 'reloaded'), 60_000);
  assert.equal(reloaded.event === 'reloaded' && reloaded.applied, true);
  assert.equal((await ask('/nocloud/meta-data')).text, 'instance-id: "two"\n');
  await server.stop();
  assert.ok(!existsSync(socket), 'it leaves nothing behind');
});

const told = (events: readonly ServeEvent[]): string[] =>
  events.flatMap(({ event }) => (event === 'compromised' || event === 'token-refused' ? [event] : []));

test('serve tells of who asks for the token before its first use, and then nobody has one', async (t) => {
  const { events, ask } = await stage(t, ',privileged');
  const claim = (letter: string) => ask('/porthole/v1/token', { nonce: letter.repeat(22) });
  const { token } = JSON.parse((await claim('a')).text) as { readonly token: string };
  assert.equal((await claim('b')).status, 409);
  assert.deepEqual(told(events), ['compromised']);
  const look = { caller: { uid: 0, gid: 0, pid: 1 }, node: '/guest' };
  assert.equal((await ask('/porthole/v1/stat', look, token)).status, 401);
});

test('serve gives the token to a relay that is privileged, writes for who has it, and tells of the next claimant', async (t) => {
  const { events, server, ask } = await stage(t, ',privileged');
  const claim = (letter: string) => ask('/porthole/v1/token', { nonce: letter.repeat(22) });
  const { token } = JSON.parse((await claim('a')).text) as { readonly token: string };
  const make = { caller: { uid: 1000, gid: 1000, pid: 1 }, directory: '/guest', name: 'd', mode: 0o755, sequence: 1 };
  const made = await ask('/porthole/v1/mkdir', make, token);
  assert.equal(made.status, 200);
  assert.deepEqual(await ask('/porthole/v1/mkdir', make, token), made, 'sent again, it is not done again');
  assert.equal(server.tree.authority.snapshot.resolve('/guest/d')?.uid, 1000);
  assert.equal((await claim('b')).status, 409);
  assert.deepEqual(told(events), ['token-refused']);
});

test('serve lets a 9P client in by the token that it gave out, where no port vouches, until it is handed back', async (t) => {
  // As Firecracker and Cloud Hypervisor connect for their guests.
  const { directory, events, ask } = await stage(t, ',privileged', ['vsock_564']);
  const socket = join(directory, 'vsock_564');
  const connect = (): RemoteClient => {
    const client = new RemoteClient(socket);
    t.after(() => client[Symbol.dispose]());
    client.version();
    return client;
  };
  const attach = (client: RemoteClient, aname: string): number =>
    client.call('Tattach', { fid: client.newFid(), afid: abi.NOFID, nUname: 0, aname }).errno!;
  const claim = (letter: string) => ask('/porthole/v1/token', { nonce: letter.repeat(22) });
  assert.equal(attach(connect(), 'token='), EACCES, 'before there is one');
  const { token } = JSON.parse((await claim('a')).text) as { readonly token: string };
  const client = connect();
  assert.equal(attach(client, '/'), EACCES);
  assert.equal(attach(client, `token=${token.toLowerCase()}`), EACCES);
  assert.equal(attach(client, `token=${token}`), 0);
  // What mount(8) makes of a connection that was let in: another version, and an attach for each user.
  client.version();
  client.attach(1000);
  // That of mount(8) says no uid, and is whom the spec says.
  const secret = client.open(client.attach(), 'secrets/token');
  assert.equal(Buffer.from(client.ok('Tread', { fid: secret, count: 100 }).data).toString(), 't-1');
  // It was used, so that another claimant is no sign of an intruder.
  const refusal = await until('the use is known', async () => {
    assert.equal((await claim('b')).status, 409);
    return events.find(({ event }) => event === 'token-refused');
  });
  assert.ok(refusal);
  assert.equal((await ask('/porthole/v1/token/return', {}, token)).status, 200);
  await until('it is turned out', () => {
    client.session.take();
    return client.isOver || undefined;
  });
  assert.equal(attach(connect(), `token=${token}`), EACCES);
  const told = JSON.stringify(events) + readFileSync(join(directory, 'audit'), 'utf8');
  assert.ok(told.includes('/secrets/token') && !told.includes(token), 'nobody is told of the token');
});

test('serve gives no token where the socket is not said to be privileged', async (t) => {
  const { events, ask } = await stage(t);
  assert.equal((await ask('/porthole/v1/token', { nonce: 'a'.repeat(22) })).status, 403);
  assert.ok(events.every(({ event }) => event !== 'compromised'));
});

test('MetadataWay ends tokens and sessions with the boot, and keeps them over a restart within it', async (t) => {
  const { authority } = new World({ content: { instance: { id: 'i-1' }, guest: {} } });
  const store = tokenStoreInMemory();
  const start = async (boot: string) => {
    const way = await MetadataWay.start({
      vm: 'vm',
      authority,
      audit: () => true,
      store,
      boot,
      onToken: () => true,
      onTrouble: (what) => assert.fail(what),
    });
    t.after(() => way[Symbol.asyncDispose]());
    const base = `http://127.0.0.1:${await way.listen({ host: '127.0.0.1', port: 0 })}`;
    const session = async (): Promise<string> => {
      const headers = { 'x-aws-ec2-metadata-token-ttl-seconds': '600' };
      return (await fetch(`${base}/latest/api/token`, { method: 'PUT', headers })).text();
    };
    const holds = async (token: string): Promise<boolean> =>
      (await fetch(`${base}/latest/meta-data/instance-id`, { headers: { 'x-aws-ec2-metadata-token': token } })).ok;
    return { way, session, holds };
  };
  const first = await start('boot-1');
  const session = await first.session();
  assert.equal(await first.holds(session), true);
  await first.way[Symbol.asyncDispose]();
  const again = await start('boot-1');
  assert.equal(await again.holds(session), true, 'another process, the same boot');
  await again.way.boot('boot-2');
  assert.equal(await again.holds(session), false);
  assert.equal(await again.holds(await again.session()), true);
});

test('parseAddress takes sockets and addresses, and nothing else', () => {
  assert.deepEqual(parseAddress('unix:/run/s'), { unix: '/run/s', privileged: false });
  assert.deepEqual(parseAddress('unix:s,privileged'), { unix: 's', privileged: true });
  assert.deepEqual(parseAddress('127.0.0.1:80'), { host: '127.0.0.1', port: 80 });
  assert.deepEqual(parseAddress('[fd00:ec2::254]:0'), { host: 'fd00:ec2::254', port: 0 });
  for (const text of [
    '',
    'unix:',
    'unix:,privileged',
    '80',
    'localhost:80',
    '127.0.0.1',
    '127.0.0.1:65536',
    '127.0.0.1:-1',
    '::1:80',
  ])
    assert.throws(() => parseAddress(text), ServeError, text);
});
