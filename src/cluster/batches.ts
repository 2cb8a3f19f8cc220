/**
 * Requests about many VMs: one operation, which says how far it is. The manager that holds `batchrun/ID`, under a lease, sees
 * to it; when that one dies, another takes over. Each VM is asked for in one transaction with its item, which has conditions on
 * that item and on who sees to it, so that none is asked for twice, whoever dies between which commits.
 */
import { z } from 'zod';
import {
  BatchItemRecord,
  type BatchRecord,
  type batchActions,
  encodeRecord,
  type OperationRecord,
} from '../records/index.ts';
import { keyText, prefixRange } from '../store/index.ts';
import {
  BatchRun,
  batchKey,
  batchPrefix,
  cancelKey,
  Fenced,
  failuresTold,
  itemPrefix,
  runKey,
  runPrefix,
} from './batch-run.ts';
import { readCursor, writeCursor } from './cursor.ts';
import type { DayLease } from './day-lease.ts';
import { follow } from './follow.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import type { VmScope } from './identity.ts';
import { type Kit, kept, pause, put, remove } from './kit.ts';
import type { ManagerLease } from './manager-lease.ts';
import { withOpening } from './openings.ts';
import { type Operations, operationPrefix } from './operations.ts';
import { ApiError } from './problem.ts';
import { Queue } from './queue.ts';
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

/** Of a transaction's 1 MiB. */
const recordBytes = 900_000;
const retryMs = 500;
/** How many are asking for VMs at once, of all and of one account. Those that wait for ends are none of them. */
const askingMost = 4;
const askingMostOfOne = 2;

export class Batches {
  readonly #kit: Kit;
  readonly #vms: Vms;
  readonly #operations: Operations;
  readonly #day: DayLease;
  readonly #lease: ManagerLease;
  /** Those that are seen to here. */
  readonly #running = new Map<string, Promise<void>>();
  readonly #runs = new Set<BatchRun>();
  readonly #asking = new Queue({ most: askingMost, mostOfOne: askingMostOfOne });
  /** What becomes of operations is heard from here on. */
  #following = Promise.withResolvers<void>();

  constructor(
    kit: Kit,
    parts: {
      readonly vms: Vms;
      readonly operations: Operations;
      readonly day: DayLease;
      readonly lease: ManagerLease;
    },
  ) {
    this.#kit = kit;
    this.#vms = parts.vms;
    this.#operations = parts.operations;
    this.#day = parts.day;
    this.#lease = parts.lease;
  }

  /** Makes `count` VMs, numbered from `firstIndex` on. Their names were checked. TOO_LARGE, TOO_MANY_REQUESTS. */
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

  /** Asks the same of all VMs that match now. TOO_MANY_REQUESTS. */
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
    const batch = { ...fields, operation: operation.id };
    if (encodeRecord(batch).length > recordBytes)
      throw new ApiError('TOO_LARGE', 'what all of them are made from is too large; give a shorter spec');
    const told = answer(operation);
    const done = await withOpening(this.#kit, { kind: 'batch', account }, (opening) =>
      commit(
        {
          conditions: [{ key: opening, exists: false }],
          operations: [
            ...operations,
            put(batchKey(operation.id), { ...batch, opening } satisfies BatchRecord),
            put(opening, { operation: operation.id }),
          ],
        },
        told,
      ),
    );
    if (!done) throw new ApiError('CONFLICT', 'it was overtaken; try again');
    return told;
  }

  /** What is not begun is not begun any more. WRONG_STATE. */
  async cancel(id: string, commit: CommitOnce, answer: Answer): Promise<Answer> {
    const transaction = {
      conditions: [{ key: batchKey(id), exists: true }],
      operations: [put(cancelKey(id), {})],
    };
    if (!(await commit(transaction, answer))) throw new ApiError('WRONG_STATE', `the operation "${id}" has finished`);
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
    /** With the account of each. */
    const known = new Map<string, string>();
    /** Became free, perhaps, while it was being claimed. */
    const again = new Set<string>();
    const see = async (id: string): Promise<void> => {
      try {
        await this.#claim(id, known.get(id)!, signal);
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
      { store: region, prefix: batchPrefix, schema: BatchHead, signal },
      {
        all: (records) => {
          known.clear();
          for (const { record } of records) known.set(record.operation, record.account);
          for (const id of known.keys()) claim(id);
        },
        put: ({ record: { operation, account } }) => {
          known.set(operation, account);
          claim(operation);
        },
        removed: (key) => void known.delete(key.slice(batchPrefix.length)),
      },
    );
    const runs = follow(
      this.#kit,
      { store: region, prefix: runPrefix, schema: RunRecord, signal },
      {
        all: () => {
          for (const id of known.keys()) claim(id);
        },
        put: () => {},
        removed: (key) => {
          const id = key.slice(runPrefix.length);
          if (known.has(id)) claim(id);
        },
      },
    );
    await Promise.all([batches, runs, this.#followOperations(signal)]);
    await Promise.all(this.#running.values());
  }

  /** Tells those that are seen to here what becomes of operations. When it breaks, they begin anew. */
  async #followOperations(signal: AbortSignal): Promise<void> {
    const { region } = this.#kit;
    while (!signal.aborted) {
      try {
        const from = (await region.revision()) + 1;
        this.#following.resolve();
        for await (const { events } of region.watch(prefixRange(operationPrefix), { from, signal }))
          for (const event of events) {
            if (event.type === 'delete') continue;
            const id = keyText(event.entry.key).slice(operationPrefix.length);
            for (const run of this.#runs) run.told(id, event.entry);
          }
      } catch (error) {
        if (signal.aborted) break;
        this.#following = Promise.withResolvers();
        for (const run of this.#runs) run.break(error);
        await pause(retryMs, signal);
      }
    }
    // Nobody waits for what does not come.
    this.#following.resolve();
  }

  /** Returns when it has ended, or somebody else sees to it. */
  async #claim(id: string, account: string, signal: AbortSignal): Promise<void> {
    const giveBack = await this.#asking.take(account, signal);
    try {
      const revision = await this.#take(id);
      if (revision !== undefined) await this.#see(id, revision, giveBack, signal);
    } finally {
      giveBack();
    }
  }

  /** @returns the revision of `batchrun/ID`; undefined when another has it, or there is no such batch */
  async #take(id: string): Promise<number | undefined> {
    const { region, randomBytes } = this.#kit;
    const key = runKey(id);
    const { committed, revision } = await this.#lease.under((lease) =>
      region.commit({
        conditions: [
          { key, exists: false },
          { key: batchKey(id), exists: true },
        ],
        operations: [put(key, { manager: randomBytes(8).toString('hex') } satisfies RunRecord, lease)],
      }),
    );
    return committed ? revision : undefined;
  }

  async #see(id: string, revision: number, hasAsked: () => void, signal: AbortSignal): Promise<void> {
    const { region } = this.#kit;
    await this.#following.promise;
    const run = new BatchRun(this.#kit, this.#vms, this.#operations, this.#day, id, revision, signal);
    this.#runs.add(run);
    try {
      await run.askAll();
      hasAsked();
      await run.finish();
    } catch (error) {
      // Given back, unless another has it by now.
      const key = runKey(id);
      await region.commit({ conditions: [{ key, modRevision: revision }], operations: [remove(key)] }).catch(() => {});
      throw error;
    } finally {
      this.#runs.delete(run);
    }
  }
}

/** What there is to know of a batch that somebody else sees to. All else of it is left out: a batch may be large. */
const BatchHead = z.object({ operation: z.string(), account: z.string() });

const RunRecord = z.looseObject({ manager: z.string() });
type RunRecord = z.infer<typeof RunRecord>;

const wordsOf = ({ names, namePrefix, labels, status, type }: NonNullable<BatchRecord['select']>): string =>
  [
    ...(names ?? []).slice(0, failuresTold),
    ...((names?.length ?? 0) > failuresTold ? [`and ${names!.length - failuresTold} more`] : []),
    ...(namePrefix === '' ? [] : [`${namePrefix}*`]),
    ...labels,
    ...(status === undefined ? [] : [`status ${status}`]),
    ...(type === undefined ? [] : [`type ${type}`]),
  ].join(', ') || 'all VMs';
