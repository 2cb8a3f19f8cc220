/** Operations: work that takes longer than its request. What they say is kept for a day after they finished. */
import { OperationRecord } from '../records/index.ts';
import { keyText, type Operation, prefixRange } from '../store/index.ts';
import { readCursor, writeCursor } from './cursor.ts';
import type { DayLease } from './day-lease.ts';
import { type Identity, mayTouch } from './identity.ts';
import { getRecord, type Kept, type Kit, kept, newId, put, remove } from './kit.ts';
import { ApiError } from './problem.ts';

export const operationPrefix = 'operation/';
const keyOf = (id: string): string => `${operationPrefix}${id}`;

/** Also under the VM's name while it is not finished, for whoever learns that the VM got somewhere. */
export const vmOperationPrefix = (vm: string): string => `vmoperation/${vm}/`;
const vmOperationKey = ({ id, target }: OperationRecord): string => `${vmOperationPrefix(target.name)}${id}`;

/** How many of a VM are looked at in one go, and may wait for its host at most. */
export const someOfVm = 20;

export const isFinished = ({ state }: OperationRecord): boolean => state !== 'pending' && state !== 'running';

export interface OperationPage {
  readonly operations: readonly OperationRecord[];
  readonly next: string | undefined;
}

type Seer = Pick<Identity, 'account' | 'vms'>;

const sees = (who: Seer, { account, kind, target, only }: OperationRecord): boolean =>
  account === who.account &&
  (who.vms === undefined ||
    (kind.startsWith('vm.') && mayTouch(who, target.name)) ||
    (kind.startsWith('vms.') && JSON.stringify(only) === JSON.stringify(who.vms)));

export class Operations {
  readonly #kit: Kit;
  readonly #lease: DayLease;

  constructor(kit: Kit, lease: DayLease) {
    this.#kit = kit;
    this.#lease = lease;
  }

  /** A new one, and what puts it into the store. */
  begin(fields: Pick<OperationRecord, 'account' | 'kind' | 'target' | 'generation' | 'runner' | 'total' | 'only'>): {
    readonly operation: OperationRecord;
    readonly operations: readonly Operation[];
  } {
    const operation: OperationRecord = {
      ...fields,
      id: newId(this.#kit, 'op'),
      state: fields.runner === undefined ? 'pending' : 'running',
      step: '',
      done: 0,
      createdAtMs: this.#kit.wallMs(),
    };
    const isOfVm = operation.kind.startsWith('vm.');
    return {
      operation,
      operations: [
        put(keyOf(operation.id), operation),
        ...(isOfVm ? [put(vmOperationKey(operation), { id: operation.id })] : []),
      ],
    };
  }

  /** What changes it in the store. A finished one goes by itself after a day. */
  async change(
    before: OperationRecord,
    change: Partial<OperationRecord>,
  ): Promise<{ readonly operation: OperationRecord; readonly operations: readonly Operation[] }> {
    const operation: OperationRecord = { ...before, ...change };
    const finished = isFinished(operation);
    if (finished) operation.finishedAtMs ??= this.#kit.wallMs();
    const leaseId = finished ? await this.#lease.current() : undefined;
    return {
      operation,
      operations: [
        put(keyOf(operation.id), operation, leaseId),
        ...(finished && operation.kind.startsWith('vm.') ? [remove(vmOperationKey(operation))] : []),
      ],
    };
  }

  /** Whether it is one of theirs. */
  sees(who: Seer, operation: OperationRecord): boolean {
    return sees(who, operation);
  }

  find(id: string): Promise<Kept<OperationRecord> | undefined> {
    return getRecord(this.#kit.region, OperationRecord, keyOf(id));
  }

  /** NOT_FOUND, also of one that a key for certain VMs is not for. */
  async get(who: Seer, id: string): Promise<Kept<OperationRecord>> {
    const found = await this.find(id);
    if (found === undefined || !sees(who, found.record))
      throw new ApiError('NOT_FOUND', `there is no operation "${id}"; it is kept for a day after it has finished`);
    return found;
  }

  /** Unfinished ones of a VM, oldest first; at most `someOfVm`, so that one transaction can change them all. */
  async ofVm(vm: string): Promise<Kept<OperationRecord>[]> {
    const page = await this.#kit.region.range(prefixRange(vmOperationPrefix(vm)), { limit: someOfVm });
    const found = await Promise.all(
      page.entries.map((entry) => this.find(keyText(entry.key).slice(vmOperationPrefix(vm).length))),
    );
    return found.filter((operation) => operation !== undefined);
  }

  /** That one more may wait for the VM's host. TOO_MANY_REQUESTS. */
  async checkRoom(vm: string): Promise<void> {
    const { count } = await this.#kit.region.count(prefixRange(vmOperationPrefix(vm)));
    if (count >= someOfVm)
      throw new ApiError(
        'TOO_MANY_REQUESTS',
        `${count} operations of the VM "${vm}" wait for its host already; wait for the last of them, or delete the VM`,
      );
  }

  /** Oldest first. */
  async list(
    who: Seer,
    options: { readonly limit: number; readonly cursor: string | undefined },
  ): Promise<OperationPage> {
    const { region } = this.#kit;
    const filters = `operations ${JSON.stringify([who.account, who.vms])}`;
    const at =
      options.cursor === undefined ? undefined : readCursor(options.cursor, filters, operationPrefix, region.epoch);
    const { start, end } = prefixRange(operationPrefix);
    const operations: OperationRecord[] = [];
    let from: string | Uint8Array = at?.next ?? start;
    let revision = at?.revision;
    for (;;) {
      const page = await region.range({ start: from, end }, { revision, limit: options.limit + 1 });
      ({ revision } = page);
      for (const entry of page.entries) {
        if (operations.length === options.limit)
          return {
            operations,
            next: writeCursor({ epoch: region.epoch, revision, next: keyText(entry.key) }, filters),
          };
        const { record } = kept(OperationRecord, entry);
        if (sees(who, record)) operations.push(record);
      }
      if (page.next === undefined) return { operations, next: undefined };
      from = page.next;
    }
  }

  /**
   * What it says now unless it was told at revision `after`, then every change, until it has finished. Resolves when it has
   * begun.
   */
  async follow(
    who: Seer,
    id: string,
    after: number,
    signal: AbortSignal,
  ): Promise<AsyncIterable<{ readonly revision: number; readonly operation: OperationRecord }>> {
    const first = await this.get(who, id);
    const { region } = this.#kit;
    const key = keyOf(id);
    return (async function* () {
      if (first.modRevision > after) yield { revision: first.modRevision, operation: first.record };
      if (isFinished(first.record)) return;
      for await (const { revision, events } of region.watch(prefixRange(key), {
        from: first.modRevision + 1,
        signal,
      })) {
        for (const event of events) {
          if (event.type === 'delete') return;
          const { record } = kept(OperationRecord, event.entry);
          yield { revision, operation: record };
          if (isFinished(record)) return;
        }
      }
    })();
  }
}
