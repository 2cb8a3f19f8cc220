/**
 * Follows what the host reports in `vmstatus/`: ends the operations that asked for it, has the global store's index follow,
 * and frees everything of a VM that the host has deleted. It keeps nothing in memory and acts on what stands in the store,
 * under conditions, so that a crash, a repeat or a second manager does no harm.
 */
import { IndexedRecord, type OperationRecord, VmRecord, type VmStatusRecord } from '../records/index.ts';
import { keyText, limits, type Operation, prefixRange, StoreError, type StoreErrorCode } from '../store/index.ts';
import type { Addresses } from './addresses.ts';
import type { Hosts } from './hosts.ts';
import { entriesOf, getRecord, type Kept, type Kit, pagesOf, pause, put, remove } from './kit.ts';
import { type Operations, someOfVm } from './operations.ts';
import { outboxEntry } from './outbox.ts';
import { indexedKey, reported, seedKey, statusOf, useKeyOf, type Vms, vmKey } from './vms.ts';

const prefix = 'vmstatus/';
const retryMs = 500;
/** No other VM would fare better. */
const storeIsAway: ReadonlySet<StoreErrorCode> = new Set(['STORE_UNAVAILABLE', 'STORE_CLOSED']);

export class Reconciler {
  readonly #kit: Kit;
  readonly #vms: Vms;
  readonly #operations: Operations;
  readonly #hosts: Hosts;
  readonly #addresses: Addresses;

  constructor(
    kit: Kit,
    parts: {
      readonly vms: Vms;
      readonly operations: Operations;
      readonly hosts: Hosts;
      readonly addresses: Addresses;
    },
  ) {
    this.#kit = kit;
    this.#vms = parts.vms;
    this.#operations = parts.operations;
    this.#hosts = parts.hosts;
    this.#addresses = parts.addresses;
  }

  /** Until the signal. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { region, log } = this.#kit;
    while (!signal.aborted) {
      try {
        const { revision, entries } = await entriesOf(region, prefix);
        await this.#settleAll(entries.map(({ key }) => keyText(key).slice(prefix.length)));
        for await (const { events } of region.watch(prefixRange(prefix), { from: revision + 1, signal }))
          for (const event of events)
            if (event.type === 'put') await this.settle(keyText(event.entry.key).slice(prefix.length));
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof StoreError && error.code === 'STORE_COMPACTED'))
          log.error({ err: error }, 'following the status of VMs failed; beginning anew');
        await pause(retryMs, signal);
      }
    }
  }

  /** One VM's failure does not keep the others waiting. Rejects after all with the first, or at once when no store answers. */
  async #settleAll(names: readonly string[]): Promise<void> {
    let failure: Error | undefined;
    for (const name of names) {
      try {
        await this.settle(name);
      } catch (error) {
        if (error instanceof StoreError && storeIsAway.has(error.code)) throw error;
        failure ??= new Error(`following the status of VM "${name}" failed`, { cause: error });
      }
    }
    if (failure !== undefined) throw failure;
  }

  /** Brings operations and index of one VM up to what the host reports of it. */
  async settle(name: string): Promise<void> {
    for (;;) {
      const [vm, { status }] = await Promise.all([
        getRecord(this.#kit.region, VmRecord, vmKey(name)),
        reported(this.#kit, name),
      ]);
      if (vm === undefined || status === undefined || status.record.id !== vm.record.id) return;
      const operations = await this.#operations.ofVm(name);
      const settled =
        status.record.status === 'deleted' && vm.record.desired === 'deleted'
          ? await this.#free(vm, status, operations)
          : await this.#follow(vm, status, operations);
      if (settled) return;
    }
  }

  async #follow(
    vm: Kept<VmRecord>,
    status: Kept<VmStatusRecord>,
    operations: readonly Kept<OperationRecord>[],
  ): Promise<boolean> {
    const { name, id } = vm.record;
    const conditions = [{ key: vm.key, modRevision: vm.modRevision }];
    const changes: Operation[] = [];
    for (const { key, record, modRevision } of operations) {
      const change = resultOf(record, vm.record, status.record);
      if (change === undefined) continue;
      conditions.push({ key, modRevision });
      changes.push(...(await this.#operations.change(record, change)).operations);
    }
    const indexed = await getRecord(this.#kit.region, IndexedRecord, indexedKey(name));
    const index = this.#vms.indexKey(vm.record, statusOf({ record: vm.record, status: status.record }));
    if (indexed !== undefined && indexed.record.key !== index) {
      conditions.push({ key: indexed.key, modRevision: indexed.modRevision });
      changes.push(
        put(indexed.key, { id, key: index } satisfies IndexedRecord),
        outboxEntry(this.#kit, [
          { type: 'delete', key: indexed.record.key },
          { type: 'put', key: index, value: JSON.stringify({ name }) },
        ]),
      );
    }
    if (changes.length === 0) return true;
    return (await this.#kit.region.commit({ conditions, operations: changes })).committed;
  }

  /** The VM's records go in one transaction; what may be more than one holds, its tree and boots, goes before them. */
  async #free(
    vm: Kept<VmRecord>,
    status: Kept<VmStatusRecord>,
    operations: readonly Kept<OperationRecord>[],
  ): Promise<boolean> {
    const { region } = this.#kit;
    const { name, id } = vm.record;
    for (const below of [`tree/${id}/`, `boot/${name}/`])
      for await (const { entries } of pagesOf(region, below))
        for (let i = 0; i < entries.length; i += limits.operations)
          await region.commit({
            operations: entries.slice(i, i + limits.operations).map(({ key }) => ({ type: 'delete', key })),
          });
    const ends: Operation[] = [];
    for (const { record } of operations) {
      const change =
        record.kind === 'vm.delete' ? succeeded : (resultOf(record, vm.record, status.record) ?? superseded);
      ends.push(...(await this.#operations.change(record, change)).operations);
    }
    if (operations.length === someOfVm) {
      await region.commit({ conditions: [{ key: vm.key, modRevision: vm.modRevision }], operations: ends });
      return false;
    }
    const indexed = await getRecord(region, IndexedRecord, indexedKey(name));
    const use = useKeyOf(vm.record);
    const resting = await this.#addresses.rest(vm.record);
    return this.#hosts.release(vm.record, async (freeing) => {
      const outcome = await region.commit({
        conditions: [
          ...[vm, ...operations].map(({ key, modRevision }) => ({ key, modRevision })),
          ...freeing.conditions,
        ],
        operations: [
          ...[vm.key, status.key, seedKey(name), indexedKey(name)].map(remove),
          ...freeing.operations,
          ...resting,
          ...(use === undefined ? [] : [remove(use)]),
          ...ends,
          ...(indexed ? [outboxEntry(this.#kit, [{ type: 'delete', key: indexed.record.key }])] : []),
        ],
      });
      return outcome.committed;
    });
  }
}

const succeeded: Partial<OperationRecord> = { state: 'succeeded', step: '', done: 1, total: 1 };

const superseded: Partial<OperationRecord> = {
  state: 'cancelled',
  error: { code: 'SUPERSEDED', detail: 'a later request to the same VM took its place' },
};

/** Of what a host says: so much of it goes into each operation, which are changed in one transaction. */
const longestReason = 4_096;

/** What a status means for an operation that is not finished; undefined: nothing new. */
export const resultOf = (
  operation: OperationRecord,
  vm: VmRecord,
  status: VmStatusRecord,
): Partial<OperationRecord> | undefined => {
  if (operation.target.id !== vm.id) return superseded;
  const generation = operation.generation ?? 0;
  if (status.generation < generation) return undefined;
  if (status.generation > generation) return superseded;
  if (status.outcome === 'done') return succeeded;
  const reason = status.reason.slice(0, longestReason);
  if (status.outcome === 'failed')
    return { state: 'failed', error: { code: 'VM_FAILED', detail: reason || `the VM is ${status.status}` } };
  const step = reason || status.status;
  return operation.state === 'running' && operation.step === step ? undefined : { state: 'running', step };
};
