/** The network disk of a VM as this host reaches it. */
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { makeSearchable, type NetworkDisk, type VmPaths, writeDiskKey } from '../qemu/index.ts';
import { DiskExportRecord, decodeRecord, diskExportKey, epochOf, type VmRecord } from '../records/index.ts';
import type { Store } from '../store/index.ts';

const lookEveryMs = 200;

/** Waits until it is open for this stay of the VM here. StoreError, the signal's reason. */
export const networkDiskOf = async (
  { name, id, uid, epoch, disk }: VmRecord,
  { store, paths }: { readonly store: Store; readonly paths: VmPaths },
  signal: AbortSignal,
): Promise<NetworkDisk | undefined> => {
  if (disk !== 'network') return undefined;
  const key = diskExportKey(name);
  for (;;) {
    const entry = await store.get(key, { signal });
    const found = entry && decodeRecord(DiskExportRecord, key, entry.value);
    if (found?.id === id && found.epoch === epochOf({ epoch })) {
      const keyDirectory = join(paths.run, 'disk-key');
      makeSearchable(paths.run);
      writeDiskKey(keyDirectory, found.key, uid);
      return { address: found.address, port: found.port, name: id, keyDirectory };
    }
    await pause(lookEveryMs, undefined, { signal });
  }
};
