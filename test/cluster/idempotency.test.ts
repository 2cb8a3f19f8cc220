import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Manager } from '../../src/cluster/index.ts';
import { HostRefusal } from '../../src/host/host-error.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { keysOf } from './host-on-authority.ts';
import { addHost, anywhere, imageElsewhere } from './hosts.ts';
import type { HttpAnswer, HttpRequest } from './http.ts';

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
  await using other = await Manager.open({
    region,
    global,
    host: api.host,
    images: api.host,
    log: api.manager.kit.log,
  });
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
      placement: anywhere,
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

/** What changes nothing although it is asked for by POST, and what a repeat can't do twice: its offset is not where the file ends. A repeated sign-in makes another session, which ends by itself. */
const repeatable = new Set([
  'createBackup',
  'resumeUpload',
  'createSession',
  'endSession',
  'previewView',
  'previewPolicy',
]);

test('every operation that changes something takes an Idempotency-Key, and its repeat changes nothing', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const image = async (name: string): Promise<void> => {
    await api.ask({ method: 'POST', path: '/v1/images', body: { name, recipe: 'tiny' } });
    await until('the image', async () => (await api.ask({ path: `/v1/images/${name}/1` })).status === 200);
  };
  await image('tiny');
  await image('spare');
  const ours = { name: 'ours', type: 'nano', image: { name: 'tiny' } };
  await api.ask({ method: 'POST', path: '/v1/vms', body: ours });
  await until('a VM of ours', () => api.host.vms.has('ours'));
  await api.ask({ method: 'PUT', path: '/v1/vms/web-1/metadata/gone', body: 'x' });
  const { json: key } = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: 'k', role: 'viewer' } });
  api.host.addImageWith = (_request, { signal }) => {
    const { promise, reject } = Promise.withResolvers<never>();
    signal!.addEventListener('abort', () => reject(signal!.reason));
    return promise;
  };
  const joinKey = await api.ask({ method: 'POST', path: '/v1/join-keys', body: {} });
  const adding = await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'slow', recipe: 'tiny' } });
  await addHost(api.stores.region, 'old', { cordoned: true });
  await api.stores.global.commit({ operations: [imageElsewhere('far')] });
  const yaml = { 'content-type': 'application/yaml' };
  const vm = '/v1/vms/web-1';
  /** One that is new in the document belongs here. */
  const requests: Readonly<Record<string, HttpRequest>> = {
    createVm: { method: 'POST', path: '/v1/vms', body: { name: 'web-2', kind: 'attached' } },
    actOnVms: { method: 'POST', path: '/v1/vm-actions', body: { action: 'stop', selector: { names: ['none'] } } },
    stopVm: { method: 'POST', path: '/v1/vms/ours/stop', body: {} },
    startVm: { method: 'POST', path: '/v1/vms/ours/start' },
    rebootVm: { method: 'POST', path: '/v1/vms/ours/reboot', body: {} },
    deleteVm: { method: 'DELETE', path: '/v1/vms/ours' },
    renewDevice: { method: 'POST', path: `${vm}/device/renew` },
    tellBoot: { method: 'POST', path: `${vm}/boots` },
    writeConsole: { method: 'POST', path: `${vm}/console/input`, body: 'ls\n' },
    writeMetadata: { method: 'PUT', path: `${vm}/metadata/a`, body: 'x' },
    removeMetadata: { method: 'DELETE', path: `${vm}/metadata/gone` },
    editMetadata: {
      method: 'POST',
      path: `${vm}/transactions`,
      body: { edits: [{ op: 'put', path: '/b', text: 'x' }] },
    },
    importSpec: { method: 'PUT', path: `${vm}/spec`, headers: yaml, body: 'porthole: 1\nmetadata: { c: x }\n' },
    setPolicy: { method: 'PUT', path: `${vm}/policy`, headers: yaml, body: 'policy: [{ path: /a, owner: 5 }]\n' },
    uploadFile: { method: 'POST', path: '/v1/uploads', body: 'bytes' },
    cancelOperation: { method: 'POST', path: `/v1/operations/${String(adding.json['id'])}/cancel` },
    addImage: { method: 'POST', path: '/v1/images', body: { name: 'more', recipe: 'tiny' } },
    removeImage: { method: 'DELETE', path: '/v1/images/spare/1' },
    copyImage: { method: 'POST', path: '/v1/images/far/1/copy', body: {} },
    createKey: { method: 'POST', path: '/v1/keys', body: { name: 'l', role: 'viewer' } },
    revokeKey: { method: 'DELETE', path: `/v1/keys/${String(key['key']!['id'])}` },
    createAccount: { method: 'POST', path: '/v1/accounts', body: { name: 'team' } },
    setQuotas: { method: 'PUT', path: '/v1/accounts/team/quotas', body: { local: { small: 1 } } },
    deleteAccount: { method: 'DELETE', path: '/v1/accounts/team' },
    setRegion: { method: 'PUT', path: '/v1/regions/eu', body: { addresses: ['https://eu.example'] } },
    removeRegion: { method: 'DELETE', path: '/v1/regions/eu?lost=true' },
    setPrefixes: { method: 'PUT', path: '/v1/prefixes', body: { ipv4: ['10.20.0.0/16'] } },
    changeHost: { method: 'PATCH', path: '/v1/hosts/local', body: { labels: { rack: 'a' } } },
    drainHost: { method: 'POST', path: '/v1/hosts/old/drain' },
    removeHost: { method: 'DELETE', path: '/v1/hosts/old' },
    createJoinKey: { method: 'POST', path: '/v1/join-keys', body: {} },
    revokeJoinKey: { method: 'DELETE', path: `/v1/join-keys/${String(joinKey.json['joinKey']!['id'])}` },
    rotateKeys: { method: 'POST', path: '/v1/store/rotate', body: {} },
  };
  const changing = api.contract.operations.filter(({ id, method }) => method !== 'GET' && !repeatable.has(id));
  assert.deepEqual(changing.map(({ id }) => id).toSorted(), Object.keys(requests).toSorted());
  for (const [id, request] of Object.entries(requests)) {
    const { operation } = changing.find((one) => one.id === id)!;
    const isTaken = operation.parameters?.some((one) => one.in === 'header' && one.name === 'idempotency-key');
    assert.ok(isTaken, `${id} does not say that it takes an Idempotency-Key`);
    const ask = (more: HttpRequest['headers'] = {}) =>
      api.ask({ ...request, headers: { ...request.headers, 'idempotency-key': id, ...more } });
    const first = await ask();
    assert.ok(first.status < 300, `${id}: ${first.status} ${first.text}`);
    const again = await ask();
    if (id === 'createKey' || id === 'createJoinKey') {
      assert.equal(`${again.json['code']}`, 'IDEMPOTENCY_SECRET');
      continue;
    }
    assert.equal(again.text, first.text, id);
    assert.deepEqual([again.status, again.headers['idempotent-replay']], [first.status, 'true'], id);
    const other =
      id === 'uploadFile'
        ? await api.ask({ ...request, body: 'other bytes', headers: { 'idempotency-key': id } })
        : await ask({ 'if-match': '*' });
    assert.equal(`${other.json['code']}`, 'IDEMPOTENCY_MISMATCH', id);
  }
  const { boots, console } = api.host.vms.get('web-1')!;
  assert.deepEqual([boots, Buffer.concat(console.typed).toString(), api.host.uploads.size], [1, 'ls\n', 1]);
});

test('what may have been typed into a console is not typed again', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const { console } = api.host.vms.get('web-1')!;
  const type = (key: string) =>
    api.ask({
      method: 'POST',
      path: '/v1/vms/web-1/console/input',
      body: 'halt\n',
      headers: { 'idempotency-key': key },
    });
  const typed = Promise.withResolvers<void>();
  const never = Promise.withResolvers<void>();
  console.afterWrite = () => {
    typed.resolve();
    return never.promise;
  };
  const lost = type('k').catch(() => undefined);
  await typed.promise;
  await api.restart();
  console.afterWrite = async () => {};
  for (let repeat = 0; repeat < 2; repeat++) {
    const { status, json } = await type('k');
    assert.deepEqual([status, `${json['code']}`], [409, 'CONFLICT']);
    assert.match(`${json['detail']}`, /is not known; look at the console.*new Idempotency-Key/);
  }
  never.resolve();
  assert.equal(await lost, undefined);
  assert.equal(console.typed.length, 1);
  assert.equal((await type('l')).status, 204);
});
