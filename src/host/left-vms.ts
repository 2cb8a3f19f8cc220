/** VMs that were taken from this host: all that it has of one goes, before anything else of that name is taken up. */
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { killAllOf, killMachine, killStrays, vmPaths } from '../qemu/index.ts';
import { decodeRecord, HostLeftRecord, hostLeftKey, hostLeftPrefix } from '../records/index.ts';
import { type Entry, keyText, prefixRange, type Store } from '../store/index.ts';
import { devicePaths } from './device-paths.ts';

export interface Place {
  readonly stateDirectory: string;
  readonly runDirectory: string;
}

/** Disk, logs and sockets of a VM, and whatever runs as its user, whom the next VM may be given. */
export const removeFiles = (place: Place, name: string, uid: number | undefined): void => {
  if (uid !== undefined) killAllOf(uid);
  for (const directory of directoriesOf(place, name)) rmSync(directory, { recursive: true, force: true });
};

const directoriesOf = ({ stateDirectory, runDirectory }: Place, name: string): string[] =>
  [stateDirectory, runDirectory].map((directory) => join(directory, 'vms', name));

export class LeftVms {
  readonly #store: Store;
  readonly #host: string;
  readonly #place: Place;

  constructor(store: Store, host: string, place: Place) {
    this.#store = store;
    this.#host = host;
    this.#place = place;
  }

  /** Removes all that are known. StoreError. */
  async removeAll(): Promise<void> {
    const prefix = hostLeftPrefix(this.#host);
    const range = prefixRange(prefix);
    for (let start: string | Uint8Array | undefined = range.start; start !== undefined; ) {
      const page = await this.#store.range({ ...range, start });
      for (const entry of page.entries) await this.#remove(keyText(entry.key).slice(prefix.length), entry);
      start = page.next;
    }
  }

  /** Whether it was taken from this host. StoreError. */
  async has(name: string): Promise<boolean> {
    return (await this.#store.get(hostLeftKey(this.#host, name))) !== undefined;
  }

  /** Removes what was left of it, where it was taken from this host. StoreError. */
  async remove(name: string): Promise<void> {
    const entry = await this.#store.get(hostLeftKey(this.#host, name));
    if (entry !== undefined) await this.#remove(name, entry);
  }

  async #remove(name: string, { key, value, modRevision }: Entry): Promise<void> {
    const { uid } = decodeRecord(HostLeftRecord, keyText(key), value);
    const { stateDirectory, runDirectory } = this.#place;
    killMachine(vmPaths(stateDirectory, runDirectory, name));
    killStrays(devicePaths(stateDirectory, runDirectory, name).link);
    // Of a machine that had this host's name before, the user may be anybody here.
    if (directoriesOf(this.#place, name).some((directory) => existsSync(directory)))
      removeFiles(this.#place, name, uid);
    await this.#store.commit({ conditions: [{ key, modRevision }], operations: [{ type: 'delete', key }] });
  }
}
