/**
 * Network disks of a region, by the one manager on whose machine they are: each VM's is opened for the epoch that its record has,
 * which ends the export of the one before, and hosts are told how to reach it. Which directory they are in is claimed first: from a
 * second one VMs would get other, empty disks. `diskexport/NAME` is there for as long as the disk
 * is, so that one whose VM has gone is removed, whenever that was.
 */
import { setTimeout as pause } from 'node:timers/promises';
import {
  DiskExportRecord,
  diskExportKey,
  diskExportPrefix,
  epochOf,
  type NetworkDisks,
  StorageRecord,
  storageKey,
  VmRecord,
} from '../records/index.ts';
import { keyText } from '../store/index.ts';
import { follow } from './follow.ts';
import { entriesOf, getRecord, type Kit, put, remove, unchanged } from './kit.ts';

const againAfterMs = 2_000;

export class Disks {
  readonly #kit: Kit;
  readonly #disks: NetworkDisks | undefined;
  /** VMs of which something is to be seen to: one that fails is in nobody's way, and is tried again. */
  readonly #waiting = new Set<string>();
  /** Names of VMs by the ids of their disks, of those that are open. */
  readonly #names = new Map<string, string>();
  #seeing: Promise<void> = Promise.resolve();
  #isClaimed = false;

  constructor(kit: Kit, disks: NetworkDisks | undefined) {
    this.#kit = kit;
    this.#disks = disks;
  }

  /** Until the signal. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const disks = this.#disks;
    if (disks === undefined) return;
    const { region } = this.#kit;
    const see = async (name: string): Promise<void> => {
      if (!this.#isClaimed) return;
      this.#waiting.add(name);
      return this.#see(disks, name, signal);
    };
    const following = follow(
      this.#kit,
      { store: region, prefix: 'vm/', schema: VmRecord, signal },
      {
        all: async (vms) => {
          this.#isClaimed = await this.#claim(disks.id);
          if (!this.#isClaimed) return;
          for (const { key } of (await entriesOf(region, diskExportPrefix)).entries)
            await see(keyText(key).slice(diskExportPrefix.length));
          for (const { record } of vms) if (record.disk === 'network') await see(record.name);
        },
        put: ({ record }) => (record.disk === 'network' ? see(record.name) : undefined),
        removed: (key) => see(key.slice('vm/'.length)),
      },
    );
    while (!signal.aborted) {
      await pause(againAfterMs, undefined, { signal, ref: false }).catch(() => {});
      for (const id of disks.lost()) {
        const name = this.#names.get(id);
        if (name !== undefined) this.#waiting.add(name);
      }
      for (const name of this.#waiting) if (!signal.aborted) await this.#see(disks, name, signal);
    }
    await following;
  }

  async #claim(id: string): Promise<boolean> {
    const { region, log } = this.#kit;
    for (;;) {
      const found = await getRecord(region, StorageRecord, storageKey);
      if (found?.record.id === id) return true;
      if (found?.record.id !== undefined) {
        log.error(
          `the disks of this manager are not used: the region has its network disks in another directory; start one manager with --disks, and where the other is lost for good, write "${found.record.id}" into the file "id" of this one`,
        );
        return false;
      }
      const operations = [put(storageKey, { id } satisfies StorageRecord)];
      if ((await region.commit({ conditions: [unchanged(storageKey, found)], operations })).committed) return true;
    }
  }

  /** One at a time: it is asked for by what is heard, and again by what failed. */
  #see(disks: NetworkDisks, name: string, signal: AbortSignal): Promise<void> {
    const before = this.#seeing;
    this.#seeing = this.#seeNow(before, disks, name, signal);
    return this.#seeing;
  }

  async #seeNow(before: Promise<void>, disks: NetworkDisks, name: string, signal: AbortSignal): Promise<void> {
    await before;
    if (!this.#waiting.has(name) || signal.aborted) return;
    try {
      await this.#settle(disks, name);
      this.#waiting.delete(name);
    } catch (error) {
      if (!signal.aborted) this.#kit.log.error({ err: error, vm: name }, 'a network disk failed; trying again');
    }
  }

  /** Brings the disk of a VM of that name to what its record says. */
  async #settle(disks: NetworkDisks, name: string): Promise<void> {
    const { region } = this.#kit;
    const [vm, known] = await Promise.all([
      getRecord(region, VmRecord, `vm/${name}`),
      getRecord(region, DiskExportRecord, diskExportKey(name)),
    ]);
    if (known !== undefined && known.record.id !== vm?.record.id) {
      await disks.remove(known.record.id);
      this.#names.delete(known.record.id);
      await region.commit({
        conditions: [{ key: known.key, modRevision: known.modRevision }],
        operations: [remove(known.key)],
      });
    }
    if (vm?.record.disk !== 'network') return;
    const { id, diskBytes: sizeBytes = 0 } = vm.record;
    const epoch = epochOf(vm.record);
    const record: DiskExportRecord = { id, epoch, ...(await disks.open({ id, epoch, sizeBytes })) };
    this.#names.set(id, name);
    if (JSON.stringify(known?.record) !== JSON.stringify(record))
      await region.commit({ operations: [put(diskExportKey(name), record)] });
  }
}
