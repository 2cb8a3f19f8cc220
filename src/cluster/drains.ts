/**
 * Hosts that are emptied: VMs that can go are stopped by their host, given to another, and started there; those whose disk is on
 * the host stay. What is under way is in the store (`drain/HOST`, `moving` of a VM's record), and every manager goes on with it,
 * under conditions.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type { OperationRecord, VmStatusRecord } from '../records/index.ts';
import { DrainRecord, drainKey, drainPrefix, HostRecord, hostKey, hostVmPrefix, VmRecord } from '../records/index.ts';
import { type Condition, keyText } from '../store/index.ts';
import { follow } from './follow.ts';
import type { Hosts } from './hosts.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { getRecord, type Kept, type Kit, pagesOf, put, remove } from './kit.ts';
import { canMove, isMoving, type Moves } from './moves.ts';
import { isFinished, type Operations } from './operations.ts';
import { ApiError } from './problem.ts';
import { reported, vmKey } from './vms.ts';

const lookEveryMs = 500;
/** VMs of one host that are stopped and have not gone yet. */
const mostAtOnce = 8;
const namesTold = 10;

/** Where the VMs of a host are with it, by name. */
interface Found {
  readonly stay: string[];
  readonly leave: string[];
  /** Why one that could leave does not. */
  readonly stuck: Map<string, string>;
}

export class Drains {
  readonly #kit: Kit;
  readonly #hosts: Hosts;
  readonly #moves: Moves;
  readonly #operations: Operations;
  readonly #known = new Set<string>();

  constructor(kit: Kit, parts: { readonly hosts: Hosts; readonly moves: Moves; readonly operations: Operations }) {
    this.#kit = kit;
    this.#hosts = parts.hosts;
    this.#moves = parts.moves;
    this.#operations = parts.operations;
  }

  /** Cordons the host and begins. NOT_FOUND; WRONG_STATE where it is under way. */
  async begin(
    account: string,
    host: string,
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    const { condition, operation: change } = await this.#hosts.change(host, { cordoned: true, draining: true });
    let total = 0;
    for await (const vm of this.#vmsOf(host)) if (canMove(vm.record)) total++;
    const { operation, operations } = this.#operations.begin({
      account,
      kind: 'host.drain',
      target: { name: host },
      total,
    });
    const key = drainKey(host);
    const known = await getRecord(this.#kit.region, DrainRecord, key);
    if (known !== undefined)
      throw new ApiError('WRONG_STATE', `the host "${host}" is being drained: operation "${known.record.operation}"`);
    const told = answer(operation);
    const done = await commit(
      {
        conditions: [condition, { key, exists: false }],
        operations: [change, put(key, { operation: operation.id } satisfies DrainRecord), ...operations],
      },
      told,
    );
    if (done) return told;
    throw new ApiError('CONFLICT', `the host "${host}" was changed at the same time; try again`, {
      retryAfterSeconds: 1,
    });
  }

  /** Until the signal. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const hostOf = (key: string): string => key.slice(drainPrefix.length);
    const following = follow(
      this.#kit,
      { store: this.#kit.region, prefix: drainPrefix, schema: DrainRecord, signal },
      {
        all: (records) => {
          this.#known.clear();
          for (const { key } of records) this.#known.add(hostOf(key));
        },
        put: ({ key }) => void this.#known.add(hostOf(key)),
        removed: (key) => void this.#known.delete(hostOf(key)),
      },
    );
    while (!signal.aborted) {
      await pause(lookEveryMs, undefined, { signal, ref: false }).catch(() => {});
      for (const host of this.#known)
        await this.#lookAt(host, signal).catch((error: unknown) => {
          if (!signal.aborted) this.#kit.log.error({ err: error, host }, 'draining a host failed; trying again');
        });
    }
    await following;
  }

  async *#vmsOf(host: string): AsyncGenerator<Kept<VmRecord>> {
    for await (const { entries } of pagesOf(this.#kit.region, hostVmPrefix(host)))
      for (const { key } of entries) {
        const vm = await getRecord(this.#kit.region, VmRecord, vmKey(keyText(key).slice(hostVmPrefix(host).length)));
        if (vm?.record.host === host) yield vm;
      }
  }

  async #lookAt(host: string, signal: AbortSignal): Promise<void> {
    const { region } = this.#kit;
    const [drain, record] = await Promise.all([
      getRecord(region, DrainRecord, drainKey(host)),
      getRecord(region, HostRecord, hostKey(host)),
    ]);
    if (drain === undefined) return;
    const operation = await this.#operations.find(drain.record.operation);
    const isWanted = operation !== undefined && !isFinished(operation.record) && record?.record.draining === true;
    const found: Found = { stay: [], leave: [], stuck: new Map() };
    const isThis: Condition = { key: drain.key, modRevision: drain.modRevision };
    for await (const vm of this.#vmsOf(host)) {
      if (signal.aborted) return;
      await (isWanted ? this.#see(vm, found, isThis) : this.#stay(vm));
    }
    if (operation === undefined || isFinished(operation.record)) {
      await region.commit({ conditions: [isThis], operations: [remove(drain.key)] });
      return;
    }
    const change: Partial<OperationRecord> = isWanted
      ? progressOf(operation.record, found)
      : { state: 'cancelled', error: { code: 'CANCELLED', detail: `"${host}" is not to be drained any more` } };
    const after = { ...operation.record, ...change };
    if (JSON.stringify(after) === JSON.stringify(operation.record)) return;
    const { operations } = await this.#operations.change(operation.record, change);
    await region.commit({
      conditions: [isThis, { key: operation.key, modRevision: operation.modRevision }],
      operations: [...operations, ...(isFinished(after) ? [remove(drain.key)] : [])],
    });
  }

  async #see(vm: Kept<VmRecord>, { stay, leave, stuck }: Found, isThis: Condition): Promise<void> {
    const { record } = vm;
    const { name, id } = record;
    const { status } = await reported(this.#kit, name);
    const told = status?.record.id === id ? status.record : undefined;
    if (!canMove(record) || told?.status === 'compromised') return void stay.push(name);
    leave.push(name);
    if (record.desired === 'deleted') return;
    const isDown = told?.generation === record.generation && isAtRest(told);
    try {
      if (record.desired === 'stopped' && isDown) {
        await this.#moves.move(vm, { conditions: [isThis], why: 'that host is drained' });
        leave.pop();
        return;
      }
      if (record.desired === 'stopped' || leave.length > mostAtOnce) return;
      // Rather there than stopped and nowhere.
      await this.#hosts.mustFitElsewhere(record);
      const generation = record.generation + 1;
      const moving = { generation, runs: told?.status !== 'stopped' };
      await this.#kit.region.commit({
        conditions: [{ key: vm.key, modRevision: vm.modRevision }, isThis],
        operations: [put(vm.key, { ...record, generation, desired: 'stopped', moving } satisfies VmRecord)],
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.code === 'NO_HOST') stuck.set(name, error.message);
    }
  }

  /** One that was stopped in order to leave goes on where it is. */
  async #stay({ key, modRevision, record }: Kept<VmRecord>): Promise<void> {
    if (!isMoving(record)) return;
    const { moving, ...rest } = record;
    const { generation } = record;
    const back: VmRecord = { ...rest, desired: 'running', generation: generation + (moving?.runs === true ? 1 : 0) };
    await this.#kit.region.commit({ conditions: [{ key, modRevision }], operations: [put(key, back)] });
  }
}

/** Nothing of it runs: it was stopped, or had failed, which no request to stop changes. */
const isAtRest = ({ status, outcome }: VmStatusRecord): boolean =>
  (status === 'stopped' && outcome === 'done') || (status === 'failed' && outcome === 'failed');

const listed = (names: readonly string[]): string =>
  names.length <= namesTold
    ? names.join(', ')
    : `${names.slice(0, namesTold).join(', ')} and ${names.length - namesTold} more`;

const progressOf = (
  { total = 0 }: OperationRecord,
  { stay, leave, stuck }: Found,
): Pick<OperationRecord, 'state' | 'step' | 'done' | 'total'> & Pick<Partial<OperationRecord>, 'error'> => {
  const all = Math.max(total, leave.length);
  const staying = stay.length === 0 ? '' : `these stay, as their disks are there: ${listed(stay)}`;
  const progress = { done: all - leave.length, total: all };
  if (leave.length === 0) return { ...progress, state: 'succeeded', step: staying };
  const [reason] = stuck.values();
  if (reason === undefined || stuck.size < leave.length) {
    const leaving = `leaving: ${listed(leave)}`;
    return { ...progress, state: 'running', step: staying === '' ? leaving : `${leaving}; ${staying}` };
  }
  const detail = `${stuck.size} of its VMs can go nowhere, and run on: ${reason}${staying && `; ${staying}`}`;
  return { ...progress, state: 'failed', step: staying, error: { code: 'NO_HOST', detail } };
};
