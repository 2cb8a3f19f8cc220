import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync } from 'node:fs';
import { test } from 'node:test';
import { FailedKeys } from '../../src/cluster/failed-keys.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { readEvents } from './http.ts';

const tcp = { listen: { tcp: { host: '127.0.0.1', port: 0 } } } as const;

const create = async (api: TestApi, role: string, more: object = {}): Promise<{ id: string; text: string }> => {
  const { json } = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: role, role, ...more } });
  return { id: String(json['key']!['id']), text: String(json['text']) };
};

const withVm = async (api: TestApi): Promise<void> => {
  const spec = 'porthole: 1\nmetadata: { instance: { id: i }, secrets: { db: hunter2 } }\n';
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', kind: 'attached', spec } });
  await until('the VM', () => api.host.vms.has('web-1'));
};

test('a viewer reads what shows no secret, and nothing else', async (t) => {
  const api = await startApi(t, tcp);
  await withVm(api);
  const { text: key } = await create(api, 'viewer');
  const ask = (path: string, method = 'GET') => api.ask({ path, method, url: api.server.url, key });
  assert.equal((await ask('/v1/vms/web-1/metadata/instance/id')).text, 'i');
  assert.equal((await ask('/v1/vms/web-1/metadata/secrets/db')).status, 403);
  assert.equal((await ask('/v1/vms/web-1/metadata/secrets/db?view=stat')).status, 200);
  const tree = await ask('/v1/vms/web-1/metadata/?view=tree');
  assert.doesNotMatch(tree.text, /hunter2/);
  assert.match(tree.text, /"withheld":true/);
  assert.equal((await ask('/v1/vms/web-1/spec')).status, 403);
  assert.equal((await ask('/v1/vms/web-1/console')).status, 403);
  assert.equal((await ask('/v1/vms/web-1', 'DELETE')).status, 403);
});

test('neither the store, the log nor any answer but the first has the secret of a key', async (t) => {
  const api = await startApi(t, tcp);
  const { text } = await create(api, 'operator');
  const secret = text.split('_').slice(2).join('_');
  assert.equal(
    (await api.ask({ path: '/v1/self', url: api.server.url, key: text })).json['role'] as unknown,
    'operator',
  );
  await api.ask({ path: '/v1/self', url: api.server.url, key: `${text}x` });
  assert.doesNotMatch((await api.ask({ path: '/v1/keys' })).text, new RegExp(`${secret}|secretHash`));
  const { entries } = await api.stores.global.range({ start: '\0' });
  for (const { value } of entries) assert.ok(!Buffer.from(value).toString('latin1').includes(secret));
  await until('the log', () => api.logged.length >= 4);
  assert.ok(!JSON.stringify(api.logged).includes(secret));
});

test('the log has no value, no body and no query of a request', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  await api.ask({ method: 'PUT', path: '/v1/vms/web-1/metadata/secrets/x', body: 'swordfish' });
  await api.ask({ path: '/v1/audit?path=/secret-query' });
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'a', nonsense: 'swordfish' } });
  api.host.broken = new Error('it broke');
  await api.ask({ path: '/v1/vms/web-1/metadata/secrets/x' });
  await until('the log', () => api.logged.some(({ msg }) => msg === 'a request failed'));
  assert.doesNotMatch(JSON.stringify(api.logged), /swordfish|hunter2|secret-query/);
});

test('a revoked key ends at once, and the streams that it opened with it', async (t) => {
  const api = await startApi(t, tcp);
  await withVm(api);
  const { id, text: key } = await create(api, 'operator');
  const { url } = api.server;
  // More events than there will be: it resolves when the server ends the stream.
  const streams = ['/v1/vms/web-1/changes', '/v1/audit/stream', '/v1/vms/web-1/console/stream'].map((path) =>
    readEvents(api, { path, url, key }, 100),
  );
  await until('the streams', async () => (await api.ask({ path: '/metrics' })).text.includes('porthole_api_streams 3'));
  const began = performance.now();
  // Revoked in the store, as another manager would do it.
  await api.stores.global.commit({ operations: [{ type: 'delete', key: `key/${id}` }] });
  const ended = await Promise.all(streams);
  assert.ok(performance.now() - began < 30_000);
  for (const events of ended) assert.equal(events.at(-1)?.data['code'] as unknown, 'BAD_KEY');
  assert.equal((await api.ask({ path: '/v1/self', url, key })).status, 401);
  await until('the gauge', async () => (await api.ask({ path: '/metrics' })).text.includes('porthole_api_streams 0'));
});

test('a key ends when its time is over, and its streams with it', async (t) => {
  const api = await startApi(t, tcp);
  await withVm(api);
  const { url } = api.server;
  // On a busy machine a second may be over before the stream begins: then the next key lives longer.
  const opened = async (expiresInSeconds: number): Promise<{ readonly key: string; readonly end: unknown }> => {
    const { text: key } = await create(api, 'viewer', { expiresInSeconds });
    const request = { path: '/v1/vms/web-1/changes', url, key };
    const events = await readEvents(api, request, 100).catch(() => []);
    if (events[0]?.event !== 'start' && expiresInSeconds < 60) return opened(4 * expiresInSeconds);
    return { key, end: events.at(-1)?.data['code'] };
  };
  const { key, end } = await opened(1);
  assert.equal(end, 'BAD_KEY');
  await until('its end', async () => (await api.ask({ path: '/v1/self', url, key })).status === 401);
});

test('keys outlive a restart, and whoever guesses them is held up', async (t) => {
  const api = await startApi(t, tcp);
  const { text: key } = await create(api, 'viewer');
  await api.restart();
  const { url } = api.server;
  assert.equal((await api.ask({ path: '/v1/self', url, key })).status, 200);
  const wrong = `${key.slice(0, -1)}${key.endsWith('A') ? 'B' : 'A'}`;
  // All at once, again and again: a machine that is busy forgives meanwhile.
  const guess = () => api.ask({ path: '/v1/self', url, key: wrong });
  const held = await until('guesses to be held up', async () => {
    const answers = await Promise.all(Array.from({ length: 40 }, guess));
    for (const { status } of answers) assert.ok(status === 401 || status === 429, String(status));
    return answers.find(({ status }) => status === 429);
  });
  assert.match(String(held.headers['retry-after']), /^\d+$/);
  // Others at the same address, guests of this machine among them, do not lock out who has a right one.
  assert.equal((await api.ask({ path: '/v1/self', url, key })).status, 200);
  // Whoever comes by the socket is somebody else.
  assert.equal((await api.ask({ path: '/v1/self' })).status, 200);
  assert.equal((await api.ask({ path: '/v1/self', key: 'nonsense' })).status, 401);
});

test('FailedKeys forgives with time, and remembers a bounded number of addresses', () => {
  let nowMs = 0;
  const failed = new FailedKeys(() => nowMs);
  for (let i = 0; i < 20; i++) failed.failed('a');
  assert.equal(failed.waitSeconds('a'), 3);
  assert.equal(failed.waitSeconds('b'), 0);
  nowMs += 3_000;
  assert.equal(failed.waitSeconds('a'), 0);
  for (let i = 0; i < 20; i++) failed.failed('a');
  for (let i = 0; i < 5_000; i++) failed.failed(`x${i}`);
  assert.equal(failed.waitSeconds('a'), 0);
});

/** Asks over a unix socket as another user: Debian's perl-base is everywhere, and needs nothing of this directory. */
const askAs = async (uid: number, gid: number, groups: readonly number[], socketPath: string): Promise<string> => {
  const script = `
    use IO::Socket::UNIX; use POSIX;
    $) = "${[gid, gid, ...groups].join(' ')}"; POSIX::setgid(${gid}); POSIX::setuid(${uid});
    my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or do { print "connect: $!"; exit };
    print $s "GET /v1/self HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n";
    local $/; print <$s>;`;
  const child = spawn('/usr/bin/perl', ['-e', script, socketPath], { cwd: '/', stdio: ['ignore', 'pipe', 'inherit'] });
  const chunks: Buffer[] = [];
  for await (const chunk of child.stdout) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
};

test('the kernel says who asks over the unix socket', {
  skip: process.getuid?.() === 0 ? false : 'needs root to ask as somebody else',
}, async (t) => {
  const group = 54_321;
  const api = await startApi(t, { listen: { socketGroup: { gid: group, role: 'operator' } } });
  chmodSync(api.directory, 0o711);
  assert.match(await askAs(0, 0, [], api.socketPath), /"role":"admin","uid":0/);
  assert.match(await askAs(4_000, 4_000, [], api.socketPath), /^connect: Permission denied/);
  assert.match(await askAs(4_000, group, [], api.socketPath), /"role":"operator","uid":4000/);
  assert.match(await askAs(4_000, 4_000, [7, group, 9], api.socketPath), /"role":"operator","uid":4000/);
  // Whoever gets past the mode of the socket is still refused.
  chmodSync(api.socketPath, 0o666);
  const refused = await askAs(4_000, 4_000, [7], api.socketPath);
  assert.match(refused, /^HTTP\/1\.1 403 /);
  assert.match(refused, /uid 4000 may not use this socket/);
});
