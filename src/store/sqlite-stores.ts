/** The embedded stores: both names in one SQLite file, one worker, one backup. */
import { existsSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { backup, DatabaseSync } from 'node:sqlite';
import { StoreError, toStoreError } from './error.ts';
import { makePrivate, syncToDisk } from './files.ts';
import type { Resealed } from './sqlite-engine.ts';
import { type SqliteFileOptions, type StoreName, storeFileName, storeNames } from './sqlite-file.ts';
import { SqliteStore } from './sqlite-store.ts';
import { type CallOptions, type Clock, type Store, systemClock } from './store.ts';
import { WorkerLink } from './worker-link.ts';

export interface StoresOptions extends SqliteFileOptions {
  /** For leases. Default: the system's monotonic clock. */
  readonly clock?: Clock;
  /** History is kept for at least so many revisions and at most twice as many. Default 10,000. */
  readonly retainRevisions?: number;
  /** And for fewer where their values have more than twice so many bytes. Default 128 MiB. */
  readonly retainBytes?: number;
}

export interface RotateOptions extends CallOptions {
  /** Told after every step, in rows of both stores: how many were looked at, of how many. */
  readonly onProgress?: (done: number, total: number) => void;
}

export interface Stores extends AsyncDisposable {
  /** VMs, trees, hosts, addresses, operations. */
  readonly region: Store;
  /** Accounts, keys, quotas, image names, the index of VMs. */
  readonly global: Store;
  readonly epoch: number;

  /**
   * Writes both stores, as they are at one moment, into a new file of mode 0600, while they are used. It is sealed as
   * they are: without the key file it is worth nothing. STORE_EXISTS, STORE_FULL, STORE_FAILED.
   */
  backup(file: string): Promise<void>;

  /**
   * Makes a new data key, seals every value anew by it, and forgets the old ones. When it is interrupted, values under
   * old keys stay readable, and the next rotation does the rest.
   * @returns how many values it sealed
   */
  rotateDataKey(options?: RotateOptions): Promise<number>;

  /** From now on the key in another file opens the store; the old one opens earlier backups only. STORE_KEY_*. */
  changeKeyFile(keyFile: string): Promise<void>;

  close(): Promise<void>;
}

class SqliteStores implements Stores {
  readonly region: SqliteStore;
  readonly global: SqliteStore;
  readonly epoch: number;
  readonly #directory: string;
  readonly #link: WorkerLink;

  constructor(directory: string, link: WorkerLink, region: SqliteStore, global: SqliteStore) {
    this.#directory = directory;
    this.#link = link;
    this.region = region;
    this.global = global;
    this.epoch = region.epoch;
  }

  async backup(file: string): Promise<void> {
    await backupFile(join(this.#directory, storeFileName), file);
  }

  async rotateDataKey({ signal, onProgress }: RotateOptions = {}): Promise<number> {
    const oldest = await this.#link.ask({ kind: 'newDataKey' }, signal);
    const counts = await Promise.all(storeNames.map((store) => this.#link.ask({ kind: 'countRows', store }, signal)));
    const total = counts.reduce((sum, count) => sum + count);
    let rows = 0;
    let resealed = 0;
    for (const store of storeNames) {
      let from: number | undefined = 0;
      while (from !== undefined) {
        const step: Resealed = await this.#link.ask({ kind: 'reseal', store, oldest, from }, signal);
        resealed += step.resealed;
        rows += step.rows;
        // Rows that come meanwhile are under the new key already, and are looked at as well.
        onProgress?.(Math.min(rows, total), total);
        from = step.next;
      }
    }
    await this.#link.ask({ kind: 'forgetDataKeys', oldest }, signal);
    return resealed;
  }

  async changeKeyFile(keyFile: string): Promise<void> {
    await this.#link.ask({ kind: 'changeKeyFile', keyFile });
  }

  async close(): Promise<void> {
    await this.#link.close();
    const error = new StoreError('STORE_CLOSED', 'the store is closed');
    this.region.end(error);
    this.global.end(error);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Opens, or makes, the stores in a directory. They stay locked until they are closed or the process ends.
 * StoreError: STORE_LOCKED, STORE_DAMAGED, STORE_FOREIGN, STORE_TOO_NEW, STORE_EXPOSED, STORE_MISSING, STORE_FULL,
 * STORE_KEY_MISSING, STORE_KEY_EXPOSED, STORE_KEY_INVALID, STORE_KEY_WRONG, STORE_FAILED.
 */
export const openStores = async (options: StoresOptions): Promise<Stores> => {
  const { clock = systemClock, retainRevisions = 10_000, retainBytes = 128 * 1024 * 1024, ...fileOptions } = options;
  const stores = new Map<StoreName, SqliteStore>();
  const { link, opened } = await WorkerLink.open(
    fileOptions,
    (changed) => stores.get(changed.store)?.noteChange(changed),
    (error) => {
      for (const store of stores.values()) store.end(error);
    },
  );
  for (const store of opened.stores)
    stores.set(
      store.name,
      new SqliteStore({ ...store, epoch: opened.epoch, link, clock, retainRevisions, retainBytes }),
    );
  return new SqliteStores(options.directory, link, stores.get('region')!, stores.get('global')!);
};

/** Pages to copy in one step: all of them, from one snapshot, on a thread of the pool; writers go on meanwhile. */
const allPages = 2 ** 31 - 1;

const backupFile = async (from: string, to: string): Promise<void> => {
  if (existsSync(to))
    throw new StoreError('STORE_EXISTS', `writing the backup "${to}" failed: it exists; give another name`);
  const partial = `${to}.partial`;
  try {
    rmSync(partial, { force: true });
    makePrivate(partial);
    using source = new DatabaseSync(from, { readOnly: true, timeout: 2_000 });
    await backup(source, partial, { rate: allPages });
    // So that the backup is one file and needs no other.
    using copy = new DatabaseSync(partial);
    copy.exec('PRAGMA journal_mode = DELETE');
    copy.close();
    syncToDisk(partial);
    renameSync(partial, to);
    syncToDisk(dirname(to));
  } catch (error) {
    rmSync(partial, { force: true });
    throw toStoreError(error, 'writing the backup', to);
  }
};
