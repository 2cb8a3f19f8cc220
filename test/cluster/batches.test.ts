/** Requests about many VMs: one operation, which ends once, whoever sees to it dies between which commits. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { put } from '../../src/cluster/kit.ts';
import type { Store } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { asked, completesOnceTest, ended, withImage } from './batches.ts';
import { inSqlite } from './connections.ts';
import { keysOf } from './host-on-authority.ts';
import { anywhere } from './hosts.ts';
import type { Json } from './http.ts';

const many = { name: 'web', type: 'nano', image: { name: 'tiny' }, labels: { app: 'web' }, count: 12 };

const listed = async (api: TestApi, query = ''): Promise<readonly { name: string; status: string }[]> =>
  (await api.ask({ path: `/v1/vms?limit=500${query}` })).json['vms'] as unknown as { name: string; status: string }[];

test('many VMs are made, stopped, started and deleted by one operation each', async (t) => {
  const api = await withImage(t);
  const spec =
    'porthole: 1\nmetadata: { instance: { hostname: "{{name}}", n: "{{index}} {{other}}", region: "{{region}}" } }\n';
  const made = await ended(api, await asked(api, '/v1/vms', { ...many, firstIndex: 5, spec }));
  assert.deepEqual(
    [made['kind'], made['state'], made['done'], made['total'], made['failed']],
    ['vms.create', 'succeeded', 12, 12, 0],
  );
  const vms = await listed(api);
  assert.deepEqual(
    vms.map(({ name, status }) => `${name} ${status}`).toSorted(),
    Array.from({ length: 12 }, (_, i) => `web-${i + 5} running`).toSorted(),
  );
  const value = async (name: string): Promise<string> =>
    (await api.ask({ path: `/v1/vms/web-7/metadata/instance/${name}` })).text;
  assert.deepEqual(
    [await value('hostname'), await value('n'), await value('region')],
    ['web-7', '7 {{other}}', 'local'],
  );
  const items = (await api.ask({ path: `/v1/operations/${String(made['id'])}/vms?limit=5` })).json;
  assert.equal((items['vms'] as unknown as unknown[]).length, 5);
  const rest = await api.ask({ path: `/v1/operations/${String(made['id'])}/vms?cursor=${String(items['next'])}` });
  const all = [...(items['vms'] as unknown as Json[]), ...(rest.json['vms'] as unknown as Json[])];
  assert.deepEqual(
    all.map(({ state }) => state),
    Array.from({ length: 12 }, () => 'done'),
  );

  await api.ask({ method: 'POST', path: '/v1/vms', body: { ...many, count: undefined, name: 'db', labels: {} } });
  await until('db', async () => (await listed(api, '&status=running')).length === 13);
  const stop = { action: 'stop', selector: { labels: ['app=web'] }, graceSeconds: 0 };
  assert.equal((await ended(api, await asked(api, '/v1/vm-actions', stop)))['done'], 12);
  assert.deepEqual(
    (await listed(api, '&status=running')).map(({ name }) => name),
    ['db'],
  );
  const start = { action: 'start', selector: { prefix: 'web-', names: ['web-5', 'web-6', 'db'] } };
  assert.equal((await ended(api, await asked(api, '/v1/vm-actions', start)))['done'], 2);
  assert.equal((await listed(api, '&status=running')).length, 3);
  const none = { action: 'stop', selector: { names: ['none'] } };
  const nothing = await ended(api, await asked(api, '/v1/vm-actions', none));
  assert.deepEqual([nothing['state'], nothing['total']], ['succeeded', 0]);
  await ended(api, await asked(api, '/v1/vm-actions', { action: 'delete', selector: { all: true } }));
  assert.deepEqual(await listed(api), []);
  const left = (await keysOf(api.stores.region)).filter((key) => /^(batch|batchrun|opening|slot|hostvm)\//.test(key));
  assert.deepEqual(left, []);
});

test('an operation on many tells which VMs failed and why, and makes the others', async (t) => {
  const api = await withImage(t);
  await api.ask({ method: 'PUT', path: '/v1/accounts/default/quotas', body: { local: { nano: 5 } } });
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-3', kind: 'attached' } });
  const operation = await ended(api, await asked(api, '/v1/vms', { ...many, count: 8 }));
  assert.deepEqual([operation['state'], operation['failed'], operation['done']], ['failed', 3, 8]);
  assert.match(
    String(operation['error']!['detail']),
    /^3 of 8 VMs failed: web-3: there is a VM "web-3" already; .*web-\d: the account "default" may have 5/,
  );
  const items = await api.ask({ path: `/v1/operations/${String(operation['id'])}/vms` });
  const failed = (items.json['vms'] as unknown as { state: string; error?: { code: string } }[]).filter(
    ({ state }) => state === 'failed',
  );
  assert.deepEqual(failed.map(({ error }) => error!.code).toSorted(), [
    'NAME_TAKEN',
    'QUOTA_EXCEEDED',
    'QUOTA_EXCEEDED',
  ]);
});

test('what a cancelled operation has not asked for yet is never asked for', async (t) => {
  const api = await startApi(t, { obeys: false });
  const selector = { name: 'many', kind: 'attached', count: 200 };
  const path = await asked(api, '/v1/vms', selector);
  await until('the first', async () => (await listed(api)).length > 0);
  assert.equal((await api.ask({ method: 'POST', path: `${path}/cancel` })).status, 202);
  // Those that were asked for get there.
  const stop = new AbortController();
  const obeying = api.host.obey(api.stores.region, stop.signal);
  const operation = await ended(api, path);
  stop.abort();
  await obeying;
  assert.equal(operation['done'], 200);
  const items = await api.ask({ path: `${path}/vms?limit=500` });
  const count = (state: string): number =>
    (items.json['vms'] as unknown as { state: string }[]).filter((item) => item.state === state).length;
  assert.equal(count('cancelled') + count('done'), 200);
  assert.equal((await listed(api)).length, count('done'));
  assert.equal(operation['state'], count('cancelled') > 0 ? 'cancelled' : 'succeeded');
  assert.equal((await api.ask({ method: 'POST', path: `${path}/cancel` })).status, 409);
});

test('an account has so many requests open at once, over many VMs and over one', async (t) => {
  const api = await startApi(t, { obeys: false });
  const begin = async (name: string): Promise<number> =>
    (await api.ask({ method: 'POST', path: '/v1/vms', body: { name, kind: 'attached', count: 1 } })).status;
  const begun = await Promise.all(Array.from({ length: 36 }, (_, n) => begin(`many-${n}`)));
  assert.equal(begun.filter((status) => status === 202).length, 32);
  const refused = await api.ask({
    method: 'POST',
    path: '/v1/vm-actions',
    body: { action: 'stop', selector: { all: true } },
  });
  assert.equal(refused.json['code'], 'TOO_MANY_REQUESTS');
  assert.match(String(refused.json['detail']), /"default" has 32 requests .* wait for one of them, or cancel one/);

  await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
  await until('the image', async () => (await api.ask({ path: '/v1/images/tiny/1' })).status === 200);
  await api.ask({ method: 'POST', path: '/v1/vms', body: { ...many, name: 'one', count: undefined } });
  const request = async (what: string): Promise<number> =>
    (await api.ask({ method: 'POST', path: `/v1/vms/one/${what}` })).status;
  for (let n = 1; n < 20; n++) assert.equal(await request('reboot'), 202);
  assert.equal(await request('stop'), 429);
  const remove = async (): Promise<number> => (await api.ask({ method: 'DELETE', path: '/v1/vms/one' })).status;
  assert.deepEqual([await remove(), await remove()], [202, 429]);

  const stop = new AbortController();
  const obeying = api.host.obey(api.stores.region, stop.signal);
  const open = async (): Promise<string[]> =>
    (await keysOf(api.stores.region)).filter((key) => /^(opening|vmoperation)\//.test(key));
  await until('all to have ended', async () => (await open()).length === 0);
  assert.equal(await begin('later'), 202);
  await until('that too', async () => (await open()).length === 0);
  stop.abort();
  await obeying;
});

completesOnceTest(inSqlite, 50);

const wishOf = { kind: 'attached', network: { mode: 'none' }, labels: {}, restart: 'never', start: false } as const;

test('what is too large, or a name that is none, is refused before it is begun, and else fails its own VM only', async (t) => {
  const regionName = 'a-region-of-a-long-name';
  const api = await startApi(t, { manager: { regionName } });
  const refused = async (body: object): Promise<string> => {
    const { status, json } = await api.ask({ method: 'POST', path: '/v1/vms', body: { kind: 'attached', ...body } });
    return `${status} ${String(json['code'])}`;
  };
  const spec = `porthole: 1\nmetadata: { a: "${'{{name}}'.repeat(30_000)}" }\n`;
  const name = 'n'.repeat(40);
  assert.equal(await refused({ name, count: 2, spec }), '413 TOO_LARGE');
  assert.equal(await refused({ name: `${name}-{{region}}`, count: 2 }), '400 BAD_REQUEST');
  assert.deepEqual(await listed(api), []);

  const { batches, kit } = api.manager;
  const commit = async (of: Parameters<Store['commit']>[0]) => (await kit.region.commit(of)).committed;
  const wish = {
    ...wishOf,
    name,
    type: undefined,
    image: undefined,
    diskBytes: undefined,
    stopGraceSeconds: 1,
    placement: anywhere,
  };
  let id = '';
  for (const large of [spec, undefined])
    await batches.create(
      'default',
      undefined,
      { wish: { ...wish, spec: large }, count: 2, firstIndex: 1 },
      commit,
      (of) => {
        ({ id } = of);
        return { status: 202, headers: {}, body: '' };
      },
    );
  assert.equal((await ended(api, `/v1/operations/${id}`))['state'], 'succeeded');
  const [failed] = (await api.ask({ path: '/v1/operations' })).json['operations'] as unknown as Json[];
  const operation = await ended(api, `/v1/operations/${String(failed!['id'])}`);
  assert.match(String(operation['error']!['detail']), /2 of 2 VMs failed: .*too large/);
});

test('a namesake that was made after the VMs were looked for is none of them', async (t) => {
  const api = await startApi(t, { obeys: false });
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'db', kind: 'attached' } });
  const { kit, operations } = api.manager;
  const { operation, operations: begun } = operations.begin({
    account: 'default',
    kind: 'vms.delete',
    target: { name: 'db' },
  });
  const select = { namePrefix: '', labels: [], isListed: true };
  const batch = { operation: operation.id, account: 'default', action: 'delete', select } as const;
  const item = { name: 'db', id: 'i-00000000000000000', state: 'waiting' };
  await kit.region.commit({
    operations: [...begun, put(`batchitem/${operation.id}/db`, item), put(`batch/${operation.id}`, batch)],
  });
  const { state, done, failed } = await ended(api, `/v1/operations/${operation.id}`);
  assert.deepEqual([state, done, failed], ['succeeded', 1, 0]);
  assert.equal((await listed(api)).length, 1);

  // A record that cannot be read takes nothing else down.
  await kit.region.commit({
    operations: [{ type: 'put', key: 'vm/other', value: new TextEncoder().encode('{"id":1}') }],
  });
  assert.equal((await listed(api)).length, 1);
  await api.restart();
  assert.equal((await listed(api)).length, 1);
});
