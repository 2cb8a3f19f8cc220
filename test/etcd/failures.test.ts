/** Stores in etcd while its members die, connections break and answers are lost. `PORTHOLE_ETCD_ROUNDS` does more of it. */
import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { after, before, type TestContext, test } from 'node:test';
import fc from 'fast-check';
import {
  keyText,
  openEtcdStores,
  type Store,
  StoreError,
  type Stores,
  type WatchBatch,
} from '../../src/store/index.ts';
import { ManualClock } from '../store/manual-clock.ts';
import { checkAgainstModel, steps } from '../store/model.ts';
import { temporaryStore } from '../store/temporary.ts';
import { until } from '../until.ts';
import { EtcdCluster } from './cluster.ts';
import { CuttingProxy } from './cutting-proxy.ts';

const rounds = Number(process.env['PORTHOLE_ETCD_ROUNDS'] ?? 1);
const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));
const remove = (key: string) => ({ type: 'delete', key }) as const;
const put = (key: string, value: string) => ({ type: 'put', key, value: bytes(value) }) as const;

let cluster: EtcdCluster;
let opened = 0;
before(async () => {
  cluster = await EtcdCluster.start();
});
after(() => cluster?.[Symbol.asyncDispose]());

/** Stores below a prefix of their own, through a proxy before each member. */
const throughProxies = async (
  t: TestContext,
  options: { readonly clock?: ManualClock; readonly patienceMs?: number; readonly callMs?: number } = {},
) => {
  const proxies = await Promise.all(cluster.members.map(({ clientPort }) => CuttingProxy.start(clientPort)));
  const { keyFile } = temporaryStore(t);
  const shared = { prefix: `f${opened++}`, keyFile };
  const stores = await openEtcdStores({ ...shared, ...options, endpoints: proxies.map(({ endpoint }) => endpoint) });
  t.after(async () => {
    for (const proxy of proxies) await proxy[Symbol.asyncDispose]();
    await stores.close();
  });
  return { proxies, store: stores.region, shared };
};

/** The same stores, as another manager has them. */
const direct = async (
  t: TestContext,
  shared: { readonly prefix: string; readonly keyFile: string },
): Promise<Stores> => {
  const stores = await openEtcdStores({ ...shared, endpoints: cluster.endpoints });
  t.after(() => stores.close());
  return stores;
};

const valuesOf = ({ events }: WatchBatch): string[] =>
  events.map((event) => (event.type === 'put' ? keyText(event.entry.value) : 'deleted'));

/** Follows a key until it is told of `last`. */
const follow = async (store: Store, key: string, from: number, last: string): Promise<string[]> => {
  const told: string[] = [];
  for await (const batch of store.watch({ start: key, end: `${key}\0` }, { from })) {
    told.push(...valuesOf(batch));
    if (told.includes(last)) return told;
  }
  return told;
};

/** Adds 1 to a counter under its condition, again when another was faster. */
const increment = async (store: Store, key: string): Promise<number> => {
  for (;;) {
    const entry = await store.get(key);
    const next = entry === undefined ? 1 : Number(keyText(entry.value)) + 1;
    const condition = entry === undefined ? { key, exists: false } : { key, modRevision: entry.modRevision };
    const { committed } = await store.commit({ conditions: [condition], operations: [put(key, `${next}`)] });
    if (committed) return next;
  }
};

const numbers = (count: number): string[] => Array.from({ length: count }, (_, i) => `${i + 1}`);

test('EtcdStore does a change once when the answer to it is lost', { timeout: 60_000 }, async (t) => {
  const { proxies, store, shared } = await throughProxies(t);
  const other = (await direct(t, shared)).region;
  const { revision } = await store.commit({ operations: [put('a', '1')] });
  for (const proxy of proxies) proxy.loseAnswers(true);
  const conditions = [{ key: 'a', modRevision: revision }];
  const pending = store.commit({ conditions, operations: [put('a', '2')] });
  await until('the change to happen', async () => keyText((await other.get('a'))!.value) === '2');
  for (const proxy of proxies) proxy.cut();
  for (const proxy of proxies) proxy.loseAnswers(false);
  const { modRevision, version } = (await other.get('a'))!;
  assert.deepEqual(await pending, { committed: true, revision: modRevision });
  assert.equal(version, 2);
});

test('EtcdStore does a deletion once when the answer to it is lost', { timeout: 60_000 }, async (t) => {
  const { proxies, store, shared } = await throughProxies(t);
  const other = (await direct(t, shared)).region;
  const { revision } = await store.commit({ operations: [put('a', '1')] });
  for (const proxy of proxies) proxy.loseAnswers(true);
  const pending = store.commit({ conditions: [{ key: 'a', modRevision: revision }], operations: [remove('a')] });
  await until('the key to go', async () => (await other.get('a')) === undefined);
  // Were the deletion made again, this one would go as well, or its condition be said not to hold.
  await other.commit({ operations: [put('a', '2')] });
  for (const proxy of proxies) proxy.cut();
  for (const proxy of proxies) proxy.loseAnswers(false);
  assert.equal((await pending).committed, true);
  assert.equal(keyText((await other.get('a'))!.value), '2');
});

test('EtcdStore does a deletion once when what was sent comes to etcd late', { timeout: 60_000 }, async (t) => {
  const { proxies, store, shared } = await throughProxies(t);
  const other = (await direct(t, shared)).region;
  await store.commit({ operations: [put('a', '1')] });
  const [first] = proxies;
  first!.holdRequests();
  const pending = store.commit({ operations: [remove('a')] });
  await until('the deletion to be sent', () => first!.heldBytes > 0);
  first!.cutClients();
  assert.equal((await pending).committed, true);
  await other.commit({ operations: [put('a', '2')] });
  const answers = first!.answers;
  first!.releaseRequests();
  await until('etcd to answer what came late', () => first!.answers > answers);
  await other.commit({ operations: [put('b', '1')] });
  assert.equal(keyText((await other.get('a'))?.value ?? bytes('gone')), '2');
});

test('EtcdStore goes on through another member when one falls silent', { timeout: 120_000 }, async (t) => {
  const { proxies, store, shared } = await throughProxies(t, { callMs: 500 });
  const other = (await direct(t, shared)).region;
  const { revision } = await store.commit({ operations: [put('a', '1')] });
  const watch = store.watch({ start: 'a' }, { from: revision });
  await watch.next();
  for (const proxy of proxies) proxy.loseAnswers(true);
  const pending = store.commit({ operations: [put('a', '2')] });
  await until('the change to happen', async () => keyText((await other.get('a'))!.value) === '2');
  for (const proxy of proxies.slice(1)) {
    proxy.cut();
    proxy.loseAnswers(false);
  }
  assert.equal((await pending).committed, true);
  // That the stream of the watch is silent is known after 15 s.
  if (rounds > 1) assert.deepEqual(valuesOf((await watch.next()).value!), ['2']);
});

test('EtcdStore says that a change is open when no member answers', { timeout: 60_000 }, async (t) => {
  const { proxies, store } = await throughProxies(t, { patienceMs: 200 });
  await store.commit({ operations: [put('a', '1')] });
  for (const proxy of proxies) proxy.close();
  const unavailable = (message: RegExp) => (error: unknown) =>
    error instanceof StoreError && error.code === 'STORE_UNAVAILABLE' && message.test(error.message);
  await assert.rejects(store.commit({ operations: [put('a', '2')] }), unavailable(/is open: read back.*majority/));
  await assert.rejects(store.get('a'), unavailable(/nothing was read/));
  for (const proxy of proxies) proxy.open();
  await until('etcd to be reached again', () =>
    store.get('a').then(
      (entry) => entry !== undefined,
      () => false,
    ),
  );
});

test('EtcdStore loses and repeats nothing when members die, return and are replaced', {
  timeout: 300_000,
}, async (t) => {
  const { keyFile } = temporaryStore(t);
  const shared = { prefix: `f${opened++}`, keyFile };
  for (let round = 0; round < rounds; round++) {
    const managers = [await direct(t, shared), await direct(t, shared)];
    const [one, two] = managers.map(({ region }) => region);
    const from = (await one!.revision()) + 1;
    const stop = new AbortController();
    const done: number[] = [];
    const write = async (store: Store): Promise<void> => {
      while (!stop.signal.aborted) done.push(await increment(store, `counter${round}`));
    };
    const writers = [write(one!), write(one!), write(two!)];
    const told = follow(two!, `counter${round}`, from, 'end');
    const further = async (what: string): Promise<void> => {
      const before = done.length;
      await until(`changes after ${what}`, () => done.length > before + 10);
    };
    await further('the start');
    const leader = await cluster.leader();
    await cluster.kill(leader);
    await further('the death of the leader');
    cluster.restart(leader);
    await cluster.healthy();
    const next = await cluster.leader();
    await cluster.kill(next);
    await further('the death of the next leader');
    await cluster.replace(next);
    await cluster.healthy();
    await further('a replacement');
    stop.abort();
    await Promise.all(writers);
    const all = numbers(done.length);
    assert.deepEqual(done.toSorted((a, b) => a - b).map(String), all);
    assert.equal(keyText((await one!.get(`counter${round}`))!.value), `${done.length}`);
    await one!.commit({ operations: [put(`counter${round}`, 'end')] });
    assert.deepEqual(await told, [...all, 'end']);
    t.diagnostic(`${done.length} changes through two deaths of a leader and a replacement`);
  }
});

test('EtcdStore tells a watch all and nothing twice when its connection is cut again and again', async (t) => {
  const { proxies, store, shared } = await throughProxies(t);
  const other = (await direct(t, shared)).region;
  const told = follow(store, 'a', 1, 'end');
  for (const value of numbers(40 * rounds)) {
    await other.commit({ operations: [put('a', value)] });
    if (Number(value) % 4 === 0) for (const proxy of proxies) proxy.cut();
  }
  await other.commit({ operations: [put('a', 'end')] });
  assert.deepEqual(await told, [...numbers(40 * rounds), 'end']);
});

test('EtcdStore ends a watch when it is compacted while its connection is lost', { timeout: 60_000 }, async (t) => {
  const { proxies, store, shared } = await throughProxies(t);
  const other = (await direct(t, shared)).region;
  const { revision } = await other.commit({ operations: [put('a', '1')] });
  const watch = store.watch({ start: 'a' }, { from: revision });
  assert.deepEqual(valuesOf((await watch.next()).value!), ['1']);
  const next = watch.next();
  for (const proxy of proxies) proxy.close();
  await other.commit({ operations: [put('a', '2')] });
  const { revision: newest } = await other.commit({ operations: [put('a', '3')] });
  await other.compact(newest);
  for (const proxy of proxies) proxy.open();
  await assert.rejects(next, (error) => {
    assert(error instanceof StoreError);
    assert.deepEqual([error.code, error.oldestRevision], ['STORE_COMPACTED', newest + 1]);
    return true;
  });
});

test('EtcdStore goes on with a quiet watch when it is compacted and cut after it was compared', {
  timeout: 60_000,
}, async (t) => {
  const clock = new ManualClock();
  const { proxies, store, shared } = await throughProxies(t, { clock });
  const other = (await direct(t, shared)).region;
  const { revision } = await other.commit({ operations: [put('a', '1')] });
  const watch = store.watch({ start: 'a', end: 'b' }, { from: revision });
  assert.deepEqual(valuesOf((await watch.next()).value!), ['1']);
  const next = watch.next();
  const { revision: newest } = await other.commit({ operations: [put('b', '1')] });
  // The second time it is certain that nothing of before the first is on its way.
  for (const time of ['first', 'second']) {
    await clock.advance(5 * 60_000);
    await until(`the ${time} comparison`, () => clock.pending === 1);
  }
  await other.compact(newest);
  for (const proxy of proxies) proxy.cut();
  await other.commit({ operations: [put('a', '2')] });
  assert.deepEqual(valuesOf((await next).value!), ['2']);
});

test('EtcdStore is as the model says when connections break at any moment', { timeout: 300_000 }, async (t) => {
  const { proxies, shared } = await throughProxies(t);
  const endpoints = proxies.map(({ endpoint }) => endpoint);
  await fc.assert(
    fc.asyncProperty(steps, fc.infiniteStream(fc.nat({ max: 11 })), async (list, chances) => {
      await using stores = await openEtcdStores({ ...shared, prefix: `f${opened++}`, endpoints });
      // Also in the middle of what is sent and answered: at the next piece that the proxy is handed.
      const disturb = (): void => {
        const chance = chances.next().value;
        if (chance < 3) proxies[chance]!.cutAt(1 + (chances.next().value % 4));
      };
      await checkAgainstModel(stores.region, list, disturb);
    }),
    { numRuns: 4 * rounds },
  );
});
