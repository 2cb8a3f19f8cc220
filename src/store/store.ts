/**
 * Ordered keys and values in one SQLite file, for what one daemon keeps on its own machine. A commit is one transaction,
 * on the disk when `commit` returns. One process writes; others may open it for reading meanwhile.
 */
import { chmodSync, closeSync, constants, mkdirSync, openSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';

type StoreErrorCode =
  | 'STORE_LOCKED'
  | 'STORE_DAMAGED'
  | 'STORE_FOREIGN'
  | 'STORE_TOO_NEW'
  | 'STORE_MISSING'
  | 'STORE_EXPOSED'
  | 'STORE_FULL'
  | 'STORE_FAILED';

/** Messages say what was tried, on which file, and what to do. */
export class StoreError extends Error {
  readonly code: StoreErrorCode;

  constructor(code: StoreErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StoreError';
    this.code = code;
  }
}

/** `value` undefined deletes the key. */
export interface StoreChange {
  readonly key: string;
  readonly value: Uint8Array | undefined;
}

interface StoreEntry {
  readonly key: string;
  readonly value: Uint8Array;
}

interface StoreOptions {
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
export class Store implements Disposable {
  readonly directory: string;
  readonly #database: DatabaseSync;
  readonly #lock: DatabaseSync | undefined;
  readonly #get: StatementSync;
  readonly #put: StatementSync | undefined;
  readonly #delete: StatementSync | undefined;

  /** StoreError: STORE_LOCKED, STORE_DAMAGED, STORE_FOREIGN, STORE_TOO_NEW, STORE_MISSING, STORE_EXPOSED, STORE_FAILED. */
  constructor(options: StoreOptions) {
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
  scan(prefix: string): StoreEntry[] {
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
  commit(changes: readonly StoreChange[]): void {
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

const prepareDirectory = (directory: string): void => {
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

/** Before SQLite opens it, so that it is never readable by others; its journal gets the same mode. */
const makePrivate = (file: string): void => {
  closeSync(openSync(file, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600));
  chmodSync(file, 0o600);
};

/** A lock that ends with the process, however it ends: an open exclusive transaction on a database of its own. */
const takeLock = (file: string, directory: string): DatabaseSync => {
  makePrivate(file);
  const lock = new DatabaseSync(file, { timeout: 0 });
  try {
    lock.exec('PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE');
    return lock;
  } catch (error) {
    lock.close();
    if (sqliteCode(error) === sqlite.busy) {
      throw new StoreError(
        'STORE_LOCKED',
        `another process uses the state directory "${directory}"; stop it, or give another directory`,
        error,
      );
    }
    throw toStoreError(error, 'locking', file);
  }
};

const prepareDatabase = (database: DatabaseSync, file: string, readOnly: boolean): void => {
  const foundId = Number(database.prepare('PRAGMA application_id').get()?.['application_id']);
  const found = Number(database.prepare('PRAGMA user_version').get()?.['user_version']);
  const isEmpty = database.prepare('SELECT 1 FROM sqlite_schema LIMIT 1').get() === undefined;
  if (foundId !== applicationId && !(isEmpty && foundId === 0)) {
    throw new StoreError('STORE_FOREIGN', `"${file}" is a database of another program; give another directory`);
  }
  if (found > schemaVersion) {
    throw new StoreError(
      'STORE_TOO_NEW',
      `"${file}" was written by a newer version of Porthole (format ${found}, known here ${schemaVersion}); upgrade, or give another directory`,
    );
  }
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

/** Primary result codes: https://sqlite.org/rescode.html */
const sqlite = { busy: 5, locked: 6, full: 13, cantOpen: 14, corrupt: 11, notADatabase: 26 } as const;

/** The primary code of an error of SQLite; −1 for any other. */
const sqliteCode = (error: unknown): number => {
  const code = (error as { readonly errcode?: unknown }).errcode;
  return typeof code === 'number' ? code & 0xff : -1;
};

const damaged = (file: string, cause?: unknown): StoreError =>
  new StoreError(
    'STORE_DAMAGED',
    `"${file}" is damaged; restore it from a backup, or move it away to start anew`,
    cause,
  );

const toStoreError = (error: unknown, action: string, file: string): StoreError => {
  if (error instanceof StoreError) return error;
  switch (sqliteCode(error)) {
    case sqlite.busy:
    case sqlite.locked:
      return new StoreError(
        'STORE_LOCKED',
        `another process uses "${file}"; stop it, or give another directory`,
        error,
      );
    case sqlite.corrupt:
    case sqlite.notADatabase:
      return damaged(file, error);
    case sqlite.full:
      return new StoreError('STORE_FULL', `${action} "${file}" failed: the disk is full`, error);
    default:
  }
  if (codeOf(error) === 'ENOENT')
    return new StoreError('STORE_MISSING', `there is no state in "${file}"; is the directory right?`, error);
  return new StoreError(
    'STORE_FAILED',
    `${action} "${file}" failed: ${error instanceof Error ? error.message : String(error)}`,
    error,
  );
};

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error);
