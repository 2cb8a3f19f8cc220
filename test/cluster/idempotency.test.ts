import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Manager } from '../../src/cluster/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { HostRefusal, keysOf } from './host-on-authority.ts';
import type { HttpAnswer } from './http.ts';

const withVm = async (api: TestApi): Promise<void> => {
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', kind: 'attached' } });
  await until('the VM', () => api.host.vms.has('web-1'));
};

const create = (api: TestApi, name: string, key: string): Promise<HttpAnswer> =>
  api.ask({
    method: 'POST',
    path: '/v1/vms',
    body: { name, kind: 'attached' },
    headers: { 'idempotency-key': key },
  });

test('concurrent repeats of a request have one effect and one answer', async (t) => {
  const api = await startApi(t, { obeys: false });
  const answers = await Promise.all(Array.from({ length: 24 }, () => create(api, 'web-1', 'k')));
  assert.deepEqual(new Set(answers.map(({ status, text }) => `${status} ${text}`)).size, 1);
  assert.equal(answers[0]!.status, 202);
  assert.equal((await keysOf(api.stores.region)).filter((key) => key.startsWith('operation/')).length, 1);
  await api.restart();
  const later = await create(api, 'web-1', 'k');
  assert.equal(later.text, answers[0]!.text);
  assert.equal(later.headers['idempotent-replay'], 'true');
  assert.equal((await create(api, 'web-2', 'k')).json['code'] as unknown, 'IDEMPOTENCY_MISMATCH');
  assert.equal((await create(api, 'web-1', 'other')).json['code'] as unknown, 'NAME_TAKEN');
});

test('repeats at two managers at once have one effect', async (t) => {
  const api = await startApi(t, { obeys: false });
  const { region, global } = api.stores;
  await using other = await Manager.open({ region, global, host: api.host, log: api.manager.kit.log });
  for (let round = 0; round < 20; round++) {
    const wish = {
      name: `vm-${round}`,
      kind: 'attached',
      type: undefined,
      image: undefined,
      diskBytes: undefined,
      network: { mode: 'none' },
      labels: {},
      restart: 'never',
      start: false,
      stopGraceSeconds: 1,
      spec: undefined,
    } as const;
    const bodies = await Promise.all(
      [api.manager, other].map((manager) =>
        manager.idempotency.run({ account: 'default', key: `k${round}`, hash: 'h' }, (commit) =>
          manager.vms.create('default', wish, commit, ({ record }) => ({ status: 202, headers: {}, body: record.id })),
        ),
      ),
    );
    assert.equal(bodies[0]!.body, bodies[1]!.body);
  }
  assert.equal((await keysOf(region)).filter((key) => key.startsWith('vm/')).length, 20);
});

test('a refused request leaves its key free, and may be repeated when it can be done', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const put = (headers: Record<string, string>) =>
    api.ask({
      method: 'PUT',
      path: '/v1/vms/web-1/metadata/a',
      body: 'x',
      headers: { 'idempotency-key': 'k', ...headers },
    });
  const { tree } = api.host.vms.get('web-1')!;
  tree.beforeEdit = async () => {
    throw new HostRefusal('HOST_FULL', 'the disk is full');
  };
  assert.equal((await put({})).status, 507);
  tree.beforeEdit = async () => {};
  assert.equal((await put({})).status, 200);
  assert.equal((await put({})).headers['idempotent-replay'], 'true');
});

test('a write under a condition that is repeated after a crash is answered as done', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const { tree } = api.host.vms.get('web-1')!;
  const path = '/v1/vms/web-1/metadata/a';
  const first = await api.ask({ method: 'PUT', path, body: '1' });
  const write = () =>
    api.ask({
      method: 'PUT',
      path,
      body: '2',
      headers: { 'idempotency-key': 'k', 'if-match': String(first.headers['etag']) },
    });
  // The edit is committed, and its answer never comes: the manager ends before it could keep one.
  const committed = Promise.withResolvers<void>();
  const never = Promise.withResolvers<void>();
  tree.afterEdit = () => {
    committed.resolve();
    return never.promise;
  };
  const lost = write().catch(() => undefined);
  await committed.promise;
  await api.restart();
  tree.afterEdit = async () => {};
  const again = await write();
  assert.equal(again.status, 200, again.text);
  assert.equal((await api.ask({ path })).text, '2');
  assert.equal(again.headers['etag'], (await api.ask({ path })).headers['etag']);
  never.resolve();
  assert.equal(await lost, undefined);
  assert.equal((await write()).text, again.text);
  // One that somebody else wrote over in between is not taken for done.
  const key = { 'idempotency-key': 'l', 'if-match': String(again.headers['etag']) };
  await api.ask({ method: 'PUT', path, body: '3' });
  assert.equal((await api.ask({ method: 'PUT', path, body: '4', headers: key })).status, 412);
});

test('racing writes under one condition: one wins', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const path = '/v1/vms/web-1/metadata/a';
  let { headers } = await api.ask({ method: 'PUT', path, body: 'first' });
  for (let round = 0; round < 5; round++) {
    const answers = await Promise.all(
      Array.from({ length: 8 }, (_, i) =>
        api.ask({ method: 'PUT', path, body: `${round} ${i}`, headers: { 'if-match': String(headers['etag']) } }),
      ),
    );
    const won = answers.filter(({ status }) => status === 200);
    assert.deepEqual([won.length, answers.filter(({ status }) => status === 412).length], [1, 7]);
    ({ headers } = won[0]!);
  }
});

test('replicas that lag are named', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const { tree } = api.host.vms.get('web-1')!;
  const put = () => api.ask({ method: 'PUT', path: '/v1/vms/web-1/metadata/a', body: 'x' });
  assert.deepEqual((await put()).json['notApplied'] as unknown, []);
  tree.lagging.add('device-7');
  assert.deepEqual((await put()).json['notApplied'] as unknown, ['device-7']);
});

test('a removal that is repeated because its answer was lost is answered as the first', async (t) => {
  const api = await startApi(t);
  await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
  await until('the image', async () => (await api.ask({ path: '/v1/images/tiny/1' })).status === 200);
  const { json } = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: 'k', role: 'viewer' } });
  for (const path of ['/v1/images/tiny/1', `/v1/keys/${String(json['key']!['id'])}`]) {
    const remove = (key: string) => api.ask({ method: 'DELETE', path, headers: { 'idempotency-key': key } });
    assert.equal((await remove(`k${path.length}`)).status, 204);
    await api.restart();
    const again = await remove(`k${path.length}`);
    assert.deepEqual([again.status, again.headers['idempotent-replay']], [204, 'true'], again.text);
    assert.equal((await remove('other')).status, 404);
  }
});
