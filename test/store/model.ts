/** The simplest store there could be, and the comparison of a real one with it. */
import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import fc from 'fast-check';
import {
  type Condition,
  type Entry,
  type Operation,
  type Store,
  StoreError,
  type WatchEvent,
} from '../../src/store/index.ts';

type Step =
  | {
      readonly type: 'commit';
      readonly conditions: readonly ConditionStep[];
      readonly operations: readonly Operation[];
    }
  | { readonly type: 'compact'; readonly back: number };
/** `modRevision` of the key in the model, plus `off`. */
type ConditionStep =
  | { readonly key: string; readonly exists: boolean }
  | { readonly key: string; readonly off: number };

const key = fc.constantFrom('a', 'a\0', 'b', 'é', 'ab', 'zz');
const value = fc.uint8Array({ maxLength: 8 }).map((bytes) => new Uint8Array(bytes));
const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ type: fc.constant('put' as const), key, value }) },
  { weight: 1, arbitrary: fc.record({ type: fc.constant('delete' as const), key }) },
);
const condition: fc.Arbitrary<ConditionStep> = fc.oneof(
  fc.record({ key, exists: fc.boolean() }),
  fc.record({ key, off: fc.constantFrom(0, 0, 0, 1) }),
);
export const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    {
      weight: 9,
      arbitrary: fc.record({
        type: fc.constant('commit' as const),
        conditions: fc.array(condition, { maxLength: 2 }),
        operations: fc.uniqueArray(operation, { maxLength: 4, selector: (o) => o.key }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ type: fc.constant('compact' as const), back: fc.nat({ max: 5 }) }) },
  ),
  { minLength: 1, maxLength: 25 },
);

type Plain = Pick<Entry, 'createRevision' | 'modRevision' | 'version'> & {
  readonly key: string;
  readonly value: string;
};

const plain = (entry: Entry): Plain => ({
  key: Buffer.from(entry.key).toString(),
  value: Buffer.from(entry.value).toString('hex'),
  createRevision: entry.createRevision,
  modRevision: entry.modRevision,
  version: entry.version,
});

const plainEvent = (event: WatchEvent): Plain | string =>
  event.type === 'put' ? plain(event.entry) : `${Buffer.from(event.key).toString()} deleted at ${event.modRevision}`;

const sorted = (entries: Iterable<Plain>): Plain[] =>
  [...entries].toSorted((a, b) => Buffer.compare(Buffer.from(a.key), Buffer.from(b.key)));

class Model {
  revision: number;
  compacted: number;
  entries = new Map<string, Plain>();
  /** The entries as of each revision. */
  readonly history = new Map<number, Plain[]>();
  readonly events: { readonly revision: number; readonly events: (Plain | string)[] }[] = [];

  constructor(revision: number) {
    this.revision = revision;
    this.compacted = revision;
    this.history.set(revision, []);
  }

  /** @param told the store's revision after it, where that may rise by itself */
  commit(conditions: readonly Condition[], operations: readonly Operation[], told?: number) {
    const unmet = conditions.flatMap((condition, index) => {
      const found = this.entries.get(condition.key as string);
      const holds =
        'exists' in condition
          ? condition.exists === (found !== undefined)
          : found !== undefined && condition.modRevision === found.modRevision;
      return holds ? [] : [index];
    });
    assert(told === undefined || told >= this.revision, `the revision fell from ${this.revision} to ${told}`);
    if (unmet.length > 0) return { committed: false, revision: told ?? this.revision, unmet };
    const revision = told ?? this.revision + 1;
    const events: (Plain | string)[] = [];
    for (const operation of operations) {
      const name = operation.key as string;
      const found = this.entries.get(name);
      if (operation.type === 'put') {
        const entry: Plain = {
          key: name,
          value: Buffer.from(operation.value).toString('hex'),
          createRevision: found?.createRevision ?? revision,
          modRevision: revision,
          version: (found?.version ?? 0) + 1,
        };
        this.entries.set(name, entry);
        events.push(entry);
      } else if (found) {
        this.entries.delete(name);
        events.push(`${name} deleted at ${revision}`);
      }
    }
    if (events.length > 0) {
      assert(revision > this.revision, `a change left the revision at ${revision}`);
      this.revision = revision;
      this.events.push({ revision, events });
      this.history.set(revision, sorted(this.entries.values()));
    }
    return { committed: true, revision: told ?? this.revision };
  }
}

/**
 * Also watches from the start, all the time, and checks at the end that it was told everything.
 * @param disturb called before each step; revisions may rise by themselves then
 */
export const checkAgainstModel = async (store: Store, list: readonly Step[], disturb?: () => void): Promise<void> => {
  const model = new Model(await store.revision());
  const start = model.revision;
  const stop = new AbortController();
  const told: { revision: number; events: (Plain | string)[] }[] = [];
  const cut = new AbortController();
  const watching = (async () => {
    for await (const { revision, events } of store.watch({ start: '' }, { from: start + 1, signal: stop.signal }))
      told.push({ revision, events: events.map(plainEvent) });
  })().catch((error: unknown) => {
    if (error instanceof StoreError && error.code === 'STORE_COMPACTED') cut.abort();
    else if (error !== stop.signal.reason) throw error;
  });

  for (const step of list) {
    disturb?.();
    if (step.type === 'compact') {
      const revision = Math.max(start, model.revision - step.back);
      await store.compact(revision);
      model.compacted = Math.max(model.compacted, revision);
      continue;
    }
    const conditions = step.conditions.map((condition): Condition => {
      if ('exists' in condition) return condition;
      return {
        key: condition.key,
        modRevision: (model.entries.get(condition.key)?.modRevision ?? start + 1) + condition.off,
      };
    });
    const outcome = await store.commit({ conditions, operations: step.operations });
    assert.deepEqual(outcome, model.commit(conditions, step.operations, disturb && outcome.revision));
  }

  for (const [revision, expected] of model.history) {
    if (revision < model.compacted) {
      await assert.rejects(store.range({ start: '' }, { revision }), { code: 'STORE_COMPACTED' });
      continue;
    }
    const found: Plain[] = [];
    let next: Uint8Array | undefined = new Uint8Array(0);
    while (next !== undefined) {
      const page = await store.range({ start: next }, { revision, limit: 2 });
      found.push(...page.entries.map(plain));
      next = page.next;
    }
    assert.deepEqual(found, expected, `at revision ${revision}`);
    assert.equal(
      (await store.count({ start: 'a\0', end: 'b' }, { revision })).count,
      expected.filter(({ key }) => key > 'a' && key < 'b').length,
    );
  }
  const kept = model.events.filter(({ revision }) => revision > model.compacted);
  const again: typeof told = [];
  if (kept.length > 0) {
    for await (const { revision, events } of store.watch({ start: '' }, { from: model.compacted + 1 })) {
      again.push({ revision, events: events.map(plainEvent) });
      if (again.length === kept.length) break;
    }
  }
  assert.deepEqual(again, kept);

  while (!cut.signal.aborted && told.length < model.events.length)
    await new Promise((resolve) => setImmediate(resolve));
  stop.abort();
  await watching;
  assert.deepEqual(told, model.events.slice(0, told.length));
};
