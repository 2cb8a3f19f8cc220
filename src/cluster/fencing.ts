/**
 * Hosts that were not heard of for as long as their lease: VMs that may start elsewhere are given to other hosts, the others are
 * said to be lost until their host is back. A host ends its VMs of the first kind by itself before its lease has run out, by a
 * clock of its own (docs/adr/0024), so that none is ever started twice.
 *
 * Every manager does it, under conditions: on `hostlost/HOST`, which goes in the transaction that grants the host another lease.
 */
import { setTimeout as pause } from 'node:timers/promises';
import {
  HostLostRecord,
  hostLeaseKey,
  hostLostKey,
  hostLostPrefix,
  hostVmPrefix,
  lostVmKey,
  lostVmPrefix,
  lostVmsOf,
  VmRecord,
  VmStatusRecord,
} from '../records/index.ts';
import { type Condition, keyText } from '../store/index.ts';
import { follow } from './follow.ts';
import type { Hosts } from './hosts.ts';
import { getRecord, type Kept, type Kit, pagesOf, put, remove } from './kit.ts';
import { canMove, type Moves } from './moves.ts';
import { ApiError } from './problem.ts';
import type { Reconciler } from './reconciler.ts';
import { mayRun, statusKey, vmKey } from './vms.ts';

const lookEveryMs = 500;
/** For VMs that no host had room for. */
const againAfterMs = 5_000;

interface Lost {
  readonly modRevision: number;
  /** By `performance.now`: not before its margin is over, counted from when it was heard of here. */
  nextAtMs: number;
}

export interface FencingParts {
  readonly hosts: Hosts;
  readonly moves: Moves;
  readonly reconciler: Pick<Reconciler, 'settle'>;
  /** Between the end of a lease, as it is heard of here, and the first VM that is started elsewhere. */
  readonly marginMs: number;
}

export class Fencing {
  readonly #kit: Kit;
  readonly #parts: FencingParts;
  readonly #lost = new Map<string, Lost>();

  constructor(kit: Kit, parts: FencingParts) {
    this.#kit = kit;
    this.#parts = parts;
  }

  /** Until the signal. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { region } = this.#kit;
    const hear = ({ key, modRevision }: Kept<HostLostRecord>): void => {
      const nextAtMs = performance.now() + this.#parts.marginMs;
      this.#lost.set(key.slice(hostLostPrefix.length), { modRevision, nextAtMs });
    };
    const following = follow(
      this.#kit,
      { store: region, prefix: hostLostPrefix, schema: HostLostRecord, signal },
      {
        all: async (records) => {
          const before = new Map(this.#lost);
          this.#lost.clear();
          for (const record of records) {
            hear(record);
            const host = record.key.slice(hostLostPrefix.length);
            const known = before.get(host);
            if (known?.modRevision === record.modRevision) this.#lost.set(host, known);
          }
          for await (const { entries } of pagesOf(region, lostVmPrefix))
            for (const { key } of entries) {
              const [host = '', vm = ''] = keyText(key).slice(lostVmPrefix.length).split('/');
              if (!this.#lost.has(host)) await this.#found(host, vm);
            }
        },
        put: hear,
        removed: async (key) => {
          const host = key.slice(hostLostPrefix.length);
          this.#lost.delete(host);
          for await (const { entries } of pagesOf(region, lostVmsOf(host)))
            for (const entry of entries) await this.#found(host, keyText(entry.key).slice(lostVmsOf(host).length));
        },
      },
    );
    await Promise.all([following, this.#look(signal)]);
  }

  async #look(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await pause(lookEveryMs, undefined, { signal, ref: false }).catch(() => {});
      for (const host of this.#parts.hosts.notHeardOf()) {
        if (signal.aborted) return;
        try {
          await this.#lookAt(host, signal);
        } catch (error) {
          if (!signal.aborted) this.#kit.log.error({ err: error, host }, 'seeing to a host that is lost failed');
        }
      }
    }
  }

  async #lookAt(host: string, signal: AbortSignal): Promise<void> {
    const lost = this.#lost.get(host);
    if (lost === undefined) return this.#lose(host);
    if (performance.now() < lost.nextAtMs) return;
    lost.nextAtMs = performance.now() + againAfterMs;
    const isLost: Condition = { key: hostLostKey(host), modRevision: lost.modRevision };
    for await (const { entries } of pagesOf(this.#kit.region, hostVmPrefix(host)))
      for (const { key } of entries) {
        if (signal.aborted || this.#lost.get(host) !== lost) return;
        await this.#seeTo(keyText(key).slice(hostVmPrefix(host).length), host, isLost);
      }
  }

  /** Nothing happens where it has a lease, or another manager said so before. */
  async #lose(host: string): Promise<void> {
    await this.#kit.region.commit({
      conditions: [
        { key: hostLeaseKey(host), exists: false },
        { key: hostLostKey(host), exists: false },
      ],
      operations: [put(hostLostKey(host), { sinceMs: this.#kit.wallMs() } satisfies HostLostRecord)],
    });
  }

  /** Starts it elsewhere, or says that it is lost. */
  async #seeTo(name: string, host: string, isLost: Condition): Promise<void> {
    const vm = await getRecord(this.#kit.region, VmRecord, vmKey(name));
    if (vm === undefined || vm.record.host !== host || vm.record.desired === 'deleted') return;
    const status = await getRecord(this.#kit.region, VmStatusRecord, statusKey(name));
    const told = status?.record.id === vm.record.id ? status.record : undefined;
    // One that was ended for good reason is not begun anew by itself.
    if (told?.status === 'compromised') return;
    let reason = `its host "${host}" is not heard of, and it starts nowhere else`;
    if (vm.record.restartWhere === 'elsewhere' && canMove(vm.record)) {
      try {
        await this.#parts.moves.move(vm, { conditions: [isLost], why: `${host} was lost` });
        return;
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (error.code !== 'NO_HOST') return;
        reason = `its host "${host}" is not heard of, and ${error.message}`;
      }
    }
    if (told !== undefined && !mayRun(told)) return;
    if (vm.record.lost?.reason === reason) return;
    const lost = { sinceMs: vm.record.lost?.sinceMs ?? this.#kit.wallMs(), reason };
    const { committed } = await this.#kit.region.commit({
      conditions: [{ key: vm.key, modRevision: vm.modRevision }, isLost],
      operations: [put(vm.key, { ...vm.record, lost }), put(lostVmKey(host, name), {})],
    });
    if (committed) await this.#parts.reconciler.settle(name);
  }

  /** Its host has a lease again. */
  async #found(host: string, name: string): Promise<void> {
    for (;;) {
      const vm = await getRecord(this.#kit.region, VmRecord, vmKey(name));
      const isItsOwn = vm?.record.host === host && vm.record.lost !== undefined;
      const { lost: _lost, ...rest } = vm?.record ?? {};
      const { committed } = await this.#kit.region.commit({
        conditions: [
          { key: hostLostKey(host), exists: false },
          ...(vm === undefined
            ? [{ key: vmKey(name), exists: false } as const]
            : [{ key: vm.key, modRevision: vm.modRevision }]),
        ],
        operations: [remove(lostVmKey(host, name)), ...(isItsOwn ? [put(vm.key, rest)] : [])],
      });
      if (committed) return this.#parts.reconciler.settle(name);
      if (await this.#kit.region.get(hostLostKey(host))) return;
    }
  }
}
