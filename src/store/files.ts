/** What every file of this room is held to: for its owner only, used by one writer, ours, of a version that we know. */
import { chmodSync, closeSync, constants, fsyncSync, lstatSync, mkdirSync, openSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { codeOf, StoreError, sqliteCode, sqliteCodes, toStoreError } from './error.ts';

/** Makes it with mode 0700 when it is not there. StoreError STORE_EXPOSED, STORE_FAILED. */
export const prepareDirectory = (directory: string): void => {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new StoreError(
      'STORE_FAILED',
      `making the state directory "${directory}" failed: ${codeOf(error)}; give a directory that you may write`,
      error,
    );
  }
  const { mode, uid } = statSync(directory);
  if ((mode & 0o077) !== 0) {
    const bits = `0${(mode & 0o777).toString(8)}`;
    throw new StoreError(
      'STORE_EXPOSED',
      `the state directory "${directory}" has mode ${bits}, but holds secrets; run: chmod 700 '${directory}'`,
    );
  }
  if (uid !== process.getuid?.()) {
    throw new StoreError(
      'STORE_EXPOSED',
      `the state directory "${directory}" belongs to uid ${uid}, not to you; give another directory`,
    );
  }
};

/**
 * Before SQLite opens it, so that it is never readable by others; its journal gets the same mode. A file that is there
 * is not opened: closing it again would end the locks that this process holds on it (fcntl(2), F_SETLK).
 */
export const makePrivate = (file: string): void => {
  try {
    closeSync(openSync(file, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600));
  } catch (error) {
    if (codeOf(error) !== 'EEXIST') throw error;
    if (!lstatSync(file).isFile())
      throw new StoreError('STORE_FOREIGN', `"${file}" is not a regular file; move it away, or give another directory`);
  }
  chmodSync(file, 0o600);
};

/** Of a file, or of a directory after a name in it has changed. */
export const syncToDisk = (path: string): void => {
  const fd = openSync(path, constants.O_RDONLY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
};

/** Held until it is disposed of, or its process ends. */
export type DirectoryLock = Disposable;

/** For one process; makes the directory, with mode 0700, where it is not there. StoreError: STORE_LOCKED, STORE_EXPOSED. */
export const lockDirectory = (directory: string): DirectoryLock => {
  prepareDirectory(directory);
  const lock = takeLock(join(directory, 'lock.db'), directory);
  return { [Symbol.dispose]: () => lock.close() };
};

/** A lock that ends with the process, however it ends: an open exclusive transaction on a database of its own. */
export const takeLock = (file: string, directory: string): DatabaseSync => {
  makePrivate(file);
  const lock = new DatabaseSync(file, { timeout: 0 });
  try {
    lock.exec('PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE');
    return lock;
  } catch (error) {
    lock.close();
    if (sqliteCode(error) === sqliteCodes.busy) {
      throw new StoreError(
        'STORE_LOCKED',
        `another process uses the state directory "${directory}"; stop it, or give another directory`,
        error,
      );
    }
    throw toStoreError(error, 'locking', file);
  }
};

export interface Format {
  /** Marks SQLite files as ours (PRAGMA application_id). */
  readonly applicationId: number;
  /** Rises when tables change (PRAGMA user_version). */
  readonly schemaVersion: number;
}

/** Whether it holds nothing yet. StoreError STORE_FOREIGN, STORE_TOO_NEW. */
export const checkFormat = (database: DatabaseSync, file: string, format: Format): boolean => {
  const foundId = Number(database.prepare('PRAGMA application_id').get()?.['application_id']);
  const found = Number(database.prepare('PRAGMA user_version').get()?.['user_version']);
  const isEmpty = database.prepare('SELECT 1 FROM sqlite_schema LIMIT 1').get() === undefined;
  if (foundId !== format.applicationId && !(isEmpty && foundId === 0)) {
    throw new StoreError('STORE_FOREIGN', `"${file}" is a database of another program; give another directory`);
  }
  if (found > format.schemaVersion) {
    throw new StoreError(
      'STORE_TOO_NEW',
      `"${file}" was written by a newer version of Porthole (format ${found}, known here ${format.schemaVersion}); upgrade, or give another directory`,
    );
  }
  return isEmpty;
};
