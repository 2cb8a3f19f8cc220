/**
 * What every `Store` must do, as tests. An implementation calls `conformance` in a test file of its own; a property test
 * compares it with `model.ts` besides.
 */
import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import {
  type Entry,
  keyText,
  limits,
  type Operation,
  prefixRange,
  type Store,
  StoreError,
  type StoreErrorCode,
  type WatchBatch,
} from '../../src/store/index.ts';
import { until } from '../until.ts';
import { checkAgainstModel, steps } from './model.ts';

export interface Opened extends AsyncDisposable {
  /** Without any key. */
  readonly store: Store;
  /** Lets time pass for leases, and how long one is given; without it time passes by itself. */
  readonly advance?: (ms: number) => Promise<void>;
  readonly leaseSeconds: number;
}

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));
const put = (key: string, value = '', leaseId?: number): Operation => ({
  type: 'put',
  key,
  value: bytes(value),
  leaseId,
});
const remove = (key: string): Operation => ({ type: 'delete', key });
const everything = prefixRange('');

const keysOf = (entries: readonly Entry[]): string[] => entries.map(({ key }) => keyText(key));

const rejectsWith = async (promise: Promise<unknown>, code: StoreErrorCode, message = /./): Promise<StoreError> => {
  let found: unknown;
  await assert.rejects(promise, (error) => {
    found = error;
    return error instanceof StoreError && error.code === code && message.test(error.message);
  });
  return found as StoreError;
};

const describe = ({ events }: WatchBatch): string =>
  events
    .map((event) =>
      event.type === 'put'
        ? `${keyText(event.entry.key)}=${keyText(event.entry.value)}`
        : `${keyText(event.key)} deleted`,
    )
    .join(' ');

const take = async (watch: AsyncIterator<WatchBatch>, count: number): Promise<WatchBatch[]> => {
  const batches: WatchBatch[] = [];
  while (batches.length < count) batches.push((await watch.next()).value as WatchBatch);
  return batches;
};

interface ConformanceOptions {
  /** Random ones that are compared with the model. */
  readonly histories?: number;
  /** What one transaction may be. */
  readonly most?: { readonly operations: number; readonly transactionBytes: number };
}

export const conformance = (
  name: string,
  open: (t: TestContext) => Promise<Opened>,
  { histories = 25, most = limits }: ConformanceOptions = {},
): void => {
  const check = (does: string, run: (opened: Opened) => Promise<void>): void => {
    test(`${name} ${does}`, { timeout: 60_000 }, async (t) => {
      await using opened = await open(t);
      await run(opened);
    });
  };

  check('tells revisions and versions when keys are made, put, deleted and made again', async ({ store }) => {
    const start = await store.revision();
    assert.deepEqual(await store.commit({ operations: [put('a', '1'), put('b', '2')] }), {
      committed: true,
      revision: start + 1,
    });
    await store.commit({ operations: [put('a', '3')] });
    assert.deepEqual(await store.get('a'), {
      key: bytes('a'),
      value: bytes('3'),
      createRevision: start + 1,
      modRevision: start + 2,
      version: 2,
      leaseId: undefined,
    });
    await store.commit({ operations: [remove('a')] });
    assert.equal(await store.get('a'), undefined);
    await store.commit({ operations: [put('a', '4')] });
    const entry = (await store.get('a'))!;
    assert.deepEqual([entry.createRevision, entry.modRevision, entry.version], [start + 4, start + 4, 1]);
    assert.equal(await store.revision(), start + 4);
  });

  check('keeps its revision when nothing was changed', async ({ store }) => {
    const start = await store.revision();
    assert.deepEqual(await store.commit({ operations: [] }), { committed: true, revision: start });
    assert.deepEqual(await store.commit({ operations: [remove('a')] }), { committed: true, revision: start });
    const outcome = await store.commit({ conditions: [{ key: 'a', exists: true }], operations: [put('b')] });
    assert.deepEqual(outcome, { committed: false, revision: start, unmet: [0] });
    assert.equal(await store.revision(), start);
  });

  check('deletes as many keys at once as a transaction has room for', async ({ store }) => {
    const names = Array.from({ length: most.operations }, (_, i) => `k${i}`);
    const half = names.slice(most.operations / 2);
    const [puts, removes] = [names.map((key) => put(key)), names.map(remove)];
    await store.commit({ operations: puts });
    assert.equal((await store.commit({ operations: removes })).committed, true);
    const { revision } = await store.commit({ operations: puts });
    const conditions = half.map((key) => ({ key, modRevision: revision }));
    assert.equal((await store.commit({ conditions, operations: half.map(remove) })).committed, true);
    assert.equal((await store.count(everything)).count, names.length - half.length);
    const again = await store.commit({ conditions, operations: half.map(remove) });
    assert.deepEqual(again.committed ? [] : again.unmet, [...half.keys()]);
  });

  check('does all of a transaction or nothing when conditions hold or do not', async ({ store }) => {
    const { revision } = await store.commit({ operations: [put('a', '1')] });
    const conditions = [
      { key: 'a', modRevision: revision },
      { key: 'a', exists: true },
      { key: 'b', exists: false },
    ];
    assert.equal((await store.commit({ conditions, operations: [put('b', '1'), put('a', '2')] })).committed, true);
    const again = await store.commit({ conditions, operations: [put('c', '1'), remove('a')] });
    assert.deepEqual(again, { committed: false, revision: revision + 1, unmet: [0, 2] });
    assert.deepEqual(keysOf((await store.range(everything)).entries), ['a', 'b']);
    const absent = [{ key: 'none', modRevision: revision }];
    assert.equal((await store.commit({ conditions: absent, operations: [put('c')] })).committed, false);
  });

  check('lets one of many win when they change the same key under the same condition', async ({ store }) => {
    const { revision } = await store.commit({ operations: [put('a', 'start')] });
    const outcomes = await Promise.all(
      Array.from({ length: 20 }, (_, i) =>
        store.commit({ conditions: [{ key: 'a', modRevision: revision }], operations: [put('a', `${i}`)] }),
      ),
    );
    const winners = outcomes.flatMap(({ committed }, i) => (committed ? [i] : []));
    assert.equal(winners.length, 1);
    assert.equal(keyText((await store.get('a'))!.value), `${winners[0]}`);
  });

  check('sorts by bytes and pages at one revision when others write between pages', async ({ store }) => {
    const keys = [new Uint8Array([0]), bytes('A'), bytes('a'), bytes('a\0'), bytes('é'), new Uint8Array([0xff, 0xff])];
    const operations = keys.toReversed().map((key): Operation => ({ type: 'put', key, value: key }));
    const { revision } = await store.commit({ operations });
    const found: Uint8Array[] = [];
    let start: Uint8Array | undefined = new Uint8Array(0);
    while (start !== undefined) {
      const page = await store.range({ start }, { limit: 2, revision });
      assert.equal(page.revision, revision);
      found.push(...page.entries.map(({ key }) => key));
      start = page.next;
      await store.commit({ operations: [remove('é'), put(`a${found.length}`)] });
    }
    assert.deepEqual(found, keys);
    assert.deepEqual(await store.count(everything, { revision }), { revision, count: 6 });
    assert.equal((await store.count(prefixRange('a'))).count, 5);
    assert.equal((await store.count(prefixRange(new Uint8Array([0xff])))).count, 1);
  });

  check('ends pages early when values are large, and still gives all', async ({ store }) => {
    for (let i = 0; i < 6; i++)
      await store.commit({ operations: [{ type: 'put', key: `k${i}`, value: new Uint8Array(1_000_000).fill(i) }] });
    const first = await store.range(everything);
    assert(first.entries.length < 6 && first.next !== undefined, `${first.entries.length} entries`);
    const second = await store.range({ start: first.next }, { revision: first.revision });
    assert.deepEqual(
      [...first.entries, ...second.entries].map(({ value }) => value[999_999]),
      [0, 1, 2, 3, 4, 5],
    );
  });

  check('refuses a transaction when it is beyond the limits', async ({ store }) => {
    const start = await store.revision();
    const many = Array.from({ length: most.operations }, (_, i) => put(`k${i}`));
    const largest = most.transactionBytes - 1;
    const large = (sizeBytes: number): Operation => ({ type: 'put', key: 'x', value: new Uint8Array(sizeBytes) });
    const tooMany = { conditions: [{ key: 'a', exists: false }], operations: many };
    await rejectsWith(
      store.commit(tooMany),
      'STORE_INVALID',
      new RegExp(`${most.operations + 1} operations and conditions.*split it by ${most.operations}$`),
    );
    await rejectsWith(
      store.commit({ operations: [large(largest + 1)] }),
      'STORE_INVALID',
      new RegExp(`${most.transactionBytes} bytes`),
    );
    await rejectsWith(store.commit({ operations: [put('a'), remove('a')] }), 'STORE_INVALID', /"a" occurs twice/);
    await rejectsWith(store.commit({ operations: [put('')] }), 'STORE_INVALID', /empty/);
    await rejectsWith(store.commit({ operations: [put('k'.repeat(1025))] }), 'STORE_INVALID', /1025 bytes/);
    await rejectsWith(store.commit({ operations: [put('\ud800')] }), 'STORE_INVALID', /no valid text/);
    await rejectsWith(store.range(everything, { limit: 0 }), 'STORE_INVALID', /from 1 to 1000, not 0/);
    await rejectsWith(store.range(everything, { revision: start + 1 }), 'STORE_INVALID', /not there yet/);
    assert.equal(await store.revision(), start);
    await store.commit({ operations: many });
    await store.commit({ operations: [large(largest)] });
    assert.equal((await store.get('x'))!.value.length, largest);
  });

  check('takes a transaction when it is as large as one may be', async ({ store }) => {
    const half = most.operations / 2;
    const keys = Array.from({ length: half }, (_, i) => `${i}`.padStart(limits.keyBytes, 'k'));
    const conditions = keys.map((key) => ({ key, exists: false }));
    const size = Math.floor(most.transactionBytes / half) - 2 * limits.keyBytes;
    const operations = keys.map((key, i): Operation => ({ type: 'put', key, value: new Uint8Array(size).fill(i) }));
    assert.equal((await store.commit({ conditions, operations })).committed, true);
    assert.equal((await store.get(keys[half - 1]!))!.value[size - 1], half - 1);
  });

  check('tells of every change once and in order when it is watched', async ({ store }) => {
    const { revision } = await store.commit({ operations: [put('w/a', '1')] });
    const stop = new AbortController();
    const watch = store.watch(prefixRange('w/'), { from: revision, signal: stop.signal });
    assert.equal(describe((await take(watch, 1))[0]!), 'w/a=1');
    const pending = take(watch, 3);
    await store.commit({ operations: [put('other', 'x')] });
    await store.commit({ operations: [put('w/b', '2'), put('w/a', '3'), put('v', 'x')] });
    await store.commit({ operations: [remove('w/a'), remove('w/none')] });
    await store.commit({ operations: [put('w/a', '4')] });
    const batches = await pending;
    assert.deepEqual(batches.map(describe), ['w/b=2 w/a=3', 'w/a deleted', 'w/a=4']);
    assert.deepEqual(
      batches.map((batch) => batch.revision),
      [revision + 2, revision + 3, revision + 4],
    );
    const [event] = batches[2]!.events;
    assert(event?.type === 'put');
    assert.deepEqual([event.entry.createRevision, event.entry.version], [revision + 4, 1]);
    const next = assert.rejects(watch.next(), { name: 'AbortError' });
    stop.abort();
    await next;
    await assert.rejects(store.watch(everything, { from: 1, signal: stop.signal }).next(), { name: 'AbortError' });
  });

  check('tells a watch of nothing earlier when it starts at a revision to come', async ({ store }) => {
    const start = await store.revision();
    const pending = take(store.watch(everything, { from: start + 3 }), 1);
    for (const value of ['1', '2', '3']) await store.commit({ operations: [put('a', value)] });
    assert.deepEqual((await pending).map(describe), ['a=3']);
  });

  check('says what is the oldest revision when compacted ones are asked for', async ({ store }) => {
    const { revision: first } = await store.commit({ operations: [put('a', '1'), put('b', '1'), put('c', '1')] });
    await store.commit({ operations: [put('a', '2'), remove('b')] });
    const { revision: last } = await store.commit({ operations: [put('a', '3')] });
    const quiet = store.watch(prefixRange('a'), { from: last + 1 });
    const pending = take(quiet, 1);
    await store.compact(first + 1);
    await store.compact(first);
    const range = await rejectsWith(store.range(everything, { revision: first }), 'STORE_COMPACTED', /list anew/);
    assert.equal(range.oldestRevision, first + 1);
    const watch = await rejectsWith(store.watch(everything, { from: first + 1 }).next(), 'STORE_COMPACTED');
    assert.equal(watch.oldestRevision, first + 2);
    assert.deepEqual(keysOf((await store.range(everything, { revision: first + 1 })).entries), ['a', 'c']);
    assert.deepEqual((await take(store.watch(everything, { from: first + 2 }), 1)).map(describe), ['a=3']);
    await rejectsWith(store.compact(last + 1), 'STORE_INVALID', /the newest is/);
    // Nothing in its range happened, so a watch that waits has missed nothing.
    const { revision: newest } = await store.commit({ operations: [put('c', '1')] });
    await store.compact(newest);
    await store.commit({ operations: [put('a', '4')] });
    assert.deepEqual((await pending).map(describe), ['a=4']);
    assert.equal(keyText((await store.get('c'))!.value), '1');
  });

  check('ends a watch with an error and never skips when it is compacted under a slow one', async ({ store }) => {
    const { revision } = await store.commit({ operations: [put('a', '0')] });
    const watch = store.watch(everything, { from: revision });
    await take(watch, 1);
    for (let i = 1; i <= 3; i++) await store.commit({ operations: [put('a', `${i}`)] });
    await store.compact(revision + 2);
    // What it had taken in before may still come, in order; then the gap must be told.
    const seen: string[] = [];
    const error = await rejectsWith(
      (async () => {
        for await (const batch of watch) {
          seen.push(describe(batch));
          if (seen.length === 3) throw new StoreError('STORE_COMPACTED', 'all came', undefined, revision + 3);
        }
      })(),
      'STORE_COMPACTED',
    );
    assert.equal(error.oldestRevision, revision + 3);
    assert.deepEqual(seen, ['a=1', 'a=2', 'a=3'].slice(0, seen.length));
  });

  check('deletes the keys of a lease in one transaction when it runs out', async ({ store, advance, leaseSeconds }) => {
    const lease = await store.grantLease(leaseSeconds);
    const { revision } = await store.commit({ operations: [put('l/a', '', lease.id), put('l/b', '', lease.id)] });
    await store.commit({ operations: [put('l/c', '', lease.id)] });
    await store.commit({ operations: [put('l/c', 'freed')] });
    assert.equal((await store.get('l/a'))!.leaseId, lease.id);
    const mostOfIt = leaseSeconds * 600;
    await advance?.(mostOfIt);
    await store.keepAlive(lease.id);
    await advance?.(mostOfIt);
    assert.equal((await store.count(prefixRange('l/'))).count, 3);
    const deleted = take(store.watch(prefixRange('l/'), { from: revision + 3 }), 1);
    await advance?.(mostOfIt);
    assert.deepEqual((await deleted).map(describe), ['l/a deleted l/b deleted']);
    assert.deepEqual(keysOf((await store.range(prefixRange('l/'))).entries), ['l/c']);
    await rejectsWith(store.keepAlive(lease.id), 'STORE_LEASE_GONE', /has run out or was revoked/);
    await rejectsWith(store.commit({ operations: [put('l/d', '', lease.id)] }), 'STORE_LEASE_GONE');
    assert.equal(await store.get('l/d'), undefined);
  });

  check('deletes the keys of a lease when it is revoked', async ({ store, advance, leaseSeconds }) => {
    const [one, two] = [await store.grantLease(60), await store.grantLease(advance ? leaseSeconds : 60)];
    assert.notEqual(one.id, two.id);
    await store.commit({ operations: [put('a', '', one.id), put('b', '', two.id)] });
    await store.revokeLease(one.id);
    assert.deepEqual(keysOf((await store.range(everything)).entries), ['b']);
    await rejectsWith(store.revokeLease(one.id), 'STORE_LEASE_GONE');
    if (advance) await advance(leaseSeconds * 1100);
    else await store.revokeLease(two.id);
    await until('the keys of the lease to go', async () => (await store.count(everything)).count === 0);
    await rejectsWith(store.grantLease(0), 'STORE_INVALID', /a time to live in seconds/);
  });

  check('does nothing when a signal is aborted before', async ({ store }) => {
    const start = await store.revision();
    const signal = AbortSignal.abort();
    await assert.rejects(store.commit({ operations: [put('a')] }, { signal }), { name: 'AbortError' });
    await assert.rejects(store.range(everything, { signal }), { name: 'AbortError' });
    assert.equal(await store.revision(), start);
  });

  test(`${name} is as the model says when anything is done to it`, { timeout: 120_000 }, async (t) => {
    await fc.assert(
      fc.asyncProperty(steps, async (list) => {
        await using opened = await open(t);
        await checkAgainstModel(opened.store, list);
      }),
      { numRuns: histories },
    );
  });
};
