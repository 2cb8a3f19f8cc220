/** Connections that end at any moment, under commits of a host. `PORTHOLE_UPLINK_ROUNDS` makes it longer. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { keyText, openStores, prefixRange, type Store, StoreError } from '../../src/store/index.ts';
import { RemoteStore } from '../../src/uplink/remote-store.ts';
import { temporaryStore } from '../store/temporary.ts';
import { until } from '../until.ts';
import { Pair } from './pair.ts';

const rounds = Number(process.env['PORTHOLE_UPLINK_ROUNDS'] ?? 1);
const writers = 6;
const commitsEach = 40;

/** Takes a while before and after each commit, so that connections end in between. */
const slow = (store: Store): Store => ({
  name: store.name,
  place: store.place,
  epoch: store.epoch,
  commit: async (transaction) => {
    await pause(Math.random() * 4);
    const outcome = await store.commit(transaction);
    await pause(Math.random() * 4);
    return outcome;
  },
  get: (key, options) => store.get(key, options),
  range: (range, options) => store.range(range, options),
  count: (range, options) => store.count(range, options),
  watch: (range, options) => store.watch(range, options),
  grantLease: (ttlSeconds, options) => store.grantLease(ttlSeconds, options),
  keepAlive: (leaseId, options) => store.keepAlive(leaseId, options),
  revokeLease: (leaseId, options) => store.revokeLease(leaseId, options),
  revision: (options) => store.revision(options),
  compact: (revision, options) => store.compact(revision, options),
});

const openRegion = async (t: TestContext): Promise<Store> => {
  const stores = await openStores(temporaryStore(t));
  t.after(() => stores.close());
  return stores.region;
};

const numberOf = (value: Uint8Array | undefined): number => (value === undefined ? 0 : Number(keyText(value)));
const bytesOf = (value: number): Uint8Array => new TextEncoder().encode(String(value));

/** Reads a counter and puts one more, under the condition that nobody else has. */
const count = async (store: Store): Promise<boolean> => {
  const entry = await store.get('count');
  const { committed } = await store.commit({
    conditions: [entry ? { key: 'count', modRevision: entry.modRevision } : { key: 'count', exists: false }],
    operations: [{ type: 'put', key: 'count', value: bytesOf(numberOf(entry?.value) + 1) }],
  });
  return committed;
};

const ofHost = async <T>(work: () => Promise<T>): Promise<T | undefined> => {
  try {
    return await work();
  } catch (error) {
    assert(error instanceof StoreError && error.code === 'STORE_CUT_OFF', String(error));
    return undefined;
  }
};

test('RemoteStore loses no commit and makes none twice when its connections end at any moment', async (t) => {
  let cuts = 0;
  let refused = 0;
  for (let round = 0; round < rounds; round++) {
    const region = await openRegion(t);
    await using pair = await Pair.open(slow(region), { patienceMs: 20 });
    const { remote } = pair;
    const watched: string[] = [];
    const stop = new AbortController();
    const { revision } = await remote.range(prefixRange('put/'));
    const watching = (async () => {
      for await (const { events } of remote.watch(prefixRange('put/'), { from: revision + 1, signal: stop.signal }))
        for (const event of events) watched.push(keyText(event.type === 'put' ? event.entry.key : event.key));
    })().catch((error: unknown) => {
      if (!stop.signal.aborted) throw error;
    });
    let counted = 0;
    const known = new Map<string, boolean>();
    const write = async (writer: number): Promise<void> => {
      for (let i = 0; i < commitsEach; i++) {
        if ((await ofHost(() => count(remote))) === true) counted++;
        const key = `put/${writer}/${i}`;
        const outcome = await ofHost(() => remote.commit({ operations: [{ type: 'put', key, value: bytesOf(i) }] }));
        known.set(key, outcome?.committed === true);
        if (outcome?.committed === true) continue;
        refused++;
        while (remote.lostAtMs !== undefined) await pause(1);
      }
    };
    const over = new AbortController();
    const cutting = (async () => {
      while (!over.signal.aborted) {
        await pause(Math.random() * 30);
        if (over.signal.aborted) break;
        pair.cut(Math.random() < 0.5);
        cuts++;
        // Sometimes for longer than is waited for.
        await pause(Math.random() < 0.3 ? 40 : 0);
        while (remote.lostAtMs !== undefined && !over.signal.aborted) await pair.connect().catch(() => {});
      }
    })();
    await Promise.all(Array.from({ length: writers }, (_, writer) => write(writer)));
    over.abort();
    await cutting;
    if (remote.lostAtMs !== undefined) await pair.connect();
    assert.equal(numberOf((await region.get('count'))?.value), counted);
    const kept = (await region.range(prefixRange('put/'))).entries.map(({ key }) => keyText(key));
    assert.deepEqual(new Set(kept), new Set([...known].filter(([, isKept]) => isKept).map(([key]) => key)));
    // The watch has told each once.
    await remote.commit({ operations: [{ type: 'put', key: 'put/end', value: bytesOf(0) }] });
    while (watched.at(-1) !== 'put/end') await pause(5);
    assert.deepEqual(watched.slice(0, -1).toSorted(), kept.toSorted());
    stop.abort();
    await watching;
  }
  t.diagnostic(`${rounds * writers * commitsEach * 2} commits over ${cuts} cuts; ${refused} were refused`);
});

test('a commit that is on its way through a manager that was given up has no effect any more', async (t) => {
  const region = await openRegion(t);
  const held = Promise.withResolvers<void>();
  const arrived = Promise.withResolvers<void>();
  const late = Promise.withResolvers<boolean>();
  let isFirst = true;
  await using pair = await Pair.open(
    {
      ...slow(region),
      commit: async (transaction) => {
        const isHeld =
          isFirst && transaction.operations.some(({ key }) => key instanceof Uint8Array && keyText(key) === 'a');
        if (!isHeld) return region.commit(transaction);
        isFirst = false;
        arrived.resolve();
        await held.promise;
        const outcome = await region.commit(transaction);
        late.resolve(outcome.committed);
        return outcome;
      },
    },
    { patienceMs: 60_000 },
  );
  const { remote } = pair;
  const writing = remote.commit({ operations: [{ type: 'put', key: 'a', value: bytesOf(1) }] });
  await arrived.promise;
  pair.cut();
  while (remote.lostAtMs === undefined) await pause(1);
  await pair.connect();
  const { revision } = await writing;
  await remote.commit({ operations: [{ type: 'put', key: 'a', value: bytesOf(2) }] });
  held.resolve();
  assert.equal(await late.promise, false);
  const entry = await region.get('a');
  assert.deepEqual([numberOf(entry?.value), entry?.createRevision], [2, revision]);
});

test('a commit of which the manager does not know whether it happened is found by its mark', async (t) => {
  const region = await openRegion(t);
  let isFirst = true;
  await using pair = await Pair.open(
    {
      ...slow(region),
      commit: async (transaction) => {
        const isOpen =
          isFirst && transaction.operations.some(({ key }) => key instanceof Uint8Array && keyText(key) === 'a');
        const outcome = await region.commit(transaction);
        if (!isOpen) return outcome;
        isFirst = false;
        throw new StoreError('STORE_UNAVAILABLE', 'etcd gave no answer');
      },
    },
    { patienceMs: 60_000 },
  );
  const { remote } = pair;
  const writing = remote.commit({ operations: [{ type: 'put', key: 'a', value: bytesOf(1) }] });
  const early = await Promise.race([writing, until('it to be lost', () => remote.lostAtMs !== undefined)]);
  assert.equal(early, true);
  await pair.connect();
  const { committed, revision } = await writing;
  const entry = await region.get('a');
  assert.deepEqual([committed, revision, entry?.version], [true, entry?.modRevision, 1]);
});

test('RemoteStore gives up when another process says hello as its host', async (t) => {
  const region = await openRegion(t);
  await using first = await Pair.open(region);
  await using second = await Pair.open(region);
  const put = { operations: [{ type: 'put', key: 'a', value: bytesOf(1) } as const] };
  assert.equal((await second.remote.commit(put)).committed, true);
  const refused = first.remote.commit(put);
  refused.catch(() => {});
  while (first.remote.lostAtMs === undefined) await pause(1);
  await assert.rejects(first.connect(), { code: 'STORE_CLOSED', message: /another process is the host "h1"/ });
  await assert.rejects(refused, { code: 'STORE_CLOSED' });
});

test('RemoteStore waits for a manager while nobody waits for it, and then says that there is none', async () => {
  const store = new RemoteStore({ patienceMs: 1 });
  let early: StoreError | undefined;
  const waiting = store.get('a').catch((error: StoreError) => (early = error));
  store.hurry();
  await assert.rejects(store.get('a'), { code: 'STORE_CUT_OFF' });
  assert.equal(early, undefined);
  const closed = store.close();
  await waiting;
  assert.equal(early, closed);
});
