import { constants, copyFileSync, existsSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { StoreError, toStoreError } from './error.ts';
import { makePrivate, prepareDirectory, syncToDisk, takeLock } from './files.ts';
import { readKeyFile } from './seal.ts';
import { SqliteEngine } from './sqlite-engine.ts';
import { lockName, openKeyring, openStoreFile, restoringName, storeFileName, storeNames } from './sqlite-file.ts';

export interface RestoreOptions {
  readonly backup: string;
  /** Of the stores to replace; nothing may use it. */
  readonly directory: string;
  /** The key that the backup was made under. */
  readonly keyFile: string;
  /** Seconds since 1970. Default: now. */
  readonly nowSeconds?: number;
}

export interface Restored {
  readonly epoch: number;
  /** Where the store that was there is now. */
  readonly replaced: string | undefined;
}

/**
 * Puts a backup in the place of the stores, after every page and every value of it was checked, and raises the epoch
 * above all that there were. What it replaces is kept beside it. Whenever it is interrupted, either the old stores are
 * there, or the next start says that it must be run again.
 * StoreError: STORE_MISSING, STORE_DAMAGED, STORE_FOREIGN, STORE_TOO_NEW, STORE_LOCKED, STORE_KEY_*, STORE_FULL.
 */
export const restoreStores = ({
  backup,
  directory,
  keyFile,
  nowSeconds = Math.floor(Date.now() / 1000),
}: RestoreOptions): Restored => {
  prepareDirectory(directory);
  const file = join(directory, storeFileName);
  const restoring = join(directory, restoringName);
  const lock = takeLock(join(directory, lockName), directory);
  try {
    if (!existsSync(backup)) throw new StoreError('STORE_MISSING', `there is no backup "${backup}"`);
    const master = readKeyFile(keyFile);
    for (const suffix of ['', '-wal', '-shm', '-journal']) rmSync(restoring + suffix, { force: true });
    makePrivate(restoring);
    copyFileSync(backup, restoring, constants.COPYFILE_FICLONE);
    const epoch = checkAndRaise(restoring, backup, nowSeconds, epochOf(file), master);
    syncToDisk(restoring);
    const before = `${file}.before-epoch-${epoch}`;
    if (existsSync(file)) mergeLog(file);
    const replaced = existsSync(file) ? before : undefined;
    if (replaced !== undefined) renameSync(file, replaced);
    for (const suffix of ['-wal', '-shm']) if (existsSync(file + suffix)) renameSync(file + suffix, before + suffix);
    syncToDisk(directory);
    renameSync(restoring, file);
    syncToDisk(directory);
    return { epoch, replaced };
  } catch (error) {
    // The old store is still in its place, so nothing was interrupted that matters.
    if (existsSync(file)) rmSync(restoring, { force: true });
    throw toStoreError(error, 'restoring', file);
  } finally {
    lock.close();
  }
};

const checkAndRaise = (
  restoring: string,
  backup: string,
  nowSeconds: number,
  currentEpoch: number,
  master: ReturnType<typeof readKeyFile>,
): number => {
  let database: DatabaseSync | undefined;
  try {
    database = openStoreFile(restoring, 'integrity_check');
    if (database.prepare('SELECT 1 FROM sqlite_schema LIMIT 1').get() === undefined)
      throw new StoreError('STORE_DAMAGED', `the backup "${backup}" is empty; use another`);
    const keyring = openKeyring(database, master, backup);
    for (const name of storeNames) new SqliteEngine(database, name, keyring).verify();
    const backupEpoch = database.prepare('SELECT epoch FROM meta').get()?.['epoch'] as number;
    // The time serves where the epoch of the store that is lost cannot be read.
    const epoch = Math.max(backupEpoch + 1, currentEpoch + 1, nowSeconds);
    database.prepare('UPDATE meta SET epoch = ?').run(epoch);
    database.exec('PRAGMA journal_mode = DELETE');
    return epoch;
  } catch (error) {
    const failure = toStoreError(error, 'reading the backup', backup);
    if (failure.code !== 'STORE_DAMAGED') throw failure;
    throw new StoreError('STORE_DAMAGED', `the backup "${backup}" is damaged; use another (${failure.message})`, error);
  } finally {
    database?.close();
  }
};

/** So that the store is one file when it is moved: its newest commits may be in its write-ahead log alone. */
const mergeLog = (file: string): void => {
  try {
    using database = new DatabaseSync(file, { timeout: 2_000 });
    database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  } catch {
    // What is damaged is kept as it is, its log beside it.
  }
};

/** 0 when there is none that can be read. */
const epochOf = (file: string): number => {
  if (!existsSync(file)) return 0;
  try {
    using database = new DatabaseSync(file, { readOnly: true });
    return Number(database.prepare('SELECT epoch FROM meta').get()?.['epoch']);
  } catch {
    return 0;
  }
};
