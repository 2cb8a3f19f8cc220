/** VMs that go to another host: the transaction in which one is taken from a host and given to another. */
import {
  epochOf,
  type HostLeftRecord,
  hostLeftKey,
  lostVmKey,
  ownHost,
  type VmRecord,
  type VmStatusRecord,
} from '../records/index.ts';
import type { Condition } from '../store/index.ts';
import type { Hosts } from './hosts.ts';
import { type Kept, type Kit, put, remove, unchanged } from './kit.ts';
import { ApiError } from './problem.ts';
import { mayRun, reported, statusKey } from './vms.ts';

/** Of a VM: for so many moves what was recorded of it stays to be seen by its account. */
const staysKept = 32;

export interface Move {
  /** In the transaction: why nothing of it runs where it was. */
  readonly conditions: readonly Condition[];
  /** For people; follows "it went from h1 to h2: ". */
  readonly why: string;
}

/** Whether it is stopped for that alone: nobody has asked for anything since. */
export const isMoving = ({ moving, generation }: VmRecord): boolean => moving?.generation === generation;

/** Whether what it has on its host's disk may be left there. */
export const canMove = ({ kind, stateless, disk }: VmRecord): boolean =>
  kind === 'managed' && (stateless === true || disk === 'network');

export class Moves {
  readonly #kit: Kit;
  readonly #hosts: Hosts;

  constructor(kit: Kit, hosts: Hosts) {
    this.#kit = kit;
    this.#hosts = hosts;
  }

  /**
   * Gives a VM to another host, which starts it where it is to run; the one that it leaves can write nothing of it from then on,
   * and is told to delete what it has. Returns the host. NO_HOST; CONFLICT: it is not as it was read any more.
   */
  async move(vm: Kept<VmRecord>, { conditions, why }: Move): Promise<string> {
    const { region } = this.#kit;
    const { record } = vm;
    const { name, id, uid, host: from = ownHost } = record;
    const { entry, status } = await reported(this.#kit, name);
    const told = status?.record.id === id ? status.record : undefined;
    const epoch = epochOf(record);
    let to = '';
    await this.#hosts.move(record, async (seat) => {
      const { uid: _uid, lost: _lost, moving, ...rest } = record;
      const moved: VmRecord = {
        ...rest,
        ...(isMoving(record) && { desired: 'running' }),
        ...(isMoving(record) && moving?.runs === true && { generation: record.generation + 1 }),
        host: seat.host,
        ...(seat.uid !== undefined && { uid: seat.uid }),
        holds: [...seat.holds],
        epoch: epoch + 1,
        stays: staysUntil(this.#kit.wallMs(), record),
      };
      const outcome = await region.commit({
        conditions: [
          { key: vm.key, modRevision: vm.modRevision },
          unchanged(statusKey(name), entry),
          ...conditions,
          ...seat.conditions,
        ],
        operations: [
          put(vm.key, moved),
          ...(told === undefined
            ? []
            : [put(statusKey(name), handedOver(told, moved, `${from} to ${seat.host}: ${why}`))]),
          put(hostLeftKey(from, name), { id, epoch, ...(uid !== undefined && { uid }) } satisfies HostLeftRecord),
          // How that host finds its processes again is of no use to another.
          remove(`machine/${name}`),
          remove(lostVmKey(from, name)),
          ...seat.operations,
        ],
      });
      if (outcome.committed) {
        to = seat.host;
        return true;
      }
      if (outcome.unmet.some((index) => index < 2 + conditions.length)) throw overtaken(name);
      return false;
    });
    return to;
  }
}

/** Where it was until now, and before. */
const staysUntil = (untilMs: number, { stays = [], host = ownHost, createdAtMs }: VmRecord): VmRecord['stays'] => {
  const fromMs = stays.at(-1)?.untilMs ?? createdAtMs;
  return [...stays, { host, fromMs, untilMs }].slice(-staysKept);
};

/** What is told of it until its new host does. */
const handedOver = (status: VmStatusRecord, { desired, generation }: VmRecord, words: string): VmStatusRecord => {
  const runs =
    desired === 'running' && (mayRun(status) || status.status === 'failed' || generation > status.generation);
  const { deviceVersion: _version, deviceOutdated: _outdated, ...rest } = status;
  return {
    ...rest,
    status: runs ? 'starting' : 'stopped',
    reason: `it went from ${words}`,
    sinceMs: Date.now(),
    outcome: runs ? 'underway' : status.outcome,
  };
};

const overtaken = (name: string): ApiError =>
  new ApiError('CONFLICT', `the VM "${name}" was changed while it was moved; try again`, { retryAfterSeconds: 1 });
