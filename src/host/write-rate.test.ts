import assert from 'node:assert/strict';
import { test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { until } from '../../test/until.ts';
import { openStores, type Store } from '../store/index.ts';
import { type Mutation, type Outcome, ways } from '../tree/index.ts';
import { parseSpec } from './spec-file.ts';
import { checkedSpec } from './tree-port.ts';
import { TreeStore } from './tree-store.ts';
import { VmTree } from './vm-tree.ts';
import { WriteRate } from './write-rate.ts';

const mebibyte = 1024 * 1024;
const bytesPerSecond = 4 * mebibyte;
const burstBytes = 16 * mebibyte;
const holder = '11111111-1111-4111-8111-111111111111';
const caller = { uid: 1000, gid: 1000, pid: 1 };

/** Time passes when the test says so. */
class Clock {
  nowMs = 0;
  readonly waits: { readonly ms: number; readonly end: () => void }[] = [];

  readonly now = (): number => this.nowMs;
  readonly wait = (ms: number, signal: AbortSignal): Promise<void> => {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.waits.push({ ms, end: resolve });
    signal.addEventListener('abort', () => {
      this.waits.splice(0);
      resolve();
    });
    return promise;
  };

  /** Over the wait that there is. @returns how long it was */
  pass(): number {
    const { ms, end } = this.waits.shift()!;
    this.nowMs += ms;
    end();
    return ms;
  }
}

/** A VM whose guest has a file of 900 KiB, and writes a byte of it whenever it is asked to. */
const makeVm = async (store: Store, name: string, clock: Clock) => {
  const kept = await TreeStore.open(store, name);
  const rate = new WriteRate({ bytesPerSecond, nowMs: clock.now, wait: clock.wait });
  const persist = rate.paced(kept.persist, () => kept.writtenBytes);
  const tree = new VmTree({ vm: name, epoch: 1, audit: () => true, kept: { persist }, rate });
  await tree.load(checkedSpec(parseSpec('porthole: 1', 'spec')).spec);
  let sequence = 0;
  const ask = (mutation: Mutation): Promise<Outcome> =>
    new Promise((settle) => tree.authority.commit(mutation, ways.virtiofs, holder, ++sequence, settle));
  const parentIno = tree.replica.snapshot.resolve('/guest')!.ino;
  const { ino } = await ask({ op: 'create', caller, parentIno, name: 'f', mode: 0o600, umask: 0 });
  const write = (data: Uint8Array): Promise<Outcome> =>
    ask({ op: 'write', caller, ino, offset: 0, data, append: false, truncate: false, grantedAtOpen: true });
  assert.equal((await write(new Uint8Array(900 * 1024).fill(1))).errno, 0);
  let byte = 0;
  return {
    tree,
    writtenBytes: () => kept.writtenBytes,
    writeByte: () => write(Uint8Array.of(byte++ % 256)),
    firstByte: () => tree.replica.snapshot.resolve('/guest/f')!.bytes![0],
  };
};

test('WriteRate holds a guest that rewrites a long value to its rate, and refuses and loses nothing', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const clock = new Clock();
  const vm = await makeVm(stores.region, 'i-1', clock);
  let longestMs = 0;
  let revision = 0;
  for (let i = 0; i < 80; i++) {
    let outcome: Outcome | undefined;
    void vm.writeByte().then((one) => (outcome = one));
    await until('the write', () => {
      if (clock.waits.length > 0) longestMs = Math.max(longestMs, clock.pass());
      return outcome !== undefined;
    });
    assert.equal(outcome!.errno, 0);
    assert.ok(outcome!.revision > revision);
    ({ revision } = outcome!);
    assert.equal(vm.firstByte(), i % 256);
  }
  const allowed = burstBytes + (clock.nowMs / 1000) * bytesPerSecond + mebibyte;
  assert.ok(vm.writtenBytes() <= allowed, `${vm.writtenBytes()} bytes in ${clock.nowMs} ms`);
  assert.ok(vm.writtenBytes() > 80 * 900 * 1024 && clock.nowMs > 10_000, `${clock.nowMs} ms`);
  assert.ok(longestMs > 0 && longestMs <= 500, `${longestMs} ms`);

  // Those that come while one waits are kept together: the value is written once for all of them.
  const before = vm.writtenBytes();
  const many = Array.from({ length: 24 }, () => vm.writeByte());
  let isDone = false;
  const all = Promise.all(many).then((outcomes) => {
    isDone = true;
    return outcomes;
  });
  await until('all of them', () => {
    if (clock.waits.length > 0) clock.pass();
    return isDone;
  });
  assert.ok((await all).every(({ errno }) => errno === 0));
  assert.ok(vm.writtenBytes() - before < 3 * mebibyte, `${vm.writtenBytes() - before} bytes for 24 writes`);
});

test('WriteRate lets neither another VM nor what comes from outside wait for a guest over its rate', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const clock = new Clock();
  const greedy = await makeVm(stores.region, 'i-1', clock);
  const other = await makeVm(stores.region, 'i-2', clock);
  let answered = 0;
  while (clock.waits.length === 0) {
    void greedy.writeByte().then(() => answered++);
    await until('it to be kept or to wait', () => clock.waits.length > 0 || answered > 0);
    answered = 0;
  }
  // No time passes: the other one has its own rate.
  for (let i = 0; i < 10; i++) assert.equal((await other.writeByte()).errno, 0);
  assert.deepEqual([answered, clock.waits.length], [0, 1]);
  // What the API writes comes after what waits, which therefore goes at once; in their order.
  const put = { op: 'put', path: '/a', bytes: Uint8Array.of(1) } as const;
  const { revision } = await greedy.tree.edit([put], []);
  assert.equal(answered, 1);
  assert.equal(greedy.tree.replica.snapshot.revision, revision);
  assert.equal(clock.nowMs, 0);
  // It is owed nevertheless.
  const next = greedy.writeByte();
  await until('it to wait', () => clock.waits.length === 1);
  clock.pass();
  assert.equal((await next).errno, 0);
});
