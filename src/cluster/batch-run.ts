/** One request about many VMs, as it is seen to by the manager that holds `batchrun/ID`. */
import { BatchItemRecord, BatchRecord, OperationRecord } from '../records/index.ts';
import { type Condition, type Entry, type Operation, StoreError } from '../store/index.ts';
import type { DayLease } from './day-lease.ts';
import type { Answer } from './idempotency.ts';
import { entriesOf, getRecord, type Kit, kept, pause, put, remove } from './kit.ts';
import { isFinished, type Operations } from './operations.ts';
import { ApiError } from './problem.ts';
import type { Vms, VmWish } from './vms.ts';

export const batchPrefix = 'batch/';
export const batchKey = (id: string): string => `${batchPrefix}${id}`;
export const runPrefix = 'batchrun/';
export const runKey = (id: string): string => `${runPrefix}${id}`;
/** That no more of it is to be asked for: a key of its own, as it is looked at for each VM. */
export const cancelKey = (id: string): string => `batchcancel/${id}`;
export const itemPrefix = (id: string): string => `batchitem/${id}/`;
const itemKey = (id: string, vm: string): string => `${itemPrefix(id)}${vm}`;

/** How many VMs are asked for at once, and written of in one transaction. */
const atOnce = 8;
const itemsInOne = 80;
/** Tries of a VM that others changed or a host that was away. */
const tries = 5;
const retryMs = 500;
export const failuresTold = 3;

/** Another manager sees to it by now. */
export class Fenced extends Error {}

/** `{{index}}`, `{{name}}` and `{{region}}` in a text; all else stays as it is. */
export const rendered = (
  text: string,
  values: { readonly index: number; readonly name: string; readonly region: string },
): string => text.replaceAll(/\{\{(index|name|region)\}\}/g, (_, what: keyof typeof values) => String(values[what]));

/** Of the n-th VM. A name without a placeholder for its number has one at its end. */
export const nameOfIndex = (template: string, index: number, region: string): string =>
  rendered(template.includes('{{index}}') ? template : `${template}-{{index}}`, { index, region, name: '' });

/** One batch, as it is seen to by this manager. */
export class BatchRun {
  readonly #kit: Kit;
  readonly #vms: Vms;
  readonly #operations: Operations;
  readonly #day: DayLease;
  readonly #id: string;
  /** In every transaction: nobody else sees to it. */
  readonly #fence: Condition;
  readonly #signal: AbortSignal;
  readonly #items = new Map<string, BatchItemRecord>();
  /** By the id of the operation on it, before that is in the store. */
  readonly #asked = new Map<string, string>();
  /** To be written. */
  readonly #changed = new Set<string>();
  #flushing: Promise<void> = Promise.resolve();
  #moved = Promise.withResolvers<void>();
  #broken: unknown;
  #names: readonly string[] = [];
  /** Goes with it. */
  #opening: string | undefined;

  constructor(
    kit: Kit,
    vms: Vms,
    operations: Operations,
    day: DayLease,
    id: string,
    claimRevision: number,
    signal: AbortSignal,
  ) {
    this.#kit = kit;
    this.#vms = vms;
    this.#operations = operations;
    this.#day = day;
    this.#id = id;
    this.#fence = { key: runKey(id), modRevision: claimRevision };
    this.#signal = signal;
  }

  /** Asks for all that was not asked for. Ends of operations must be `told` from before it. */
  async askAll(): Promise<void> {
    const batch = await this.#batch();
    this.#opening = batch.opening;
    for (const entry of (await entriesOf(this.#kit.region, itemPrefix(this.#id))).entries) {
      const { record } = kept(BatchItemRecord, entry);
      this.#items.set(record.name, record);
    }
    this.#names = batch.create === undefined ? await this.#list(batch) : namesOf(batch.create, this.#kit.regionName);
    await this.#resume();
    await this.#tell();
    await this.#askEach(batch);
  }

  /** Resolves when all that was asked for has ended, and so has the operation. */
  async finish(): Promise<void> {
    await this.#allEnded();
    await this.#finish();
  }

  /** What became of an operation, perhaps of this batch. */
  told(id: string, entry: Entry): void {
    if (!this.#asked.has(id)) return;
    const { record } = kept(OperationRecord, entry);
    if (isFinished(record)) this.#ended(record);
  }

  async #batch(): Promise<BatchRecord> {
    const found = await getRecord(this.#kit.region, BatchRecord, batchKey(this.#id));
    if (found === undefined) throw new Fenced();
    return found.record;
  }

  /** The VMs that match, once: they are kept before the first is asked. */
  async #list(batch: BatchRecord): Promise<string[]> {
    const select = batch.select!;
    if (select.isListed) return [...this.#items.keys()];
    const { account, only } = batch;
    const { namePrefix, labels, status, type } = select;
    const wanted = select.names === undefined ? undefined : new Set(select.names);
    let cursor: string | undefined;
    do {
      const page = await this.#vms.list(account, { namePrefix, labels, status, type, only }, { limit: 500, cursor });
      const found = page.vms
        .filter(
          ({ record: { name, kind } }) =>
            (wanted?.has(name) ?? true) && (kind === 'managed' || batch.action === 'delete'),
        )
        .map(({ record: { name, id } }): BatchItemRecord => ({ name, id, state: 'waiting' }));
      for (let i = 0; i < found.length; i += itemsInOne) {
        const some = found.slice(i, i + itemsInOne);
        await this.#commit({ conditions: [], operations: some.map((item) => put(itemKey(this.#id, item.name), item)) });
        for (const item of some) this.#items.set(item.name, item);
      }
      cursor = page.next;
    } while (cursor !== undefined);
    const listed = { ...batch, select: { ...select, isListed: true } };
    await this.#commit({ conditions: [], operations: [put(batchKey(this.#id), listed)] });
    return [...this.#items.keys()];
  }

  /** What was asked for by whoever saw to it before may have ended meanwhile. */
  async #resume(): Promise<void> {
    for (const { name, state, operation } of this.#items.values()) {
      if (state !== 'asked') continue;
      this.#asked.set(operation!, name);
      const found = await this.#operations.find(operation!);
      if (found === undefined) this.#end(name, { state: 'done' });
      else if (isFinished(found.record)) this.#ended(found.record);
    }
  }

  #ended({ id, state, error }: OperationRecord): void {
    const name = this.#asked.get(id)!;
    if (state === 'succeeded') this.#end(name, { state: 'done' });
    else this.#end(name, { state: 'failed', error: error ?? { code: 'CANCELLED', detail: 'it was cancelled' } });
  }

  #end(name: string, change: Pick<BatchItemRecord, 'state' | 'error'>): void {
    const before = this.#items.get(name);
    if (before !== undefined && isOver(before)) return;
    this.#items.set(name, { ...before, name, ...change });
    this.#changed.add(name);
    this.#flushing = this.#flushing.then(() => this.#flush()).catch((error: unknown) => this.break(error));
    this.#move();
  }

  #move(): void {
    this.#moved.resolve();
    this.#moved = Promise.withResolvers();
  }

  /** It cannot go on: who sees to it begins anew. */
  break(error: unknown): void {
    this.#broken ??= error;
    this.#move();
  }

  #check(): void {
    this.#signal.throwIfAborted();
    if (this.#broken !== undefined) throw this.#broken;
  }

  /** All that changed since the last one. */
  async #flush(): Promise<void> {
    const names = [...this.#changed].slice(0, itemsInOne);
    if (names.length === 0) return;
    for (const name of names) this.#changed.delete(name);
    const leaseId = await this.#day.current();
    await this.#tell(names.map((name) => put(itemKey(this.#id, name), this.#items.get(name)!, leaseId)));
    await this.#flush();
  }

  async #tell(items: readonly Operation[] = []): Promise<void> {
    const { operations } = await this.#operations.change(await this.#operation(), {
      state: 'running',
      ...this.#counts(),
    });
    await this.#commit({ conditions: [], operations: [...items, ...operations] });
  }

  async #operation(): Promise<OperationRecord> {
    const found = await this.#operations.find(this.#id);
    if (found === undefined) throw new Fenced();
    return found.record;
  }

  #counts(): Partial<OperationRecord> {
    const items = [...this.#items.values()];
    const done = items.filter(isOver).length;
    const failed = items.filter(({ state }) => state === 'failed').length;
    return { done, failed, step: failed === 0 ? '' : `${failed} failed`, total: this.#names.length };
  }

  async #askEach(batch: BatchRecord): Promise<void> {
    const left = this.#names
      .map((name, i) => ({ name, i }))
      .filter(({ name }) => (this.#items.get(name)?.state ?? 'waiting') === 'waiting');
    const next = left[Symbol.iterator]();
    const worker = async (): Promise<void> => {
      for (const { name, i } of next) {
        this.#check();
        if ((await this.#kit.region.get(cancelKey(this.#id))) !== undefined) this.#end(name, { state: 'cancelled' });
        else await this.#ask(batch, name, i);
      }
    };
    await Promise.all(Array.from({ length: Math.min(atOnce, left.length) }, worker));
  }

  async #ask(batch: BatchRecord, name: string, i: number): Promise<void> {
    for (let tried = 1; ; tried++) {
      try {
        return await (batch.create === undefined ? this.#request(batch, name) : this.#create(batch, name, i));
      } catch (error) {
        if (!(error instanceof ApiError || isTooLarge(error))) throw error;
        const { code, message } = error instanceof ApiError ? error : tooLarge();
        if ((code === 'CONFLICT' || code === 'UNAVAILABLE') && tried < tries) {
          await pause(retryMs, this.#signal);
          continue;
        }
        // Of a VM that is to go and is gone nothing is left to do.
        const isDone = batch.action === 'delete' && code === 'VM_NOT_FOUND';
        return this.#end(name, isDone ? { state: 'done' } : { state: 'failed', error: { code, detail: message } });
      }
    }
  }

  async #create({ account, create }: BatchRecord, name: string, i: number): Promise<void> {
    const wish = create!.wish as unknown as VmWish;
    const values = { name, region: this.#kit.regionName, index: create!.firstIndex + i };
    const { spec } = wish;
    await this.#vms.create(
      account,
      { ...wish, name, spec: spec === undefined ? undefined : rendered(spec, values) },
      (transaction) => this.#commit(transaction),
      () => noAnswer,
      (operation) => this.#item(name, operation, { key: itemKey(this.#id, name), exists: false }),
    );
  }

  async #request({ account, action, select }: BatchRecord, name: string): Promise<void> {
    const key = itemKey(this.#id, name);
    const item = await getRecord(this.#kit.region, BatchItemRecord, key);
    if (item === undefined) throw new Fenced();
    await this.#vms.request(
      account,
      name,
      {
        kind: `vm.${action as Exclude<BatchRecord['action'], 'create'>}`,
        graceSeconds: select!.graceSeconds,
        id: item.record.id,
      },
      (transaction) => this.#commit(transaction),
      () => noAnswer,
      async (operation) => this.#item(name, operation, { key, modRevision: item.modRevision }),
    );
  }

  /** In the transaction that asks for a VM. */
  #item(name: string, { id, target }: OperationRecord, condition: Condition) {
    const item: BatchItemRecord = { name, id: target.id, state: 'asked', operation: id };
    // Before it is in the store, so that its end is not missed.
    this.#asked.set(id, name);
    this.#items.set(name, item);
    return { conditions: [condition], operations: [put(itemKey(this.#id, name), item)] };
  }

  /** False: another condition than that this manager sees to it did not hold. Fenced. */
  async #commit({
    conditions,
    operations,
  }: {
    readonly conditions: readonly Condition[];
    readonly operations: readonly Operation[];
  }): Promise<boolean> {
    const outcome = await this.#kit.region.commit({ conditions: [...conditions, this.#fence], operations });
    if (!outcome.committed && outcome.unmet.includes(conditions.length)) throw new Fenced();
    return outcome.committed;
  }

  async #allEnded(): Promise<void> {
    while ([...this.#items.values()].some((item) => !isOver(item))) {
      this.#check();
      const { promise } = this.#moved;
      const aborted = Promise.withResolvers<void>();
      const abort = (): void => aborted.resolve();
      this.#signal.addEventListener('abort', abort, { once: true });
      await Promise.race([promise, aborted.promise]);
      this.#signal.removeEventListener('abort', abort);
    }
    await this.#flushing;
    this.#check();
  }

  async #finish(): Promise<void> {
    const items = this.#names.map((name) => this.#items.get(name)!);
    const failed = items.filter(({ state }) => state === 'failed');
    const isCancelled = items.some(({ state }) => state === 'cancelled');
    const outcome: Partial<OperationRecord> = isCancelled
      ? {
          state: 'cancelled',
          error: { code: 'CANCELLED', detail: 'it was cancelled; what was asked for before went on' },
        }
      : failed.length > 0
        ? { state: 'failed', error: { code: 'SOME_FAILED', detail: failureWords(failed, items.length) } }
        : { state: 'succeeded' };
    const { operations } = await this.#operations.change(await this.#operation(), { ...this.#counts(), ...outcome });
    const keys = [
      ...[batchKey, runKey, cancelKey].map((key) => key(this.#id)),
      ...(this.#opening === undefined ? [] : [this.#opening]),
    ];
    await this.#commit({ conditions: [], operations: [...operations, ...keys.map(remove)] });
  }
}

const noAnswer: Answer = { status: 202, headers: {}, body: '' };

const isOver = ({ state }: BatchItemRecord): boolean => state !== 'waiting' && state !== 'asked';

const namesOf = ({ wish, count, firstIndex }: NonNullable<BatchRecord['create']>, region: string): string[] =>
  Array.from({ length: count }, (_, i) => nameOfIndex(String(wish['name']), firstIndex + i, region));

const failureWords = (failed: readonly BatchItemRecord[], all: number): string => {
  const told = failed.slice(0, failuresTold).map(({ name, error }) => `${name}: ${error?.detail ?? 'it failed'}`);
  const more = failed.length > told.length ? [`and ${failed.length - told.length} more`] : [];
  return `${failed.length} of ${all} VMs failed: ${[...told, ...more].join('; ')}`;
};

/** What one VM is made from does not fit into a transaction: the same again is no way out. */
const isTooLarge = (error: unknown): boolean => error instanceof StoreError && error.code === 'STORE_INVALID';

const tooLarge = (): ApiError => new ApiError('TOO_LARGE', 'what it is made from is too large; give a shorter spec');
