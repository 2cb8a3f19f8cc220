/**
 * Ordered keys and values in one SQLite file, for what one `porthole serve` keeps of one tree. A commit is one
 * transaction, on the disk when `commit` returns: its callers answer a guest next and cannot wait for a promise. One
 * process writes; others may open it for reading meanwhile.
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { damaged, StoreError, toStoreError } from './error.ts';
import { checkFormat, makePrivate, prepareDirectory, takeLock } from './files.ts';

/** `value` undefined deletes the key. */
export interface StateChange {
  readonly key: string;
  readonly value: Uint8Array | undefined;
}

export interface StateEntry {
  readonly key: string;
  readonly value: Uint8Array;
}

export interface StateFileOptions {
  /** Holds the store's files; made with mode 0700 when it is not there. */
  readonly directory: string;
  /** Neither makes nor locks anything. Default false. */
  readonly readOnly?: boolean;
}

const databaseName = 'porthole.db';
const lockName = 'lock.db';
/** "PORT": marks SQLite files as ours (PRAGMA application_id). */
const applicationId = 0x504f5254;
/** Rises when tables change (PRAGMA user_version). */
const schemaVersion = 1;

/** Open from its construction on; `get`, `scan` and `commit` throw a StoreError when they fail. */
export class StateFile implements Disposable {
  readonly directory: string;
  readonly #database: DatabaseSync;
  readonly #lock: DatabaseSync | undefined;
  readonly #get: StatementSync;
  readonly #put: StatementSync | undefined;
  readonly #delete: StatementSync | undefined;

  /** StoreError: STORE_LOCKED, STORE_DAMAGED, STORE_FOREIGN, STORE_TOO_NEW, STORE_MISSING, STORE_EXPOSED, STORE_FAILED. */
  constructor(options: StateFileOptions) {
    const { directory, readOnly = false } = options;
    this.directory = directory;
    const file = join(directory, databaseName);
    if (!readOnly) prepareDirectory(directory);
    if (!readOnly) this.#lock = takeLock(join(directory, lockName), directory);
    let database: DatabaseSync | undefined;
    try {
      if (readOnly) statSync(file);
      else makePrivate(file);
      database = new DatabaseSync(file, { readOnly, timeout: 2_000 });
      prepareDatabase(database, file, readOnly);
      this.#database = database;
      this.#get = database.prepare('SELECT value FROM entries WHERE key = ?');
      if (!readOnly) {
        this.#put = database.prepare(
          'INSERT INTO entries (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value',
        );
        this.#delete = database.prepare('DELETE FROM entries WHERE key = ?');
      }
    } catch (error) {
      database?.close();
      this.#lock?.close();
      throw toStoreError(error, 'opening', file);
    }
  }

  get(key: string): Uint8Array | undefined {
    try {
      const row = this.#get.get(key);
      return row === undefined ? undefined : (row['value'] as Uint8Array);
    } catch (error) {
      throw toStoreError(error, 'reading', this.directory);
    }
  }

  /** Entries whose keys start with `prefix`, in the order of their keys' UTF-8 bytes. */
  scan(prefix: string): StateEntry[] {
    try {
      const rows = this.#database
        .prepare('SELECT key, value FROM entries WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key')
        .all(prefix, [...prefix].length, prefix);
      return rows.map((row) => ({ key: row['key'] as string, value: row['value'] as Uint8Array }));
    } catch (error) {
      throw toStoreError(error, 'reading', this.directory);
    }
  }

  /** All changes or none; a later change of a key wins. On the disk when it returns. */
  commit(changes: readonly StateChange[]): void {
    const put = this.#put;
    const remove = this.#delete;
    if (put === undefined || remove === undefined)
      throw new StoreError('STORE_FAILED', `writing ${this.directory} failed: it is open for reading`);
    try {
      this.#database.exec('BEGIN IMMEDIATE');
      for (const { key, value } of changes) {
        if (value === undefined) remove.run(key);
        else put.run(key, value);
      }
      this.#database.exec('COMMIT');
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw toStoreError(error, 'writing', this.directory);
    }
  }

  close(): void {
    if (this.#database.isOpen) this.#database.close();
    if (this.#lock?.isOpen) this.#lock.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

const prepareDatabase = (database: DatabaseSync, file: string, readOnly: boolean): void => {
  checkFormat(database, file, { applicationId, schemaVersion });
  if (readOnly) return;
  database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON');
  const check = database.prepare('PRAGMA quick_check(1)').get();
  if (Object.values(check ?? {})[0] !== 'ok') throw damaged(file);
  database.exec(`BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    PRAGMA application_id = ${applicationId};
    PRAGMA user_version = ${schemaVersion};
    COMMIT`);
};
