/** What etcd should not do, and old versions of it have done: leave something out of a watch. */
import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { type TestContext, test } from 'node:test';
import { ManualClock } from '../../test/store/manual-clock.ts';
import { until } from '../../test/until.ts';
import { StoreError } from './error.ts';
import { EtcdPlace } from './etcd-place.ts';
import type { KeyValue, RangeRequest, RangeResponse, WatchEventMessage, WatchResponse } from './etcd-schema.ts';
import { EtcdWatch, type RawBatch, type WatchedEtcd } from './etcd-watch.ts';

const none = Buffer.alloc(0);

/** One etcd that tells a watch only what it is made to. */
class ForgetfulEtcd implements WatchedEtcd {
  readonly callMs = 1_000;
  readonly patienceMs = 1_000;
  readonly #keys = new Map<string, KeyValue>();
  /** Every change; version 0: a deletion. */
  readonly #history: KeyValue[] = [];
  readonly #responses: WatchResponse[] = [];
  /** Of keys, at each revision. */
  readonly #counts = new Map([[10, 0]]);
  #revision = 10;
  #take: ((response: WatchResponse) => void) | undefined;
  asked = 0;

  change(key: string, isTold: boolean): void {
    const before = this.#keys.get(key);
    const modRevision = ++this.#revision;
    const kv = {
      key: Buffer.from(`p/region/${key}`),
      createRevision: before?.createRevision ?? modRevision,
      modRevision,
      version: (before?.version ?? 0) + 1,
      value: none,
      lease: 0,
    };
    this.#keys.set(key, kv);
    this.#history.push(kv);
    this.#counts.set(modRevision, this.#keys.size);
    if (isTold) this.#tell([{ type: 0, kv }]);
  }

  remove(key: string, isTold: boolean): void {
    const kv = { ...this.#keys.get(key)!, modRevision: ++this.#revision, version: 0 };
    this.#keys.delete(key);
    this.#history.push(kv);
    this.#counts.set(this.#revision, this.#keys.size);
    if (isTold) this.#tell([{ type: 1, kv }]);
  }

  async ask(_name: unknown, request: unknown): Promise<never> {
    this.asked++;
    const { countOnly, minModRevision = 0, revision = this.#revision, limit = Infinity } = request as RangeRequest;
    const there = new Map<string, KeyValue>();
    for (const kv of this.#history) if (kv.modRevision <= revision) there.set(String(kv.key), kv);
    const kvs = [...there.values()].filter((kv) => kv.version > 0 && kv.modRevision >= minModRevision);
    const answer: RangeResponse = {
      header: { revision: this.#revision },
      kvs: countOnly === true ? [] : kvs.slice(0, limit),
      more: kvs.length > limit,
      count: this.#counts.get(revision)!,
    };
    return answer as never;
  }

  async open(): Promise<never> {
    this.#tell([], { created: true });
    const next = async (): Promise<WatchResponse> => {
      const response = this.#responses.shift();
      return response ?? new Promise((resolve) => (this.#take = resolve));
    };
    return { send: () => {}, next, close: () => {} } as never;
  }

  turnAway(): void {}

  noteTokenGone(): boolean {
    return false;
  }

  #tell(events: readonly WatchEventMessage[], more: Partial<WatchResponse> = {}): void {
    const response = {
      header: { revision: this.#revision },
      created: false,
      canceled: false,
      compactRevision: 0,
      cancelReason: '',
      fragment: false,
      events,
      ...more,
    };
    const take = this.#take;
    this.#take = undefined;
    if (take) take(response);
    else this.#responses.push(response);
  }
}

const isGap = (error: unknown): boolean =>
  error instanceof StoreError && error.code === 'STORE_COMPACTED' && /left out a change/.test(error.message);

const watched = (t: TestContext) => {
  const etcd = new ForgetfulEtcd();
  const clock = new ManualClock();
  const stop = new AbortController();
  t.after(() => stop.abort());
  const place = new EtcdPlace('p', 'region');
  const range = { start: new Uint8Array(0), end: undefined };
  const watch = new EtcdWatch({ client: etcd, place, range, from: 11, clock, signal: stop.signal, mostTold: 10 });
  const told: RawBatch[] = [];
  const ended = (async () => {
    for await (const batch of watch.batches()) told.push(batch);
  })();
  ended.catch(() => {});
  const toldOf = (count: number): Promise<unknown> => until(`${count} changes`, () => told.length === count);
  /** Five minutes, and the silence after which nothing is on its way any more. */
  const compare = async (): Promise<void> => {
    const asked = etcd.asked;
    await clock.advance(5 * 60_000);
    await until('the comparison', () => etcd.asked > asked + 1);
    await new Promise((resolve) => setImmediate(resolve));
    await clock.advance(10_000);
  };
  return { etcd, clock, told, ended, toldOf, compare };
};

test('EtcdWatch ends when etcd left out the last change of a key', async (t) => {
  const { etcd, ended, toldOf, compare } = watched(t);
  etcd.change('a', true);
  await toldOf(1);
  etcd.change('b', false);
  await compare();
  await assert.rejects(ended, isGap);
});

test('EtcdWatch ends when etcd left out a deletion', async (t) => {
  const { etcd, ended, toldOf, compare } = watched(t);
  etcd.change('a', true);
  etcd.change('b', true);
  await toldOf(2);
  etcd.remove('a', false);
  await compare();
  await assert.rejects(ended, isGap);
});

test('EtcdWatch ends at once when the next change of a key shows that one was left out', async (t) => {
  const { etcd, ended, told, toldOf } = watched(t);
  etcd.change('a', true);
  await toldOf(1);
  etcd.change('a', false);
  etcd.change('a', true);
  await assert.rejects(ended, isGap);
  assert.equal(told.length, 1);
});

test('EtcdWatch goes on when all was told, also what came while it was compared', async (t) => {
  const { etcd, told, toldOf, compare } = watched(t);
  etcd.change('a', true);
  etcd.change('b', true);
  etcd.remove('a', true);
  await toldOf(3);
  await compare();
  etcd.change('a', true);
  await toldOf(4);
  await compare();
  etcd.change('c', true);
  await toldOf(5);
  assert.deepEqual(
    told.map(({ revision }) => revision),
    [11, 12, 13, 14, 15],
  );
});

test('EtcdWatch goes on through a backlog of more changes than it remembers, and asks seldom', async (t) => {
  const { etcd, clock, toldOf, compare } = watched(t);
  for (let i = 0; i < 60; i++) etcd.change(`k${i}`, true);
  await toldOf(60);
  // The first count, and two for each eleven changes.
  assert.equal(etcd.asked, 1 + 2 * Math.floor(60 / 11));
  await compare();
  etcd.change('k0', true);
  await toldOf(61);
  // More keys are there than are listed, and on their way.
  await clock.advance(5 * 60_000);
  for (let i = 0; i < 60; i++) etcd.change(`k${i}`, true);
  await toldOf(121);
});

test('EtcdWatch ends when something was left out of a backlog of more changes than it remembers', async (t) => {
  const { etcd, ended, told } = watched(t);
  for (let i = 0; i < 60; i++) etcd.change(`k${i}`, i !== 15);
  await assert.rejects(ended, isGap);
  assert.equal(told.length, 22);
});
