import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { decodeHead } from '../../src/host/tree-records.ts';
import { removeTree, TreeStore, TreeStoreError } from '../../src/host/tree-store.ts';
import { openStores, prefixRange, type Store, StoreError, type Transaction } from '../../src/store/index.ts';
import {
  type Authority,
  type Commit,
  type Edit,
  type Mutation,
  type Restored,
  TreeError,
  ways,
} from '../../src/tree/index.ts';
import { file, makeAuthority, serve } from '../host/served-store.ts';
import { aimed, edit, mutation, specs } from '../tree/histories.ts';
import { KeptTree } from '../tree/keepers.ts';
import { specOf } from '../tree/world.ts';
import { temporaryStore } from './temporary.ts';

/** A store that is gone from one transaction on, which is kept or not. */
class Crashing {
  left: number;
  readonly #store: Store;
  readonly #keepsLast: boolean;

  constructor(store: Store, transactions: number, keepsLast: boolean) {
    this.#store = store;
    this.left = transactions;
    this.#keepsLast = keepsLast;
  }

  get store(): Store {
    return new Proxy(this.#store, {
      get: (store, name) => {
        const value: unknown = Reflect.get(store, name, store);
        if (typeof value !== 'function') return value;
        return async (...args: unknown[]) => {
          if (this.left <= 0) throw gone();
          if (name === 'commit' && --this.left === 0) {
            if (this.#keepsLast) await store.commit(args[0] as Transaction);
            throw gone();
          }
          return (await Reflect.apply(value, store, args)) as unknown;
        };
      },
    });
  }
}

const gone = () => new StoreError('STORE_CLOSED', 'the store is gone');

/** A store knows no −0, which only a test can make an id or a time of. */
const withoutMinus = <T extends object>(value: T): T => {
  const entries = Object.entries(value).map(([key, at]: [string, unknown]) => {
    if (typeof at === 'number') return [key, at + 0];
    return [key, at !== null && typeof at === 'object' && !(at instanceof Uint8Array) ? withoutMinus(at) : at];
  });
  return Array.isArray(value) ? value : (Object.fromEntries(entries) as T);
};

const comparable = ({ nodes, applied, ...rest }: Restored) => ({
  ...rest,
  nodes: new Map(nodes.map((kept) => [kept.node.ino, withoutMinus(kept)])),
  applied: Map.groupBy(applied ?? [], ({ holder }) => holder),
});

const withoutNumbers = (restored: Restored) => {
  const { revision: _revision, nextIno: _nextIno, ...rest } = comparable(restored);
  return rest;
};

type Step =
  | { readonly mutation: Mutation }
  | { readonly edits: readonly Edit[] }
  | { readonly spec: number }
  | { readonly wait: true }
  | { readonly forget: true };

const large = fc
  .record({
    path: fc.constantFrom('/big/a', '/big/b', '/open/a'),
    size: fc.constantFrom(4096, 4097, 300_000, 524_288, 2 ** 20),
    fill: fc.nat(255),
  })
  .map(({ path, size, fill }): Edit => ({ op: 'put', path, bytes: new Uint8Array(size).fill(fill) }));
const many = fc
  .nat(200)
  .map((count) =>
    Array.from(
      { length: count },
      (_, i): Edit => ({ op: 'put', path: `/many/${i % 150}`, bytes: new Uint8Array(count) }),
    ),
  );
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 20, arbitrary: fc.record({ mutation }) },
  { weight: 4, arbitrary: fc.record({ edits: fc.array(edit, { minLength: 1, maxLength: 3 }) }) },
  { weight: 2, arbitrary: fc.record({ edits: fc.array(large, { minLength: 1, maxLength: 3 }) }) },
  { weight: 1, arbitrary: fc.record({ edits: many }) },
  { weight: 1, arbitrary: fc.record({ spec: fc.nat(specs.length - 1) }) },
  { weight: 8, arbitrary: fc.record({ wait: fc.constant(true as const) }) },
  { weight: 1, arbitrary: fc.record({ forget: fc.constant(true as const) }) },
);
/** What is done until the host daemon ends, with the transaction at which the store goes, if it does. */
interface Life {
  readonly steps: readonly Step[];
  readonly transactions: number;
  readonly keepsLast: boolean;
}
const life: fc.Arbitrary<Life> = fc.record({
  steps: fc.array(step, { minLength: 1, maxLength: 25 }),
  transactions: fc.oneof(fc.integer({ min: 1, max: 30 }), fc.constant(Number.POSITIVE_INFINITY)),
  keepsLast: fc.boolean(),
});

let vms = 0;
let rolledAtOpen = 0;

/** Lives of one tree, and what must be kept of them. */
class Lives {
  readonly vmId = `i-${(++vms).toString(16).padStart(17, '0')}`;
  readonly #store: Store;
  kept = new KeptTree();
  /** Given to the store, and not answered. */
  underway: readonly Commit[] = [];

  constructor(store: Store) {
    this.#store = store;
  }

  async live({ steps, transactions, keepsLast }: Life): Promise<void> {
    const { store } = new Crashing(this.#store, transactions, keepsLast);
    let tree: TreeStore;
    const entry = await this.#store.get(`tree/${this.vmId}/head`);
    const hadLog = entry !== undefined && decodeHead(entry.value).log !== undefined;
    try {
      tree = await TreeStore.open(store, this.vmId);
    } catch (error) {
      assert.ok(error instanceof StoreError, String(error));
      return;
    }
    if (hadLog) rolledAtOpen++;
    this.check(tree.restored);
    const { persist } = tree;
    const authority = makeAuthority({
      persist: async (commits) => {
        // What is refused later, because the store is gone, never reached it.
        if (this.underway.length === 0) this.underway = commits;
        await persist(commits);
        for (const commit of commits) this.kept.keep(commit);
        this.underway = [];
      },
      ...(tree.restored && { restored: tree.restored }),
    });
    const answers: Promise<unknown>[] = [];
    const ask = (promise: Promise<unknown>) => answers.push(promise.catch((error: unknown) => error));
    if (tree.restored === undefined) ask(authority.load(specOf(specs[0]!)).durable);
    let sequence = this.kept.revision * 1000;
    for (const step of steps) {
      if ('mutation' in step) {
        const aim = aimed(authority.snapshot, step.mutation);
        ask(new Promise((settle) => authority.commit(aim, ways.direct, 'holder/ü 1', ++sequence, settle)));
      } else if ('edits' in step) ask(authority.edit(step.edits, [], `request ${++sequence}`));
      else if ('spec' in step) ask(authority.load(specOf(specs[step.spec]!)).durable);
      else if ('forget' in step) ask(authority.forgetHolder('holder/ü 1'));
      else await answers.at(-1);
    }
    await Promise.all(answers);
    for (const error of await Promise.all(answers))
      if (error instanceof Error)
        assert.ok(error instanceof TreeError || error instanceof TreeStoreError, String(error.stack));
  }

  /** What was answered is there; what was not is there as a whole, or not at all. */
  check(restored: Restored | undefined): void {
    const underway = this.underway;
    this.underway = [];
    if (restored === undefined) {
      assert.equal(this.kept.revision, 0, 'what was kept is gone');
      return;
    }
    const all = KeptTree.from(this.kept.restored);
    for (const commit of underway) all.keep(commit);
    const isAll = isDeepStrictEqual(withoutNumbers(restored), withoutNumbers(all.restored));
    if (isAll && restored.revision >= all.restored.revision) this.kept = all;
    else assert.deepEqual(withoutNumbers(restored), withoutNumbers(this.kept.restored));
    // Numbers may be set aside for commits of which nothing is kept; none is given out twice.
    const { revision, nextIno } = this.kept.restored;
    assert.ok(restored.revision >= revision && restored.revision <= revision + 1024);
    assert.ok(restored.nextIno >= nextIno && restored.nextIno <= nextIno + 1024);
  }
}

test('TreeStore keeps each batch as a whole or not at all when the store goes at any transaction', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  await fc.assert(
    fc.asyncProperty(fc.array(life, { minLength: 2, maxLength: 4 }), async (lives) => {
      const tree = new Lives(stores.region);
      for (const life of lives) await tree.live(life);
      tree.check((await TreeStore.open(stores.region, tree.vmId)).restored);
      await removeTree(stores.region, tree.vmId);
      assert.equal((await stores.region.count(prefixRange(`tree/${tree.vmId}/`))).count, 0);
    }),
    { numRuns: 40 },
  );
  t.diagnostic(`${rolledAtOpen} logs rolled forward by the next opening`);
});

test('TreeStore rolls a log forward, or knows nothing of it, wherever it ended while it wrote or rolled it', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const edits = [
    ...Array.from({ length: 210 }, (_, i) => file(`/many/${i}`, 10, 2)),
    file('/big/a', 2 ** 20, 2),
    file('/big/b', 700_000, 2),
    { op: 'remove', path: '/old', recursive: true } as const,
  ];
  const fills = (authority: Authority, path: string) =>
    authority.snapshot.resolve(path)?.bytes?.every((byte) => byte === 2);
  let [without, rolled, transactions] = [0, 0, 0];
  for (let last = false; !last; transactions++) {
    for (const keepsLast of [false, true]) {
      const vmId = `i-${transactions}-${keepsLast}`;
      {
        const { authority } = await serve(stores.region, vmId);
        await authority.edit([file('/old/a', 600_000, 1), file('/big/a', 600_000, 1)]);
      }
      const crashing = new Crashing(stores.region, Number.POSITIVE_INFINITY, keepsLast);
      const { authority } = await serve(crashing.store, vmId);
      crashing.left = transactions + 1;
      const answered = await authority.edit(edits).then(
        () => true,
        () => false,
      );
      last = crashing.left > 0;
      const head = decodeHead((await stores.region.get(`tree/${vmId}/head`))!.value);
      if (head.log !== undefined) rolled++;
      const again = await serve(stores.region, vmId);
      const isThere = again.authority.snapshot.resolve('/many') !== undefined;
      assert.ok(isThere || !answered, 'what was answered is gone');
      if (isThere) {
        assert.deepEqual(
          edits.map(({ path }) => fills(again.authority, path) ?? false),
          edits.map(({ op }) => op === 'put'),
        );
      } else {
        without++;
        assert.equal(again.authority.snapshot.resolve('/big/a')!.bytes!.length, 600_000);
        assert.equal(again.authority.snapshot.resolve('/old/a')!.bytes![599_999], 1);
      }
      await again.authority.edit([file('/after', 10, 2)]);
      assert.equal((await stores.region.count(prefixRange(`tree/${vmId}/log/`))).count, 0);
      await removeTree(stores.region, vmId);
    }
  }
  assert.ok(
    without >= 5 && rolled >= 5,
    `${without} without, ${rolled} rolled forward, of ${transactions} transactions`,
  );
});
