/** Two regions with a store each, one global store, a manager in each: either of them answers for both. */
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { keyText, prefixRange, type Store, StoreError } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { http, readEvents } from './http.ts';

const tcp = { listen: { tcp: { host: '127.0.0.1', port: 0 } } } as const;
const inEu = { 'porthole-region': 'eu' };

const states = async (api: TestApi, path: string): Promise<string> => {
  let state = '';
  await until('the end', async () => {
    state = String((await api.ask({ path, headers: inEu })).json['state']);
    return state !== 'pending' && state !== 'running';
  });
  return state;
};

test('a manager answers for other regions, and says so when one does not answer', async (t) => {
  const here = await startApi(t, tcp);
  const there = await startApi(t, { ...tcp, manager: { regionName: 'eu', global: here.stores.global } });
  const region = { addresses: ['http://127.0.0.1:1', there.server.url!] };
  const open = { method: 'PUT', path: '/v1/regions/eu', body: { addresses: ['http://eu.example:8443'] } };
  assert.equal((await here.ask(open)).status, 400, 'nothing is said where others can listen');
  await here.ask({ method: 'PUT', path: '/v1/regions/eu', body: region });
  const vm = {
    name: 'web',
    kind: 'attached',
    count: 3,
    spec: 'porthole: 1\nmetadata: { instance: { where: "{{region}}" } }\n',
  };
  const made = await here.ask({ method: 'POST', path: '/v1/vms', body: vm, headers: inEu });
  assert.equal(made.status, 202, made.text);
  assert.equal(await states(here, String(made.headers['location'])), 'succeeded');
  await until('the VMs', () => there.host.vms.size === 3);
  const where = `/v1/vms/web-2/metadata/instance/where`;
  assert.equal((await here.ask({ path: where, headers: inEu })).text, 'eu');
  assert.equal((await here.ask({ path: where })).status, 404);
  const set = { method: 'PUT', path: '/v1/vms/web-2/metadata/a', body: 'x'.repeat(100_000), headers: inEu };
  assert.equal((await here.ask(set)).status, 200);
  assert.equal((await there.ask({ path: '/v1/vms/web-2/metadata/a' })).bytes.length, 100_000);
  assert.equal((await here.ask({ method: 'HEAD', path: '/v1/vms/web-2/metadata/a', headers: inEu })).status, 200);
  const events = await readEvents(here, { path: '/v1/vms/web-2/changes?from=1.1', headers: inEu }, 2);
  assert.equal(events.length, 2);
  await until('the counts', async () => (await here.ask({ path: '/v1/counts' })).text.includes('"region":"eu"'));

  // Who asks is who is asked for there: role, account and VMs of the key.
  const keyed = async (body: object): Promise<string> =>
    String((await here.ask({ method: 'POST', path: '/v1/keys', body: { name: 'k', ...body } })).json['text']);
  const url = here.server.url!;
  const code = async (key: string | undefined, method: string, path: string): Promise<string> => {
    const { status, json } = await http({ method, path, url, headers: inEu, ...(key !== undefined && { key }) });
    return `${status} ${json?.['code'] ?? ''}`;
  };
  const viewer = await keyed({ role: 'viewer' });
  const scoped = await keyed({ role: 'operator', vms: { names: ['web-1'] } });
  assert.equal(await code(viewer, 'GET', '/v1/vms/web-1'), '200 ');
  assert.equal(await code(viewer, 'DELETE', '/v1/vms/web-1'), '403 FORBIDDEN');
  assert.equal(await code(scoped, 'GET', '/v1/vms/web-2'), '403 FORBIDDEN');
  assert.equal(await code(scoped, 'DELETE', '/v1/vms/web-1'), '202 ');
  assert.equal(await code(undefined, 'GET', '/v1/vms/web-1'), '401 NO_KEY');
  assert.equal((await here.ask({ path: '/v1/self', headers: { 'porthole-region': 'none' } })).status, 400);

  // An account of a region's is known in the other, and both have a say in its end.
  await here.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'team', quotas: { eu: { attached: 1 } } } });
  const team = await keyed({ role: 'operator', account: 'team' });
  const own = async (name: string): Promise<string> => {
    const body = { name, kind: 'attached' };
    const { status, json } = await http({ method: 'POST', path: '/v1/vms', url, key: team, headers: inEu, body });
    return `${status} ${json?.['code'] ?? ''}`;
  };
  await until('the account there', async () => (await own('team-1')) !== '404 NOT_FOUND');
  assert.equal(await own('team-2'), '409 QUOTA_EXCEEDED');
  const kept = await here.ask({ method: 'DELETE', path: '/v1/accounts/team' });
  assert.match(kept.text, /has 1 VMs in the region \\"eu\\"/);

  await there.server.close();
  const away = await here.ask({ path: '/v1/vms', headers: inEu });
  assert.deepEqual([away.status, away.json['code']], [503, 'UNAVAILABLE']);
  assert.match(String(away.json['detail']), /no manager of the region "eu" answers/);
  assert.equal(
    (await here.ask({ method: 'POST', path: '/v1/vms', body: { name: 'db', kind: 'attached' } })).status,
    202,
  );
});

test('what goes on to another region goes to its managers, whatever place the path names', async (t) => {
  const here = await startApi(t, tcp);
  const there = await startApi(t, { ...tcp, manager: { regionName: 'eu', global: here.stores.global } });
  await here.ask({ method: 'PUT', path: '/v1/regions/eu', body: { addresses: [there.server.url!] } });
  let came = 0;
  const elsewhere = createServer((_, response) => {
    came++;
    response.end('mine');
  });
  await once(elsewhere.listen(0, '127.0.0.1'), 'listening');
  t.after(() => elsewhere.close());
  const { port } = elsewhere.address() as AddressInfo;
  const { socketPath } = here;
  assert.equal((await http({ socketPath, path: '/v1/self', headers: inEu })).status, 200);
  assert.equal((await http({ socketPath, path: `//127.0.0.1:${port}/v1/self`, headers: inEu })).status, 404);
  assert.equal(came, 0);
});

test('whoever has the name of an account that is gone is told nothing of it', async (t) => {
  const api = await startApi(t, tcp);
  const account = async (): Promise<string> => {
    await api.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'team' } });
    const body = { name: 'k', role: 'admin', account: 'team' };
    return String((await api.ask({ method: 'POST', path: '/v1/keys', body })).json['text']);
  };
  const url = api.server.url!;
  const key = await account();
  const headers = { 'idempotency-key': 'first' };
  const make = { method: 'POST', path: '/v1/vms', url, headers, body: { name: 'web', kind: 'attached' } };
  assert.equal((await http({ ...make, key })).status, 202);
  await until('the VM', () => api.host.vms.has('web'));
  await http({ method: 'DELETE', path: '/v1/vms/web', url, key });
  await until('the VM to be gone', async () => (await http({ path: '/v1/vms/web', url, key })).status === 404);
  const gone = () => api.ask({ method: 'DELETE', path: '/v1/accounts/team' });
  await until('the account to be gone', async () => (await gone()).status === 204);
  const next = await account();
  assert.deepEqual((await http({ path: '/v1/operations', url, key: next })).json['operations'], []);
  const again = await http({ ...make, key: next });
  assert.equal(again.headers['idempotent-replay'], undefined, 'it is a request of its own');
});

/** A store that can be cut off from whoever asks it. */
const severable = (store: Store): { readonly store: Store; cut(): void; heal(): void } => {
  let line = new AbortController();
  const severed = new Proxy(store, {
    get: (target, name: keyof Store) => {
      const member = target[name] as unknown;
      if (typeof member !== 'function') return member;
      if (name === 'watch')
        return (...[range, { signal, ...more }]: Parameters<Store['watch']>) =>
          target.watch(range, { ...more, signal: AbortSignal.any([line.signal, ...(signal ? [signal] : [])]) });
      return async (...args: unknown[]): Promise<unknown> => {
        line.signal.throwIfAborted();
        return member.apply(target, args) as unknown;
      };
    },
  });
  return {
    store: severed,
    cut: () => line.abort(new StoreError('STORE_UNAVAILABLE', 'the line is cut')),
    heal: () => {
      line = new AbortController();
    },
  };
};

test('a region that is cut off goes on with its keys and revokes them, and all agree when it is back', async (t) => {
  const here = await startApi(t, tcp);
  const line = severable(here.stores.global);
  t.after(line.heal);
  const there = await startApi(t, { ...tcp, manager: { regionName: 'eu', global: line.store } });
  const made = async (name: string): Promise<{ readonly id: string; readonly key: string }> => {
    const { json } = await here.ask({ method: 'POST', path: '/v1/keys', body: { name, role: 'admin' } });
    return { id: String(json['key']!['id']), key: String(json['text']) };
  };
  const listed = async (api: TestApi): Promise<unknown[]> => {
    const { json } = await api.ask({ path: '/v1/keys' });
    return (json['keys'] as unknown as { readonly name: string }[]).map(({ name }) => name).toSorted();
  };
  const statusOf = async (api: TestApi, key: string, path = '/v1/self', method = 'GET'): Promise<number> =>
    (await api.ask({ method, path, url: api.server.url!, key })).status;
  const kept = await made('kept');
  const revokedHere = await made('revoked here');
  const revokedThere = await made('revoked there');
  await until('the keys there', () =>
    [kept, revokedHere, revokedThere].every(({ key }) => there.manager.keys.check(key) !== undefined),
  );
  await there.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web', kind: 'attached' } });
  await until('the VM', () => there.host.vms.has('web'));
  await there.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', version: '1', recipe: 'tiny' } });
  await until('the image', async () => (await there.stores.region.get('regionimage/tiny/1')) !== undefined);

  line.cut();
  await until('word of it', () => there.logged.some(({ prefix }) => prefix === 'key/'));
  const real = performance.now.bind(performance);
  t.mock.method(performance, 'now', () => real() + 3_600_000);
  assert.equal(await statusOf(there, kept.key), 200);
  const set = { method: 'PUT', path: '/v1/vms/web/metadata/a', url: there.server.url!, key: kept.key, body: 'x' };
  assert.equal((await there.ask(set)).status, 200);
  const more = await there.ask({ method: 'POST', path: '/v1/keys', body: { name: 'more', role: 'viewer' } });
  assert.equal(more.status, 503, more.text);
  assert.match(String(more.json['detail']), /^the global store, .* gives no answer/);
  const newest = { name: 'new', type: 'nano', image: { name: 'tiny' } };
  const created = await there.ask({ method: 'POST', path: '/v1/vms', body: newest });
  assert.equal(created.status, 202, created.text);
  assert.equal((await there.ask({ path: '/healthz' })).status, 200);

  assert.equal(await statusOf(there, kept.key, `/v1/keys/${revokedThere.id}`, 'DELETE'), 204);
  assert.equal(await statusOf(there, revokedThere.key), 401);
  assert.equal(await statusOf(here, revokedThere.key), 200);
  assert.equal(await statusOf(here, kept.key, `/v1/keys/${revokedHere.id}`, 'DELETE'), 204);
  assert.equal(await statusOf(here, revokedHere.key), 401);
  assert.equal(await statusOf(there, revokedHere.key), 200);

  line.heal();
  for (const api of [here, there]) {
    await until('agreement', async () => (await listed(api)).length === 1);
    assert.deepEqual(await listed(api), ['kept']);
  }
  for (const api of [here, there]) {
    assert.equal(await statusOf(api, kept.key), 200);
    for (const { key } of [revokedHere, revokedThere])
      await until('its end', async () => (await statusOf(api, key)) === 401);
  }
});

test('nobody but a manager can say who asks', async (t) => {
  const api = await startApi(t, tcp);
  const { value } = (await api.stores.global.get('peersecret'))!;
  const claim = { region: 'local', expiresAtMs: Date.now() + 30_000, account: 'default', role: 'admin' };
  const signed = (of: object, secret: Uint8Array = value): string => {
    const text = Buffer.from(JSON.stringify(of)).toString('base64url');
    return `Peer ${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`;
  };
  const status = async (authorization: string): Promise<number> =>
    (await api.ask({ path: '/v1/self', url: api.server.url, headers: { authorization } })).status;
  assert.equal(await status(signed(claim)), 200);
  const [head, signature] = signed(claim).split('.');
  for (const wrong of [
    signed(claim, new Uint8Array(32)),
    signed({ ...claim, region: 'eu' }),
    signed({ ...claim, expiresAtMs: Date.now() - 1 }),
    signed({ ...claim, expiresAtMs: Date.now() + 3_600_000 }),
    signed({ ...claim, role: 'root' }),
    signed({ ...claim, more: true }),
    `${head}.${'A'.repeat(43)}`,
    `${head!.slice(0, -2)}.${signature}`,
    'Peer ',
    'Peer x.y',
  ])
    assert.equal(await status(wrong), 401, wrong);
});

test('counts and images are what the region has after one of the stores was restored', async (t) => {
  const api = await startApi(t);
  const { region, global } = api.stores;
  await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', version: '1', recipe: 'tiny' } });
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web', kind: 'attached', count: 100 } });
  const counts = async (): Promise<string> => (await api.ask({ path: '/v1/counts' })).text;
  await until('the counts', async () => (await counts()).includes('"count":100'));
  await until('the image', async () => (await global.get('image/tiny/1')) !== undefined);
  const all = async (): Promise<string[]> =>
    (await global.range(prefixRange('index/vm/'))).entries.map(({ key }) => keyText(key));
  const [right, image] = [await all(), await global.get('image/tiny/1')];

  // As of a snapshot: without what came since, and with what went.
  const gone = right.slice(10);
  await global.commit({ operations: gone.map((key) => ({ type: 'delete', key })) });
  const stale = { name: 'stale', regions: ['local'] };
  const record = { ...JSON.parse(Buffer.from(image!.value).toString()), ...stale } as object;
  await global.commit({
    operations: [
      { type: 'delete', key: 'image/tiny/1' },
      { type: 'put', key: 'image/stale/1', value: Buffer.from(JSON.stringify(record)) },
      { type: 'put', key: right[0]!.replace('web', 'old'), value: Buffer.from('{"name":"old"}') },
    ],
  });
  const read = JSON.parse(Buffer.from((await global.get('outboxread/local'))!.value).toString()) as object;
  const before = Buffer.from(JSON.stringify({ ...read, globalEpoch: global.epoch - 1 }));
  await global.commit({ operations: [{ type: 'put', key: 'outboxread/local', value: before }] });
  await api.restart();
  await until('the counts to be right', async () => (await counts()).includes('"count":100'));
  assert.deepEqual(await all(), right);
  assert.deepEqual((await api.ask({ path: '/v1/images/tiny/1' })).json['regions'] as unknown, ['local']);
  assert.equal((await api.ask({ path: '/v1/images/stale/1' })).status, 404);
  assert.equal(await region.get('regionimage/stale/1'), undefined);
});
