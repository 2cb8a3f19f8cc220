/** Sessions of the console: who gets one, what it may, which requests it is good for, and how it ends. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { brotliCompressSync, gzipSync } from 'node:zlib';
import { Client, readSite } from '../../src/cluster/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi, type TestApiOptions } from './api.ts';
import { type HttpAnswer, type HttpRequest, http, readEvents } from './http.ts';

const tcp = { listen: { tcp: { host: '127.0.0.1', port: 0 } } };
const hourMs = 3_600_000;

interface Key {
  readonly id: string;
  readonly text: string;
}

const keyOf = async (api: TestApi, role: string): Promise<Key> => {
  const { json } = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: role, role } });
  return { id: String(json['key']!['id']), text: String(json['text']) };
};

const signIn = (api: TestApi, key: string): Promise<HttpAnswer> =>
  api.ask({ method: 'POST', path: '/v1/session', url: api.server.url, key });

/** What a browser keeps of the answer. */
const cookieOf = ({ headers }: HttpAnswer): string => String(headers['set-cookie']).split(';')[0]!;

/** A page of the server itself asks, as browsers do. */
const ask = (api: TestApi, cookie: string, { headers = {}, ...request }: HttpRequest): Promise<HttpAnswer> =>
  api.ask({
    url: api.server.url,
    headers: { cookie, origin: api.server.url!, 'sec-fetch-site': 'same-origin', 'porthole-console': '1', ...headers },
    ...request,
  });

const outcome = ({ status, json }: HttpAnswer): string => `${status} ${String(json?.['code'] ?? '')}`.trim();

const signedIn = async (
  t: TestContext,
  options: TestApiOptions = tcp,
): Promise<{ readonly api: TestApi; readonly key: Key; readonly cookie: string }> => {
  const api = await startApi(t, options);
  const key = await keyOf(api, 'admin');
  return { api, key, cookie: cookieOf(await signIn(api, key.text)) };
};

test('a key begins a session, whose cookie no script can read and whose id is nowhere else', async (t) => {
  const api = await startApi(t, tcp);
  const key = await keyOf(api, 'operator');
  const answer = await signIn(api, key.text);
  assert.equal(answer.status, 201);
  const set = String(answer.headers['set-cookie']);
  const { port } = new URL(api.server.url!);
  assert.match(
    set,
    new RegExp(`^porthole-${port}=[A-Za-z0-9_-]{43}; Max-Age=604800; Path=/; HttpOnly; SameSite=Strict$`),
  );
  const cookie = cookieOf(answer);
  const who = await ask(api, cookie, { path: '/v1/session' });
  assert.deepEqual([who.json['role'], who.json['key']], ['operator', key.id]);
  assert.equal((await ask(api, cookie, { path: '/v1/vms' })).status, 200);
  const made = { method: 'POST', path: '/v1/vms', body: { name: 'web', kind: 'attached' } };
  assert.equal((await ask(api, cookie, made)).status, 202);
  assert.equal(outcome(await ask(api, cookie, { path: '/v1/keys' })), '403 FORBIDDEN');
  const id = cookie.split('=')[1]!;
  const { entries } = await api.stores.region.range({ start: 'session/', end: 'session0' });
  assert.equal(entries.length, 1);
  const kept = entries.map(({ key, value }) => Buffer.concat([key, value]).toString('latin1')).join();
  assert.ok(!kept.includes(id) && !kept.includes(key.text.slice(-43)));
  await until('the log', () => api.logged.length >= 5);
  assert.ok(!JSON.stringify(api.logged).includes(id));
  assert.equal(outcome(await signIn(api, `ph_${'0'.repeat(16)}_${'A'.repeat(43)}`)), '401 BAD_KEY');
});

test('a session is good only for requests that its own page makes', async (t) => {
  const { api, cookie } = await signedIn(t);
  const own = api.server.url!;
  const refused = '403 BAD_ORIGIN';
  const none = undefined as unknown as string;
  const sent = async (request: HttpRequest, headers: Record<string, string>): Promise<string> => {
    const all = { cookie, origin: own, 'sec-fetch-site': 'same-origin', 'porthole-console': '1', ...headers };
    const given = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
    return outcome(await api.ask({ ...request, url: own, headers: given }));
  };
  const change = { method: 'POST', path: '/v1/vm-actions', body: { action: 'stop', selector: { all: true } } };
  const read = { path: '/v1/vms' };
  const stream = { path: '/v1/events' };
  assert.equal(await sent(change, {}), '202');
  assert.equal(await sent(change, { 'sec-fetch-site': none }), '202', 'a browser that does not say where it asks from');
  assert.equal(await sent(read, { origin: none }), '200', 'browsers send no Origin with what changes nothing');
  for (const request of [change, read, stream]) {
    assert.equal(await sent(request, { origin: 'https://evil.example' }), refused);
    assert.equal(await sent(request, { origin: 'null' }), refused);
    assert.equal(await sent(request, { origin: own.replace(/\d+$/, '1') }), refused, 'another port');
    assert.equal(await sent(request, { 'sec-fetch-site': 'same-site' }), refused);
    assert.equal(await sent(request, { 'sec-fetch-site': 'cross-site' }), refused);
    assert.equal(await sent(request, { 'sec-fetch-site': 'none' }), refused, 'typed into the address bar');
    assert.equal(await sent(request, { 'porthole-console': none }), refused);
    assert.equal(await sent(request, { origin: none, 'sec-fetch-site': none }), refused);
  }
  assert.equal(await sent(change, { origin: none }), refused);
  const elsewhere = { 'porthole-region': 'eu', 'porthole-console': none };
  assert.equal(await sent(read, elsewhere), refused, 'nor does it go on to another region');
});

test('a page that may use the API with a key may not use a session', async (t) => {
  const origin = 'https://console.example';
  const { api, cookie } = await signedIn(t, { listen: { ...tcp.listen, origins: [origin] } });
  assert.equal(outcome(await ask(api, cookie, { path: '/v1/vms', headers: { origin } })), '403 BAD_ORIGIN');
});

test('a session ends when it is signed out, and its streams with it', async (t) => {
  const { api, cookie } = await signedIn(t);
  const headers = { cookie, 'sec-fetch-site': 'same-origin', 'porthole-console': '1' };
  const told = readEvents(api, { path: '/v1/events', url: api.server.url, headers }, 100);
  await until('the stream', async () => (await api.ask({ path: '/metrics' })).text.includes('porthole_api_streams 1'));
  const out = await ask(api, cookie, { method: 'DELETE', path: '/v1/session' });
  assert.match(String(out.headers['set-cookie']), /^porthole-\d+=; Max-Age=0; Path=\/; HttpOnly; SameSite=Strict$/);
  assert.equal((await told).at(-1)?.data['code'] as unknown, 'BAD_KEY');
  const after = await ask(api, cookie, { path: '/v1/vms' });
  assert.equal(outcome(after), '401 BAD_KEY');
  assert.match(String(after.headers['set-cookie']), /Max-Age=0/);
});

test('a session ends with its key', async (t) => {
  const { api, key, cookie } = await signedIn(t);
  assert.equal((await ask(api, cookie, { path: '/v1/vms' })).status, 200);
  await api.ask({ method: 'DELETE', path: `/v1/keys/${key.id}` });
  assert.equal(outcome(await ask(api, cookie, { path: '/v1/vms' })), '401 BAD_KEY');
});

test('a session ends after 12 hours without use, which each use puts off, and after 7 days', async (t) => {
  let aheadMs = 0;
  const { api, cookie } = await signedIn(t, { ...tcp, manager: { wallMs: () => Date.now() + aheadMs } });
  const statusAfter = async (hours: number): Promise<number> => {
    aheadMs += hours * hourMs;
    return (await ask(api, cookie, { path: '/v1/session' })).status;
  };
  for (let hours = 0; hours < 150; hours += 10) assert.equal(await statusAfter(10), 200, `after ${hours + 10} h`);
  // 150 h are over: with 10 more each, 168 h are the end.
  assert.equal(await statusAfter(10), 200);
  assert.equal(await statusAfter(10), 401);
  aheadMs = 0;
  const other = await signedIn(t, { ...tcp, manager: { wallMs: () => Date.now() + aheadMs } });
  aheadMs = 13 * hourMs;
  assert.equal(outcome(await ask(other.api, other.cookie, { path: '/v1/session' })), '401 BAD_KEY');
});

test('a session is known to every manager of its region, outlives restarts, and ends at all of them', async (t) => {
  const { api, cookie } = await signedIn(t);
  const another = await startApi(t, { ...tcp, stores: api.stores, obeys: false });
  // The browser has the cookie of a name that all of them share.
  const host = new URL(api.server.url!).host;
  const there = (request: HttpRequest): Promise<HttpAnswer> =>
    ask(another, cookie, { ...request, headers: { host, origin: `http://${host}`, ...request.headers } });
  assert.equal((await there({ path: '/v1/session' })).status, 200);
  await another.restart();
  assert.equal((await there({ path: '/v1/session' })).status, 200);
  assert.equal((await ask(api, cookie, { method: 'DELETE', path: '/v1/session' })).status, 204);
  await until('its end there', async () => (await there({ path: '/v1/session' })).status === 401);
});

test('a session of another region is none here', async (t) => {
  const { api, cookie } = await signedIn(t);
  const eu = await startApi(t, { ...tcp, manager: { regionName: 'eu', global: api.stores.global } });
  const host = new URL(api.server.url!).host;
  const headers = { host, origin: `http://${host}` };
  assert.equal(outcome(await ask(eu, cookie, { path: '/v1/session', headers })), '401 BAD_KEY');
});

test('whoever guesses sessions is held up as with keys, and who has one is not', async (t) => {
  const { api, cookie } = await signedIn(t);
  const name = cookie.split('=')[0]!;
  const guess = () => ask(api, `${name}=${'A'.repeat(43)}`, { path: '/v1/session' });
  await until('guesses to be held up', async () => {
    const answers = await Promise.all(Array.from({ length: 40 }, guess));
    for (const { status } of answers) assert.ok(status === 401 || status === 429, String(status));
    return answers.some(({ status }) => status === 429);
  });
  assert.equal((await ask(api, cookie, { path: '/v1/session' })).status, 200);
});

test('followEvents tells what there is, then every change, and goes on after a break', async (t) => {
  const { api, cookie } = await signedIn(t);
  const made = (name: string) => api.ask({ method: 'POST', path: '/v1/vms', body: { name, kind: 'attached' } });
  await made('web-1');
  await until('the VM', () => api.host.vms.has('web-1'));
  const headers = { cookie, 'sec-fetch-site': 'same-origin', 'porthole-console': '1' };
  const read = (more: Record<string, string>, count: number) =>
    readEvents(api, { path: '/v1/events', url: api.server.url, headers: { ...headers, ...more } }, count);
  const namesOf = (list: unknown): string[] => (list as { name: string }[]).map(({ name }) => name);
  const first = await until('it to be quiet', async () => {
    const events = await read({}, 3);
    return events.at(-1)?.event === 'ready' ? events : undefined;
  });
  assert.deepEqual(
    first.map(({ event }) => event),
    ['begin', 'entries', 'ready'],
  );
  assert.deepEqual(namesOf(first[1]!.data['vms']), ['web-1']);
  await made('web-2');
  const id = first[2]!.id!;
  const goneOn = await read({ 'last-event-id': id }, 1);
  assert.equal(goneOn[0]!.event, 'changes');
  assert.ok(namesOf(goneOn[0]!.data['vms']).includes('web-2'));
  await api.ask({ method: 'DELETE', path: '/v1/vms/web-1' });
  await until('its end', async () => (await api.ask({ path: '/v1/vms/web-1' })).status === 404);
  using client = new Client({ socketPath: api.socketPath });
  for await (const { data } of client.events('followEvents', { lastEventId: id, signal: t.signal }))
    if ((data as { readonly gone?: readonly string[] }).gone?.includes('web-1')) break;
  // To another account it has never been there.
  await api.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'other' } });
  const { json } = await api.ask({
    method: 'POST',
    path: '/v1/keys',
    body: { name: 'k', role: 'viewer', account: 'other' },
  });
  const key = String(json['text']);
  const theirs = await readEvents(api, { path: '/v1/events', url: api.server.url, key }, 2);
  assert.deepEqual(
    theirs.map(({ event }) => event),
    ['begin', 'ready'],
  );
  await until('a wrong id to be refused', async () => {
    const answer = await api.ask({ path: '/v1/events', headers: { 'last-event-id': 'x' } });
    return outcome(answer) === '400 BAD_REQUEST';
  });
});

test('the files of the console come compressed, with a policy, and are told apart by their digests', async (t) => {
  const file = (path: string, type: string, text: string) => ({
    path,
    type,
    digest: 'd1',
    br: brotliCompressSync(text).toString('base64'),
    gzip: gzipSync(text).toString('base64'),
  });
  const site = readSite({
    files: [
      file('/index.html', 'text/html; charset=utf-8', '<p>page'),
      file('/assets/a-1.js', 'text/javascript', 'let a;'),
    ],
  });
  const api = await startApi(t, { listen: { ...tcp.listen, site } });
  const get = (path: string, headers: Record<string, string> = {}) => http({ path, url: api.server.url, headers });
  const page = await get('/');
  assert.deepEqual([page.status, page.text], [200, '<p>page']);
  const policy = String(page.headers['content-security-policy']);
  assert.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'/);
  assert.match(policy, /base-uri 'none'; form-action 'self'; frame-ancestors 'none'$/);
  assert.ok(!policy.includes('unsafe'));
  assert.deepEqual(
    ['x-content-type-options', 'referrer-policy', 'cross-origin-opener-policy', 'cache-control'].map(
      (name) => page.headers[name],
    ),
    ['nosniff', 'no-referrer', 'same-origin', 'no-cache'],
  );
  const script = await get('/assets/a-1.js', { 'accept-encoding': 'gzip, br' });
  assert.deepEqual([script.headers['content-encoding'], script.headers['etag']], ['br', '"d1-br"']);
  assert.match(String(script.headers['cache-control']), /immutable/);
  const gzipped = await get('/assets/a-1.js', { 'accept-encoding': 'gzip, br;q=0' });
  assert.equal(gzipped.headers['content-encoding'], 'gzip');
  assert.equal((await get('/assets/a-1.js', { 'accept-encoding': 'br', 'if-none-match': '"d1-br"' })).status, 304);
  assert.equal((await get('/vms/web-1', { accept: 'text/html' })).text, '<p>page', 'a page that is loaded anew');
  assert.equal((await get('/assets/none.js')).status, 404);
  assert.equal((await get('/v1/none', { accept: 'text/html' })).status, 404);
  assert.equal(
    (await get('/docs')).headers['content-security-policy'],
    String((await get('/v1/self')).headers['content-security-policy']),
  );
});
