/** The API over trees as the host keeps them: its own `TreePort`, in the region's store. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Client, ClientError } from '../../src/cluster/index.ts';
import { type AuditRecord, Replica } from '../../src/tree/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { keptTree } from './kept-tree.ts';

const vm = '/v1/vms/web-1';
const yaml = { 'content-type': 'application/yaml' };

const withVm = async (api: TestApi, audit?: (records: readonly AuditRecord[]) => boolean) => {
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', kind: 'attached' } });
  await until('the VM', () => api.host.vms.has('web-1'));
  const { record } = await api.manager.vms.find('default', 'web-1');
  const open = async (): Promise<void> => {
    const port = await keptTree(api.stores.region, record.id, audit);
    api.host.portOf = () => port;
  };
  await open();
  return open;
};

test('metadata and policy go through the host’s own tree, and are there after a restart', async (t) => {
  const api = await startApi(t);
  const reopen = await withVm(api);
  const text =
    'porthole: 1\nmetadata:\n  secrets: { db: hunter2 }\npolicy:\n  - { path: /secrets/db, owner: 5, mode: "0400" }\n';
  const refused = await api.ask({
    method: 'PUT',
    path: `${vm}/spec`,
    headers: yaml,
    body: 'porthole: 1\nmetadata: { a: { file: /etc/shadow } }\n',
  });
  assert.deepEqual([refused.status, refused.json['code']], [422, 'BAD_SPEC'], refused.text);
  assert.equal((await api.ask({ method: 'PUT', path: `${vm}/spec`, headers: yaml, body: text })).status, 200);
  const read = await api.ask({ path: `${vm}/metadata/secrets/db` });
  assert.deepEqual([read.status, read.text, read.headers['porthole-mode']], [200, 'hunter2', '0400']);
  const etag = { 'if-match': String(read.headers['etag']) };
  const put = await api.ask({ method: 'PUT', path: `${vm}/metadata/secrets/db`, body: 'new', headers: etag });
  assert.equal(put.status, 200, put.text);
  assert.equal(
    (await api.ask({ method: 'PUT', path: `${vm}/metadata/secrets/db`, body: 'x', headers: etag })).status,
    412,
  );
  const edits = [
    { op: 'put', path: '/a/b', text: '1' },
    { op: 'symlink', path: '/a/l', target: 'b' },
    { op: 'directory', path: '/a/d' },
  ];
  assert.equal((await api.ask({ method: 'POST', path: `${vm}/transactions`, body: { edits } })).status, 200);
  const refusals: [string, object, number][] = [
    ['remove of what is not there', { op: 'remove', path: '/none' }, 404],
    ['remove of a directory with entries', { op: 'remove', path: '/a' }, 409],
    ['put below a file', { op: 'put', path: '/a/b/c', text: '' }, 409],
    ['put over a directory', { op: 'put', path: '/a', text: '' }, 409],
  ];
  for (const [what, one, status] of refusals)
    assert.equal(
      (await api.ask({ method: 'POST', path: `${vm}/transactions`, body: { edits: [one] } })).status,
      status,
      what,
    );
  const policy = await api.ask({ path: `${vm}/policy` });
  const bad = await api.ask({
    method: 'PUT',
    path: `${vm}/policy`,
    headers: yaml,
    body: 'policy:\n  - { path: /a, mdoe: "0400" }\n',
  });
  assert.equal(bad.status, 422);
  assert.equal((bad.json['problems'] as unknown as { line: number }[])[0]!.line, 2, bad.text);
  const rule = 'policy:\n  - { path: /secrets/db, owner: 7, mode: "0400" }\n';
  const set = {
    method: 'PUT',
    path: `${vm}/policy`,
    body: rule,
    headers: { ...yaml, 'if-match': String(policy.headers['etag']) },
  };
  assert.equal((await api.ask(set)).status, 200);
  assert.equal((await api.ask(set)).status, 412);
  const explained = await api.ask({ path: `${vm}/policy/explain?path=/secrets/db&uid=7` });
  assert.equal(explained.json['read']!['allowed'] as unknown, true);
  const tree = async () => (await api.ask({ path: `${vm}/metadata/?view=tree` })).json['entries'];
  const before = await tree();
  await reopen();
  assert.deepEqual(await tree(), before);
  assert.equal((await api.ask({ path: `${vm}/metadata/secrets/db` })).headers['etag'], put.headers['etag']);
  const exported = await api.ask({ path: `${vm}/spec` });
  assert.equal(
    (await api.ask({ method: 'PUT', path: `${vm}/spec`, headers: yaml, body: exported.text })).json[
      'changes'
    ] as unknown,
    0,
  );
});

test('a watch of the host’s own tree tells every commit, and says when its history is gone', async (t) => {
  const api = await startApi(t);
  const reopen = await withVm(api);
  using client = new Client({ socketPath: api.socketPath });
  const params = { name: 'web-1' };
  const { revision: from } = await client.call('editMetadata', {
    params,
    body: { edits: [{ op: 'directory', path: '/a' }] },
  });
  const told: string[] = [];
  const last = 'the last';
  const reading = (async () => {
    for await (const { event, data } of client.events('watchMetadata', {
      params,
      query: { from, path: '/a' },
      isLast: ({ data: one }) => JSON.stringify(one).includes(last),
    }))
      if (event === 'commit') told.push(...(data as { changes: { path: string }[] }).changes.map(({ path }) => path));
  })();
  for (const name of ['1', '2', '3', last]) {
    await client.raw('writeMetadata', { params: { name: 'web-1', path: `/a/${name}` }, body: Buffer.from('x') });
    await client.raw('writeMetadata', { params: { name: 'web-1', path: `/b/${name}` }, body: Buffer.from('x') });
  }
  await reading;
  assert.deepEqual(
    told.filter((path) => path !== '/a'),
    ['/a/1', '/a/2', '/a/3', `/a/${last}`],
  );
  // What was before the host’s restart is not known any more.
  await reopen();
  const gone = client.events('watchMetadata', { params, query: { from } }).next();
  await assert.rejects(gone, (error) => error instanceof ClientError && error.code === 'COMPACTED');
});

test('whoever is shown a secret by the API is on record first, and nobody is shown it while there is no record', async (t) => {
  const api = await startApi(t);
  const records: AuditRecord[] = [];
  let isWritable = true;
  await withVm(api, (more) => isWritable && records.push(...more) > 0);
  const body =
    'porthole: 1\nmetadata:\n  instance: { id: i-1 }\n  secrets: { db: hunter2, key: k }\npolicy:\n  - { path: /secrets/db, owner: 5, mode: "0400" }\n';
  await api.ask({ method: 'PUT', path: `${vm}/spec`, headers: yaml, body });
  const taken = (): readonly string[] =>
    records.splice(0).map(({ operation, path, way, by, uid, verdict, rule }) => {
      assert.deepEqual([way, by, uid, verdict], ['api', `uid ${process.getuid?.()}`, 0xffff_ffff, 'allowed']);
      return `${operation} ${path} ${rule.replace(/ .*/, '')}`;
    });

  await api.ask({ path: `${vm}/metadata/instance/id` });
  await api.ask({ path: `${vm}/metadata/secrets` });
  await api.ask({ path: `${vm}/metadata/secrets/db?view=stat` });
  assert.deepEqual(taken(), [], 'nothing that is not for all was shown');
  assert.equal((await api.ask({ path: `${vm}/metadata/secrets/db` })).text, 'hunter2');
  assert.deepEqual(taken(), ['read /secrets/db /secrets/db']);
  assert.equal((await api.ask({ path: `${vm}/metadata/?view=tree` })).status, 200);
  const both = ['/secrets/db /secrets/db', '/secrets/key default'];
  assert.deepEqual(
    taken(),
    both.map((path) => `read ${path}`),
  );
  assert.equal((await api.ask({ path: `${vm}/spec` })).status, 200);
  assert.deepEqual(
    taken(),
    both.map((path) => `export ${path}`),
  );

  isWritable = false;
  for (const path of [`${vm}/metadata/secrets/db`, `${vm}/metadata/?view=tree`, `${vm}/spec`]) {
    const refused = await api.ask({ path });
    assert.deepEqual([refused.status, refused.json['code']], [503, 'UNAVAILABLE'], path);
    assert.ok(!refused.text.includes('hunter2'));
  }
  assert.equal((await api.ask({ path: `${vm}/metadata/instance/id` })).text, 'i-1');
});

test('a tree that is read whole lets others have their turn after a piece of it, and is of one moment', async (t) => {
  const api = await startApi(t);
  const records: AuditRecord[] = [];
  await withVm(api, (more) => records.push(...more) > 0);
  const names = Array.from({ length: 5_000 }, (_, i) => `f${i}`);
  const body = `porthole: 1\nmetadata:\n  secrets: { ${names.map((name) => `${name}: first`).join(', ')} }\n`;
  assert.equal((await api.ask({ method: 'PUT', path: `${vm}/spec`, headers: yaml, body })).status, 200);
  const { stringify } = JSON;
  let [made, facts, mostMade, mostFacts] = [0, 0, 0, 0];
  let isOver = false;
  const turn = (): void => {
    [mostMade, mostFacts] = [Math.max(mostMade, made), Math.max(mostFacts, facts)];
    [made, facts] = [0, 0];
    if (!isOver) setImmediate(turn);
  };
  setImmediate(turn);
  t.mock.method(JSON, 'stringify', (...args: Parameters<typeof JSON.stringify>) => {
    const text = stringify(...args);
    made += text?.length ?? 0;
    return text;
  });
  const real = Replica.prototype.facts;
  t.mock.method(Replica.prototype, 'facts', function (this: Replica, node: Parameters<typeof real>[0]) {
    facts++;
    return real.call(this, node);
  });
  const reading = api.ask({ path: `${vm}/metadata/?view=tree` });
  // Written while it is read: in all of it, or in nothing.
  for (let at = 0; at < 4; at++)
    await api.ask({
      method: 'POST',
      path: `${vm}/transactions`,
      body: { edits: names.slice(-3).map((name) => ({ op: 'put', path: `/secrets/${name}`, text: `later ${at}` })) },
    });
  const { json, status } = await reading;
  isOver = true;
  turn();
  assert.equal(status, 200);
  const entries = json['entries'] as unknown as { path: string; text?: string }[];
  const texts = entries.flatMap(({ path, text }) => (path.startsWith('/secrets/f') ? [text!] : []));
  assert.equal(texts.length, names.length);
  assert.deepEqual(new Set(texts.slice(0, -3)), new Set(['first']));
  assert.equal(new Set(texts.slice(-3)).size, 1);
  assert.equal(records.filter(({ operation }) => operation === 'read').length, names.length);
  assert.ok(mostMade > 0 && mostMade <= 256 * 1024, `${mostMade} characters of JSON in one turn`);
  assert.ok(mostFacts > 0 && mostFacts <= 2_000, `${mostFacts} looks at entries in one turn`);
  // More entries than there may be bytes, whatever is in them.
  const tooMany = api.host.portOf!({ id: '', name: 'web-1' })!.walk('/', { by: undefined, mostBytes: 1_000_000 });
  await assert.rejects(tooMany, { code: 'HOST_TOO_LARGE', message: /ask for a smaller part/ });
});
