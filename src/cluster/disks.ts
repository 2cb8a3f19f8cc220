/**
 * Network disks of a region, by the one manager on whose machine they are: each VM's is opened for the epoch that its record has,
 * which ends the export of the one before, and hosts are told how to reach it. `diskexport/NAME` is there for as long as the disk
 * is, so that one whose VM has gone is removed, whenever that was.
 */
import {
  DiskExportRecord,
  diskExportKey,
  diskExportPrefix,
  epochOf,
  type NetworkDisks,
  storageKey,
  VmRecord,
} from '../records/index.ts';
import { follow } from './follow.ts';
import { entriesOf, getRecord, type Kept, type Kit, knownOf, pause, put, remove } from './kit.ts';

const againAfterMs = 2_000;

export class Disks {
  readonly #kit: Kit;
  readonly #disks: NetworkDisks | undefined;

  constructor(kit: Kit, disks: NetworkDisks | undefined) {
    this.#kit = kit;
    this.#disks = disks;
  }

  /** Until the signal. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const disks = this.#disks;
    if (disks === undefined) return;
    const { region } = this.#kit;
    await this.#until(signal, 'saying that there are network disks', () =>
      region.commit({ operations: [put(storageKey, {})] }),
    );
    const openOf = async ({ record }: Kept<VmRecord>): Promise<void> => {
      if (record.disk === 'network')
        await this.#until(signal, 'opening a network disk', () => this.#open(disks, record));
    };
    const removed = async (name: string): Promise<void> => {
      await this.#until(signal, 'removing a network disk', () => this.#removed(disks, name));
    };
    await follow(
      this.#kit,
      { store: region, prefix: 'vm/', schema: VmRecord, signal },
      {
        all: async (vms) => {
          for (const { key } of knownOf(
            this.#kit,
            DiskExportRecord,
            (await entriesOf(region, diskExportPrefix)).entries,
          ))
            await removed(key.slice(diskExportPrefix.length));
          for (const vm of vms) await openOf(vm);
        },
        put: openOf,
        removed: (key) => removed(key.slice('vm/'.length)),
      },
    );
  }

  /** Tries a few times: one disk that fails is not to be in the way of the others. */
  async #until(signal: AbortSignal, what: string, work: () => Promise<unknown>): Promise<void> {
    for (let tries = 0; tries < 3 && !signal.aborted; tries++) {
      try {
        await work();
        return;
      } catch (error) {
        if (!signal.aborted) this.#kit.log.error({ err: error }, `${what} failed`);
        await pause(againAfterMs, signal);
      }
    }
  }

  async #open(disks: NetworkDisks, { name, id, epoch, diskBytes: sizeBytes = 0 }: VmRecord): Promise<void> {
    const wanted = epochOf({ epoch });
    const known = await getRecord(this.#kit.region, DiskExportRecord, diskExportKey(name));
    if (known !== undefined && known.record.id !== id) await disks.remove(known.record.id);
    if (known?.record.id === id && known.record.epoch > wanted) return;
    const record: DiskExportRecord = { id, epoch: wanted, ...(await disks.open({ id, epoch: wanted, sizeBytes })) };
    if (JSON.stringify(known?.record) !== JSON.stringify(record))
      await this.#kit.region.commit({ operations: [put(diskExportKey(name), record)] });
  }

  async #removed(disks: NetworkDisks, name: string): Promise<void> {
    const { region } = this.#kit;
    const [vm, known] = await Promise.all([
      getRecord(region, VmRecord, `vm/${name}`),
      getRecord(region, DiskExportRecord, diskExportKey(name)),
    ]);
    if (known === undefined || vm?.record.id === known.record.id) return;
    await disks.remove(known.record.id);
    await region.commit({
      conditions: [{ key: known.key, modRevision: known.modRevision }],
      operations: [remove(known.key)],
    });
  }
}
