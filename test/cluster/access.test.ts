/** The access table: every operation of the API, tried by everyone there can be. What is not in it fails. */
import assert from 'node:assert/strict';
import { request as send } from 'node:http';
import { test } from 'node:test';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { type HttpRequest, http } from './http.ts';

/** The least role; and what it is about, which says who else is kept out. */
interface Row {
  readonly least: 'none' | 'viewer' | 'operator' | 'admin';
  /**
   * cluster: the account that has the cluster. account: things of an account. vm: the VM web-1 of the account default. Another
   * answer: to those of the account default whose key is for other VMs, and to those of another account.
   */
  readonly about: 'anyone' | 'cluster' | 'account' | 'vm' | { readonly elsewhere: string; readonly others: string };
  readonly request: HttpRequest;
}

const vm = '/v1/vms/web-1';
const get = (path: string): HttpRequest => ({ path });
const post = (path: string, body?: object | string): HttpRequest => ({ method: 'POST', path, ...(body && { body }) });
const put = (path: string, body: object | string): HttpRequest => ({ method: 'PUT', path, body });
const remove = (path: string): HttpRequest => ({ method: 'DELETE', path });

/** `made` are ids of what the account default has. */
const tableOf = (made: { readonly operation: string }): Readonly<Record<string, Row>> => {
  const ofOperation = { elsewhere: '404 NOT_FOUND', others: '404 NOT_FOUND' };
  const ofAudit = { elsewhere: '403 FORBIDDEN', others: '404 VM_NOT_FOUND' };
  return {
    createVm: {
      least: 'operator',
      about: { elsewhere: '403 FORBIDDEN', others: '409 NAME_TAKEN' },
      request: post('/v1/vms', { name: 'web-1', kind: 'attached' }),
    },
    listVms: { least: 'viewer', about: 'anyone', request: get('/v1/vms') },
    actOnVms: {
      least: 'operator',
      about: 'anyone',
      request: post('/v1/vm-actions', { action: 'stop', selector: { names: ['web-1'] } }),
    },
    countVms: { least: 'viewer', about: 'account', request: get('/v1/counts') },
    getVm: { least: 'viewer', about: 'vm', request: get(vm) },
    startVm: { least: 'operator', about: 'vm', request: post(`${vm}/start`) },
    stopVm: { least: 'operator', about: 'vm', request: post(`${vm}/stop`) },
    rebootVm: { least: 'operator', about: 'vm', request: post(`${vm}/reboot`) },
    deleteVm: { least: 'operator', about: 'vm', request: remove(vm) },
    getStatistics: { least: 'viewer', about: 'vm', request: get(`${vm}/statistics`) },
    getTop: { least: 'operator', about: 'vm', request: get(`${vm}/top`) },
    renewDevice: { least: 'operator', about: 'vm', request: post(`${vm}/device/renew`) },
    getAttachment: { least: 'operator', about: 'vm', request: get(`${vm}/attachment`) },
    tellBoot: { least: 'operator', about: 'vm', request: post(`${vm}/boots`) },
    getConsole: { least: 'operator', about: 'vm', request: get(`${vm}/console`) },
    streamConsole: { least: 'operator', about: 'vm', request: get(`${vm}/console/stream`) },
    writeConsole: { least: 'operator', about: 'vm', request: post(`${vm}/console/input`, 'ls\n') },
    readMetadata: { least: 'viewer', about: 'vm', request: get(`${vm}/metadata/instance/id`) },
    writeMetadata: { least: 'operator', about: 'vm', request: put(`${vm}/metadata/a`, 'x') },
    removeMetadata: { least: 'operator', about: 'vm', request: remove(`${vm}/metadata/a`) },
    editMetadata: {
      least: 'operator',
      about: 'vm',
      request: post(`${vm}/transactions`, { edits: [{ op: 'put', path: '/b', text: 'x' }] }),
    },
    exportSpec: { least: 'operator', about: 'vm', request: get(`${vm}/spec`) },
    importSpec: { least: 'operator', about: 'vm', request: put(`${vm}/spec`, 'x') },
    watchMetadata: { least: 'viewer', about: 'vm', request: get(`${vm}/changes`) },
    getPolicy: { least: 'viewer', about: 'vm', request: get(`${vm}/policy`) },
    setPolicy: { least: 'operator', about: 'vm', request: put(`${vm}/policy`, 'x') },
    explainPolicy: { least: 'viewer', about: 'vm', request: get(`${vm}/policy/explain?path=/a&uid=0`) },
    listOperations: { least: 'viewer', about: 'anyone', request: get('/v1/operations') },
    getOperation: { least: 'viewer', about: ofOperation, request: get(`/v1/operations/${made.operation}`) },
    watchOperation: { least: 'viewer', about: ofOperation, request: get(`/v1/operations/${made.operation}/events`) },
    listOperationVms: { least: 'viewer', about: ofOperation, request: get(`/v1/operations/${made.operation}/vms`) },
    cancelOperation: {
      least: 'operator',
      about: ofOperation,
      request: post(`/v1/operations/${made.operation}/cancel`),
    },
    followEvents: { least: 'viewer', about: 'anyone', request: get('/v1/events') },
    queryAudit: { least: 'viewer', about: ofAudit, request: get('/v1/audit?vm=web-1') },
    checkAudit: { least: 'viewer', about: 'cluster', request: get('/v1/hosts/local/audit/check') },
    followAudit: { least: 'viewer', about: ofAudit, request: get('/v1/audit/stream?vm=web-1') },
    listImages: { least: 'viewer', about: 'account', request: get('/v1/images') },
    uploadFile: { least: 'admin', about: 'account', request: post('/v1/uploads', 'x') },
    resumeUpload: {
      least: 'admin',
      about: 'account',
      request: { method: 'PATCH', path: `/v1/uploads/up-${'0'.repeat(32)}?offset=0&sizeBytes=1`, body: 'x' },
    },
    findUpload: { least: 'admin', about: 'account', request: get(`/v1/uploads/up-${'0'.repeat(32)}`) },
    addImage: { least: 'admin', about: 'account', request: post('/v1/images', { name: 'tiny', recipe: 'tiny' }) },
    getImage: { least: 'viewer', about: 'account', request: get('/v1/images/tiny/1') },
    removeImage: { least: 'admin', about: 'account', request: remove('/v1/images/tiny/1') },
    copyImage: { least: 'admin', about: 'account', request: post('/v1/images/tiny/1/copy', {}) },
    readImageBlob: {
      least: 'admin',
      about: 'account',
      request: get(`/v1/images/tiny/1/blobs/sha256:${'0'.repeat(64)}`),
    },
    listKeys: {
      least: 'admin',
      about: { elsewhere: '403 FORBIDDEN', others: '403 FORBIDDEN' },
      request: get('/v1/keys?account=default'),
    },
    createKey: {
      least: 'admin',
      about: { elsewhere: '403 FORBIDDEN', others: '403 FORBIDDEN' },
      request: post('/v1/keys', { name: 'k', role: 'viewer', account: 'default' }),
    },
    revokeKey: {
      least: 'admin',
      about: { elsewhere: '403 FORBIDDEN', others: '403 FORBIDDEN' },
      request: remove(`/v1/keys/${'0'.repeat(16)}?account=default`),
    },
    listAccounts: { least: 'admin', about: 'cluster', request: get('/v1/accounts') },
    createAccount: { least: 'admin', about: 'cluster', request: post('/v1/accounts', { name: 'more' }) },
    getAccount: { least: 'admin', about: 'cluster', request: get('/v1/accounts/other') },
    setQuotas: { least: 'admin', about: 'cluster', request: put('/v1/accounts/other/quotas', {}) },
    deleteAccount: { least: 'admin', about: 'cluster', request: remove('/v1/accounts/none') },
    listRegions: { least: 'viewer', about: 'anyone', request: get('/v1/regions') },
    getRegion: { least: 'viewer', about: 'anyone', request: get('/v1/regions/local') },
    setRegion: { least: 'admin', about: 'cluster', request: put('/v1/regions/eu', { addresses: [] }) },
    removeRegion: { least: 'admin', about: 'cluster', request: remove('/v1/regions/eu') },
    getPrefixes: { least: 'viewer', about: 'cluster', request: get('/v1/prefixes') },
    setPrefixes: { least: 'admin', about: 'cluster', request: put('/v1/prefixes', {}) },
    listHosts: { least: 'viewer', about: 'cluster', request: get('/v1/hosts') },
    showHost: { least: 'viewer', about: 'cluster', request: get('/v1/hosts/local') },
    changeHost: { least: 'admin', about: 'cluster', request: { method: 'PATCH', path: '/v1/hosts/local', body: {} } },
    drainHost: { least: 'admin', about: 'cluster', request: post('/v1/hosts/none/drain') },
    removeHost: { least: 'admin', about: 'cluster', request: remove('/v1/hosts/none') },
    createJoinKey: { least: 'admin', about: 'cluster', request: post('/v1/join-keys', {}) },
    listJoinKeys: { least: 'admin', about: 'cluster', request: get('/v1/join-keys') },
    revokeJoinKey: { least: 'admin', about: 'cluster', request: remove(`/v1/join-keys/${'0'.repeat(16)}`) },
    createBackup: { least: 'admin', about: 'cluster', request: post('/v1/store/backup') },
    rotateKeys: { least: 'admin', about: 'cluster', request: post('/v1/store/rotate', {}) },
    whoAmI: { least: 'viewer', about: 'anyone', request: get('/v1/self') },
    createSession: { least: 'viewer', about: 'anyone', request: post('/v1/session') },
    getSession: { least: 'viewer', about: 'anyone', request: get('/v1/session') },
    endSession: { least: 'viewer', about: 'anyone', request: remove('/v1/session') },
    getHost: { least: 'viewer', about: 'cluster', request: get('/v1/host') },
    getMetrics: { least: 'viewer', about: 'cluster', request: get('/metrics') },
    getHealth: { least: 'none', about: 'anyone', request: get('/healthz') },
    getDocument: { least: 'none', about: 'anyone', request: get('/openapi.json') },
    getDocsPage: { least: 'none', about: 'anyone', request: get('/docs') },
  };
};

const roles = ['none', 'viewer', 'operator', 'admin'] as const;

interface Actor {
  readonly who: string;
  readonly key: string | undefined;
  readonly role: (typeof roles)[number];
  readonly account: 'default' | 'other';
  /** Of a key for certain VMs: whether web-1 is one of them. */
  readonly scoped?: 'with' | 'without';
  readonly ended?: true;
}

/** The refusal that is promised; undefined: it is let in. */
const refusal = ({ least, about }: Row, { role, account, scoped, ended, key }: Actor): string | undefined => {
  if (ended) return '401 BAD_KEY';
  if (least === 'none') return undefined;
  if (key === undefined) return '401 NO_KEY';
  if (roles.indexOf(role) < roles.indexOf(least)) return '403 FORBIDDEN';
  if (typeof about === 'object') {
    if (account === 'other') return about.others;
    if (scoped === 'without') return about.elsewhere;
    return undefined;
  }
  if (about === 'anyone') return undefined;
  if (about === 'vm') {
    if (scoped === 'without') return '403 FORBIDDEN';
    return account === 'other' ? '404 VM_NOT_FOUND' : undefined;
  }
  if (scoped !== undefined) return '403 FORBIDDEN';
  return about === 'cluster' && account === 'other' ? '403 FORBIDDEN' : undefined;
};

/** `STATUS CODE`; of a stream, as soon as it begins. */
const outcomeOf = (
  url: string,
  { method = 'GET', path, body }: HttpRequest,
  key: string | undefined,
  localAddress = '127.0.0.1',
): Promise<string> => {
  const isText = typeof body === 'string';
  const text = body === undefined ? undefined : isText ? body : JSON.stringify(body);
  const type = isText ? 'application/yaml' : 'application/json';
  const headers = {
    ...(text !== undefined && { 'content-type': type, 'content-length': String(Buffer.byteLength(text)) }),
    ...(key !== undefined && { authorization: `Bearer ${key}` }),
  };
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const sending = send(`${url}${path}`, { method, agent: false, headers, localAddress }, (response) => {
    const { statusCode = 0 } = response;
    if (statusCode < 400) {
      resolve(String(statusCode));
      sending.destroy();
      return;
    }
    let answer = '';
    response.setEncoding('utf8');
    response.on('data', (chunk: string) => (answer += chunk));
    response.on('end', () => resolve(`${statusCode} ${(JSON.parse(answer) as { code: string }).code}`));
    response.on('error', reject);
  });
  sending.on('error', reject).end(text);
  return promise;
};

const keyOf = async (api: TestApi, body: object): Promise<{ readonly id: string; readonly text: string }> => {
  const { json } = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: 'k', ...body } });
  return { id: String(json['key']!['id']), text: String(json['text']) };
};

test('every operation lets in whom the access table says, and refuses everybody else', async (t) => {
  const api = await startApi(t, { listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const url = api.server.url!;
  const spec = 'porthole: 1\nmetadata: { instance: { id: i } }\n';
  const created = await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', kind: 'attached', spec } });
  await until('the VM', () => api.host.vms.has('web-1'));
  await api.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'other' } });
  const table = tableOf({ operation: String(created.json['operation']!['id']) });
  assert.deepEqual(api.contract.operations.map(({ id }) => id).toSorted(), Object.keys(table).toSorted());

  const actors: Actor[] = [{ who: 'nobody', key: undefined, role: 'none', account: 'default' }];
  for (const role of ['viewer', 'operator', 'admin'] as const)
    for (const account of ['default', 'other'] as const)
      actors.push({ who: `${role} of ${account}`, key: (await keyOf(api, { role, account })).text, role, account });
  for (const role of ['viewer', 'operator'] as const)
    for (const [scoped, vms] of [
      ['with', { names: ['web-1'] }],
      ['with', { prefixes: ['web-'] }],
      ['without', { names: ['web-10'], prefixes: ['web-1x', 'x'] }],
    ] as const) {
      const { text: key } = await keyOf(api, { role, vms });
      actors.push({ who: `${role} for ${JSON.stringify(vms)}`, key, role, account: 'default', scoped });
    }
  const { text: key } = await keyOf(api, { role: 'operator', account: 'other', vms: { names: ['web-1'] } });
  actors.push({ who: 'operator of other for web-1', key, role: 'operator', account: 'other', scoped: 'with' });
  const revoked = await keyOf(api, { role: 'admin' });
  await api.ask({ method: 'DELETE', path: `/v1/keys/${revoked.id}` });
  const expired = await keyOf(api, { role: 'admin', expiresInSeconds: 1 });
  await until('the expiry', async () => (await outcomeOf(url, get('/v1/self'), expired.text)).startsWith('401'));
  for (const [who, ended] of [
    ['revoked', revoked],
    ['expired', expired],
  ] as const)
    actors.push({ who, key: ended.text, role: 'admin', account: 'default', ended: true });

  const cases = Object.entries(table).flatMap(([id, row]) =>
    actors.map((actor) => ({ id, row, actor, expected: refusal(row, actor) })),
  );
  const denied = cases.filter(({ expected }) => expected !== undefined);
  // Wrong keys from one address are answered more and more slowly.
  for (const [i, { id, row, actor, expected }] of denied.entries())
    assert.equal(
      await outcomeOf(url, row.request, actor.key, `127.1.${i >> 8}.${i & 255}`),
      expected,
      `${id} by ${actor.who}`,
    );
  // After these, as they change things.
  const admitted = cases.filter(({ expected }) => expected === undefined);
  for (const { id, row, actor } of admitted)
    assert.doesNotMatch(await outcomeOf(url, row.request, actor.key), /^40[13] /, `${id} by ${actor.who}`);
  t.diagnostic(`${denied.length} refused, ${admitted.length} let in`);
});

test('lists show what the key is for, and a key may make VMs within its bounds', async (t) => {
  const api = await startApi(t, { listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const { url } = api.server;
  await api.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'other' } });
  const { text: scoped } = await keyOf(api, { role: 'operator', vms: { prefixes: ['web-'] } });
  const { text: other } = await keyOf(api, { role: 'operator', account: 'other' });
  const make = (name: string, key?: string) =>
    api.ask({
      method: 'POST',
      path: '/v1/vms',
      body: { name, kind: 'attached' },
      ...(key !== undefined && { url, key }),
    });
  assert.equal((await make('db')).status, 202);
  assert.equal((await make('web-1', scoped)).status, 202);
  assert.equal((await make('db-2', scoped)).status, 403);
  assert.equal((await make('theirs', other)).status, 202);
  const listed = async (path: string, list: string, key?: string): Promise<string[]> => {
    const { json } = await api.ask({ path, ...(key !== undefined && { url, key }) });
    return (json[list] as unknown as { name?: string; target?: { name: string } }[]).map(
      ({ name, target }) => name ?? target!.name,
    );
  };
  assert.deepEqual(await listed('/v1/vms', 'vms', scoped), ['web-1']);
  assert.deepEqual(await listed('/v1/vms', 'vms', other), ['theirs']);
  assert.deepEqual(await listed('/v1/vms', 'vms'), ['db', 'web-1']);
  assert.deepEqual(await listed('/v1/operations', 'operations', scoped), ['web-1']);
  assert.deepEqual(await listed('/v1/operations', 'operations', other), ['theirs']);
  // By a selector, each reaches no others than these.
  const deleted = async (key: string): Promise<string[]> => {
    const body = { action: 'delete', selector: { all: true } };
    const { headers } = await api.ask({ method: 'POST', path: '/v1/vm-actions', body, url, key });
    const path = String(headers['location']);
    await until('the end', async () => (await api.ask({ path, url, key })).json['state'] === ('succeeded' as never));
    return listed(`${path}/vms`, 'vms', key);
  };
  assert.deepEqual(await deleted(scoped), ['web-1']);
  assert.deepEqual(await deleted(other), ['theirs']);
  assert.deepEqual(await listed('/v1/vms', 'vms'), ['db']);
});

test('an account is shown the audit of its own VMs, and of nothing before they were made', async (t) => {
  const api = await startApi(t, { listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const { url } = api.server;
  await api.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'other' } });
  const { text: key } = await keyOf(api, { role: 'viewer', account: 'other' });
  const { text: maker } = await keyOf(api, { role: 'operator', account: 'other' });
  const record = {
    timeMs: 5_000,
    vm: 'web',
    way: 'virtiofs',
    operation: 'open',
    path: '/secrets/theirs',
    uid: 5,
    gid: 5,
    pid: 7,
    revision: 3,
    verdict: 'denied',
    rule: 'default',
  } as const;
  api.host.recorded(record);
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web', kind: 'attached' }, url, key: maker });
  api.host.recorded({ ...record, timeMs: Date.now() + 60_000, path: '/secrets/ours' });
  const seen = async (query: string) => (await api.ask({ path: `/v1/audit?${query}`, url, key })).text;
  assert.match(await seen('vm=web'), /secrets\/ours/);
  for (const query of ['vm=web', 'vm=web&from=1970-01-01T00:00:00.000Z', 'vm=web&order=newest'])
    assert.doesNotMatch(await seen(query), /theirs/, query);
  assert.match((await api.ask({ path: '/v1/audit' })).text, /theirs/);

  // What is its host's is not for it.
  const asks = async (more: object): Promise<string> => {
    const body = { name: 'net', kind: 'attached', ...more };
    const answer = await api.ask({ method: 'POST', path: '/v1/vms', body, url, key: maker });
    return answer.status === 202 ? JSON.stringify(answer.json['vm']!['network']) : String(answer.json['code']);
  };
  const port = { hostAddress: '0.0.0.0', hostPort: 80, guestPort: 80 };
  for (const more of [
    { network: { mode: 'tap', device: 'tap0' } },
    { libvirtDomain: 'theirs' },
    { network: { mode: 'user', forwards: [port] } },
  ])
    assert.equal(await asks(more), 'FORBIDDEN');
  assert.match(await asks({}), /"isolated":true/);

  // A stream ends with its VM: a namesake may be another's.
  const whole = http({ url, path: '/v1/audit/stream?vm=web', key, headers: { 'last-event-id': '1' } });
  await until('the stream', async () =>
    /^porthole_api_streams\S* 1$/m.test((await api.ask({ path: '/metrics' })).text),
  );
  await api.ask({ method: 'DELETE', path: '/v1/vms/web', url, key: maker });
  await until('its end', async () => (await api.stores.region.get('vm/web')) === undefined);
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web', kind: 'attached' } });
  api.host.recorded({ ...record, timeMs: Date.now() + 60_000, path: '/secrets/later' });
  const { text } = await whole;
  assert.match(text, /ours/);
  assert.doesNotMatch(text, /later|theirs/);
});
