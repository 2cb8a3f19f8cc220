/**
 * Requests about many VMs: one operation, which says how far it is. The manager that holds `batchrun/ID`, under a lease, sees
 * to it; when that one dies, another takes over. Each VM is asked for in one transaction with its item, which has conditions on
 * that item and on who sees to it, so that none is asked for twice, whoever dies between which commits.
 */
import { z } from 'zod';
import { BatchItemRecord, BatchRecord, type batchActions, encodeRecord, OperationRecord } from '../records/index.ts';
import { type Condition, keyText, type Operation, prefixRange, StoreError } from '../store/index.ts';
import { readCursor, writeCursor } from './cursor.ts';
import type { DayLease } from './day-lease.ts';
import { follow } from './follow.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import type { VmScope } from './identity.ts';
import { entriesOf, getRecord, type Kit, kept, pause, put, remove } from './kit.ts';
import { isFinished, type Operations } from './operations.ts';
import { ApiError, toApiError } from './problem.ts';
import type { VmFilters, Vms, VmWish } from './vms.ts';

export type BatchAction = (typeof batchActions)[number];

/** Which VMs: those with all of this. */
export interface Selector extends Omit<VmFilters, 'only'> {
  readonly names: readonly string[] | undefined;
}

export interface ItemPage {
  readonly items: readonly BatchItemRecord[];
  readonly next: string | undefined;
}

const prefix = 'batch/';
const batchKey = (id: string): string => `${prefix}${id}`;
const runPrefix = 'batchrun/';
const runKey = (id: string): string => `${runPrefix}${id}`;
const itemPrefix = (id: string): string => `batchitem/${id}/`;
const itemKey = (id: string, vm: string): string => `${itemPrefix(id)}${vm}`;

/** How many VMs are asked for at once, and written of in one transaction. */
const atOnce = 8;
const itemsInOne = 80;
/** Of a transaction's 1 MiB. */
const recordBytes = 900_000;
/** Tries of a VM that others changed or a host that was away. */
const tries = 5;
const retryMs = 500;
const failuresTold = 3;

/** Another manager sees to it by now. */
class Fenced extends Error {}

/** `{{index}}`, `{{name}}` and `{{region}}` in a text; all else stays as it is. */
export const rendered = (
  text: string,
  values: { readonly index: number; readonly name: string; readonly region: string },
): string => text.replaceAll(/\{\{(index|name|region)\}\}/g, (_, what: keyof typeof values) => String(values[what]));

/** Of the n-th VM. A name without a placeholder for its number has one at its end. */
export const nameOfIndex = (template: string, index: number, region: string): string =>
  rendered(template.includes('{{index}}') ? template : `${template}-{{index}}`, { index, region, name: '' });

export class Batches {
  readonly #kit: Kit;
  readonly #vms: Vms;
  readonly #operations: Operations;
  readonly #day: DayLease;
  /** How long one that died keeps others from its batches. */
  readonly #leaseSeconds: number;
  /** Those that are seen to here. */
  readonly #running = new Map<string, Promise<void>>();
  #lease: Promise<number> | undefined;

  constructor(
    kit: Kit,
    parts: {
      readonly vms: Vms;
      readonly operations: Operations;
      readonly day: DayLease;
      readonly leaseSeconds: number;
    },
  ) {
    this.#kit = kit;
    this.#vms = parts.vms;
    this.#operations = parts.operations;
    this.#day = parts.day;
    this.#leaseSeconds = parts.leaseSeconds;
  }

  /** Makes `count` VMs, numbered from `firstIndex` on. Their names were checked. TOO_LARGE. */
  create(
    account: string,
    only: VmScope | undefined,
    { wish, count, firstIndex }: { readonly wish: VmWish; readonly count: number; readonly firstIndex: number },
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    const record = { wish: { ...wish }, count, firstIndex };
    return this.#begin(
      { account, action: 'create', only, create: record },
      { name: wish.name, total: count },
      commit,
      answer,
    );
  }

  /** Asks the same of all VMs that match now. */
  act(
    account: string,
    only: VmScope | undefined,
    action: Exclude<BatchAction, 'create'>,
    { names, ...selector }: Selector,
    graceSeconds: number | undefined,
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    const select = {
      ...selector,
      labels: [...selector.labels],
      ...(names && { names: [...names] }),
      graceSeconds,
      isListed: false,
    };
    return this.#begin({ account, action, only, select }, { name: wordsOf(select), total: undefined }, commit, answer);
  }

  async #begin(
    fields: Pick<BatchRecord, 'account' | 'action' | 'only' | 'create' | 'select'>,
    { name, total }: { readonly name: string; readonly total: number | undefined },
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    const { account, action, only } = fields;
    const { operation, operations } = this.#operations.begin({
      account,
      kind: `vms.${action}`,
      target: { name },
      ...(total !== undefined && { total }),
      ...(only && { only }),
    });
    const batch = { ...fields, operation: operation.id, isCancelled: false };
    if (encodeRecord(batch).length > recordBytes)
      throw new ApiError('TOO_LARGE', 'what all of them are made from is too large; give a shorter spec');
    const told = answer(operation);
    const transaction = { conditions: [], operations: [...operations, put(batchKey(operation.id), batch)] };
    const done = await commit(transaction, told);
    if (!done) throw new ApiError('CONFLICT', 'it was overtaken; try again');
    return told;
  }

  /** What is not begun is not begun any more. WRONG_STATE, CONFLICT. */
  async cancel(id: string, commit: CommitOnce, answer: Answer): Promise<Answer> {
    const found = await getRecord(this.#kit.region, BatchRecord, batchKey(id));
    if (found === undefined) throw new ApiError('WRONG_STATE', `the operation "${id}" has finished`);
    const { key, record, modRevision } = found;
    const transaction = {
      conditions: [{ key, modRevision }],
      operations: [put(key, { ...record, isCancelled: true })],
    };
    if (!(await commit(transaction, answer)))
      throw new ApiError('CONFLICT', `the operation "${id}" got on meanwhile; look at it again`);
    return answer;
  }

  /** Its VMs in order of their names, as far as they were found or asked for. */
  async items(
    id: string,
    { limit, cursor }: { readonly limit: number; readonly cursor: string | undefined },
  ): Promise<ItemPage> {
    const { region } = this.#kit;
    const { start, end } = prefixRange(itemPrefix(id));
    const at = cursor === undefined ? undefined : readCursor(cursor, id, itemPrefix(id), region.epoch);
    const page = await region.range({ start: at?.next ?? start, end }, { revision: at?.revision, limit });
    const { revision } = page;
    const next = page.next && writeCursor({ epoch: region.epoch, revision, next: keyText(page.next) }, id);
    return { items: page.entries.map((entry) => kept(BatchItemRecord, entry).record), next };
  }

  /** Until the signal: sees to what nobody else sees to. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const known = new Set<string>();
    /** Became free, perhaps, while it was being claimed. */
    const again = new Set<string>();
    const see = async (id: string): Promise<void> => {
      try {
        await this.#claim(id, signal);
      } catch (error) {
        if (!signal.aborted && !(error instanceof Fenced))
          this.#kit.log.error({ err: error, operation: id }, 'a request about many VMs broke off; taking it up again');
        again.add(id);
        await pause(retryMs, signal);
      }
      this.#running.delete(id);
      if (again.delete(id) && known.has(id)) claim(id);
    };
    const claim = (id: string): void => {
      if (signal.aborted) return;
      if (this.#running.has(id)) again.add(id);
      else this.#running.set(id, see(id));
    };
    const { region } = this.#kit;
    const batches = follow(
      this.#kit,
      { store: region, prefix, schema: BatchRecord, signal },
      {
        all: (records) => {
          known.clear();
          for (const { record } of records) known.add(record.operation);
          for (const id of known) claim(id);
        },
        put: ({ record: { operation } }) => {
          known.add(operation);
          claim(operation);
        },
        removed: (key) => void known.delete(key.slice(prefix.length)),
      },
    );
    const runs = follow(
      this.#kit,
      { store: region, prefix: runPrefix, schema: BatchRun, signal },
      {
        all: () => {
          for (const id of known) claim(id);
        },
        put: () => {},
        removed: (key) => {
          const id = key.slice(runPrefix.length);
          if (known.has(id)) claim(id);
        },
      },
    );
    const keeping = setInterval(() => void this.#keepLease(), (this.#leaseSeconds * 1000) / 3).unref();
    await Promise.all([batches, runs]);
    await Promise.all(this.#running.values());
    clearInterval(keeping);
    const lease = await this.#lease?.catch(() => undefined);
    // Others need not wait.
    if (lease !== undefined) await region.revokeLease(lease).catch(() => {});
  }

  async #keepLease(): Promise<void> {
    const lease = await this.#lease?.catch(() => undefined);
    if (lease === undefined) return;
    await this.#kit.region.keepAlive(lease).catch((error: unknown) => {
      if (error instanceof StoreError && error.code === 'STORE_LEASE_GONE') this.#lease = undefined;
    });
  }

  /** Returns when it has ended, or somebody else sees to it. */
  async #claim(id: string, signal: AbortSignal): Promise<void> {
    const { region, randomBytes } = this.#kit;
    this.#lease ??= region.grantLease(this.#leaseSeconds).then((lease) => lease.id);
    const lease = await this.#lease.catch((error: unknown) => {
      this.#lease = undefined;
      throw error;
    });
    const key = runKey(id);
    const claimed = await region
      .commit({
        conditions: [
          { key, exists: false },
          { key: batchKey(id), exists: true },
        ],
        operations: [put(key, { manager: randomBytes(8).toString('hex') } satisfies BatchRun, lease)],
      })
      .catch((error: unknown) => {
        if (error instanceof StoreError && error.code === 'STORE_LEASE_GONE') this.#lease = undefined;
        throw error;
      });
    if (!claimed.committed) return;
    try {
      await new Run(this.#kit, this.#vms, this.#operations, this.#day, id, claimed.revision, signal).run();
    } catch (error) {
      // Given back, unless another has it by now.
      const conditions = [{ key, modRevision: claimed.revision }];
      await region.commit({ conditions, operations: [remove(key)] }).catch(() => {});
      throw error;
    }
  }
}

/** One batch, as it is seen to by this manager. */
class Run {
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
  #total: number | undefined;

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

  async run(): Promise<void> {
    const ending = new AbortController();
    const signal = AbortSignal.any([this.#signal, ending.signal]);
    const from = (await this.#kit.region.revision()) + 1;
    const watching = this.#watch(from, signal).catch((error: unknown) => this.#break(error));
    try {
      const batch = await this.#batch();
      for (const entry of (await entriesOf(this.#kit.region, itemPrefix(this.#id))).entries) {
        const { record } = kept(BatchItemRecord, entry);
        this.#items.set(record.name, record);
      }
      const names = batch.create === undefined ? await this.#list(batch) : namesOf(batch.create, this.#kit.regionName);
      this.#total = names.length;
      await this.#resume();
      await this.#tell();
      await this.#askAll(batch, names);
      await this.#allEnded();
      await this.#finish(names);
    } finally {
      ending.abort();
      await watching;
    }
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
        .map(({ record: { name } }): BatchItemRecord => ({ name, state: 'waiting' }));
      for (let i = 0; i < found.length; i += itemsInOne) {
        const some = found.slice(i, i + itemsInOne);
        await this.#commit({ conditions: [], operations: some.map((item) => put(itemKey(this.#id, item.name), item)) });
        for (const item of some) this.#items.set(item.name, item);
      }
      cursor = page.next;
    } while (cursor !== undefined);
    for (;;) {
      const found = await getRecord(this.#kit.region, BatchRecord, batchKey(this.#id));
      if (found === undefined) throw new Fenced();
      const { key, modRevision, record } = found;
      const listed = { ...record, select: { ...record.select!, isListed: true } };
      // Not when it is being cancelled: that is looked at anew.
      if (await this.#commit({ conditions: [{ key, modRevision }], operations: [put(key, listed)] })) break;
    }
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

  async #watch(from: number, signal: AbortSignal): Promise<void> {
    try {
      for await (const { events } of this.#kit.region.watch(prefixRange('operation/'), { from, signal }))
        for (const event of events) {
          if (event.type === 'delete' || !this.#asked.has(keyText(event.entry.key).slice('operation/'.length)))
            continue;
          const { record } = kept(OperationRecord, event.entry);
          if (isFinished(record)) this.#ended(record);
        }
    } catch (error) {
      if (!signal.aborted) throw error;
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
    this.#flushing = this.#flushing.then(() => this.#flush()).catch((error: unknown) => this.#break(error));
    this.#move();
  }

  #move(): void {
    this.#moved.resolve();
    this.#moved = Promise.withResolvers();
  }

  #break(error: unknown): void {
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
    return { done, failed, step: failed === 0 ? '' : `${failed} failed`, total: this.#total ?? 0 };
  }

  async #askAll(batch: BatchRecord, names: readonly string[]): Promise<void> {
    const left = names
      .map((name, i) => ({ name, i }))
      .filter(({ name }) => (this.#items.get(name)?.state ?? 'waiting') === 'waiting');
    const next = left[Symbol.iterator]();
    const worker = async (): Promise<void> => {
      for (const { name, i } of next) {
        this.#check();
        if ((await this.#batch()).isCancelled) this.#end(name, { state: 'cancelled' });
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
        if (!(error instanceof ApiError)) throw error;
        const { code, message } = toApiError(error);
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
      { kind: `vm.${action as Exclude<BatchAction, 'create'>}`, graceSeconds: select!.graceSeconds },
      (transaction) => this.#commit(transaction),
      () => noAnswer,
      async (operation) => this.#item(name, operation, { key, modRevision: item.modRevision }),
    );
  }

  /** In the transaction that asks for a VM. */
  #item(name: string, { id }: OperationRecord, condition: Condition) {
    const item: BatchItemRecord = { name, state: 'asked', operation: id };
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

  async #finish(names: readonly string[]): Promise<void> {
    const items = names.map((name) => this.#items.get(name)!);
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
    await this.#commit({
      conditions: [],
      operations: [...operations, remove(batchKey(this.#id)), remove(runKey(this.#id))],
    });
  }
}

const BatchRun = z.looseObject({ manager: z.string() });
type BatchRun = z.infer<typeof BatchRun>;

const noAnswer: Answer = { status: 202, headers: {}, body: '' };

const isOver = ({ state }: BatchItemRecord): boolean => state !== 'waiting' && state !== 'asked';

const namesOf = ({ wish, count, firstIndex }: NonNullable<BatchRecord['create']>, region: string): string[] =>
  Array.from({ length: count }, (_, i) => nameOfIndex(String(wish['name']), firstIndex + i, region));

const failureWords = (failed: readonly BatchItemRecord[], all: number): string => {
  const told = failed.slice(0, failuresTold).map(({ name, error }) => `${name}: ${error?.detail ?? 'it failed'}`);
  const more = failed.length > told.length ? [`and ${failed.length - told.length} more`] : [];
  return `${failed.length} of ${all} VMs failed: ${[...told, ...more].join('; ')}`;
};

const wordsOf = ({ names, namePrefix, labels, status, type }: NonNullable<BatchRecord['select']>): string =>
  [
    ...(names ?? []).slice(0, failuresTold),
    ...((names?.length ?? 0) > failuresTold ? [`and ${names!.length - failuresTold} more`] : []),
    ...(namePrefix === '' ? [] : [`${namePrefix}*`]),
    ...labels,
    ...(status === undefined ? [] : [`status ${status}`]),
    ...(type === undefined ? [] : [`type ${type}`]),
  ].join(', ') || 'all VMs';
