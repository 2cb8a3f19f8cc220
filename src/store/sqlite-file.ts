/**
 * The SQLite file that holds the named stores and their data keys, synchronously: what the worker does with each request.
 * One process has it open, by a lock of its own, because SQLite's would let several write in turn.
 */
import { Buffer } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { damaged, StoreError, sqliteCode, sqliteCodes, toStoreError } from './error.ts';
import { checkFormat, makePrivate, prepareDirectory, syncToDisk, takeLock } from './files.ts';
import type { CheckedRange, CheckedTransaction } from './request.ts';
import { createKeyFile, dataKeyOf, Keyring, type MasterKey, readKeyFile } from './seal.ts';
import { type Changed, type LogPart, type Resealed, SqliteEngine, tablesOf, upgradeOf } from './sqlite-engine.ts';
import type { Outcome, Page } from './store.ts';

/** What the embedded store keeps, by name. No transaction spans them. */
export const storeNames = ['region', 'global'] as const;
export type StoreName = (typeof storeNames)[number];

export const storeFileName = 'store.db';
export const lockName = 'lock.db';
/** A restore that is not finished leaves it behind. */
export const restoringName = `${storeFileName}.restoring`;
/** "PORS". */
export const format = { applicationId: 0x504f5253, schemaVersion: 2 };

export interface SqliteFileOptions {
  /** Made with mode 0700 when it is not there. */
  readonly directory: string;
  /** Made together with a new store, never for one that is there. */
  readonly keyFile: string;
  /** No store is made where there is none: STORE_MISSING. */
  readonly mustExist?: boolean;
  /**
   * After so many values another data key is made. NIST SP 800-38D §8.3 lets one key seal 2³² values with random nonces.
   */
  readonly sealsPerDataKey?: number;
}

/** A request that changes something; those that wait together become one transaction of SQLite. */
export type Write =
  | { readonly kind: 'commit'; readonly store: StoreName; readonly transaction: CheckedTransaction }
  | { readonly kind: 'grant'; readonly store: StoreName; readonly ttlSeconds: number }
  | { readonly kind: 'revoke'; readonly store: StoreName; readonly leaseId: number };

export type Other =
  | {
      readonly kind: 'range';
      readonly store: StoreName;
      readonly range: CheckedRange;
      readonly revision: number | undefined;
      readonly limit: number;
    }
  | {
      readonly kind: 'count';
      readonly store: StoreName;
      readonly range: CheckedRange;
      readonly revision: number | undefined;
    }
  | { readonly kind: 'log'; readonly store: StoreName; readonly range: CheckedRange; readonly from: number }
  | { readonly kind: 'compact'; readonly store: StoreName; readonly revision: number }
  | { readonly kind: 'newDataKey' }
  | { readonly kind: 'countRows'; readonly store: StoreName }
  /** Of what older data keys than `oldest` sealed. */
  | { readonly kind: 'reseal'; readonly store: StoreName; readonly oldest: number; readonly from: number }
  | { readonly kind: 'forgetDataKeys'; readonly oldest: number }
  | { readonly kind: 'changeKeyFile'; readonly keyFile: string };

/** What each kind of request is answered with. */
export interface Answers {
  readonly commit: Outcome;
  readonly grant: number;
  readonly revoke: undefined;
  readonly range: Page;
  readonly count: { readonly revision: number; readonly count: number };
  readonly log: LogPart;
  /** Whether it was the last step. */
  readonly compact: boolean;
  /** Its id: they rise. */
  readonly newDataKey: number;
  readonly countRows: number;
  readonly reseal: Resealed;
  /** How many were forgotten. */
  readonly forgetDataKeys: number;
  readonly changeKeyFile: undefined;
}

export type Result = { readonly value: Answers[keyof Answers] } | { readonly error: StoreError };
export interface StoreChanged extends Changed {
  readonly store: StoreName;
}

/** What is there when it opens. */
export interface Opened {
  readonly epoch: number;
  readonly stores: readonly {
    readonly name: StoreName;
    readonly revision: number;
    readonly compacted: number;
    /** Bytes of values that each revision since then put. */
    readonly history: readonly { readonly revision: number; readonly bytes: number }[];
    readonly leases: readonly { readonly id: number; readonly ttlSeconds: number }[];
  }[];
}

export class SqliteFile implements Disposable {
  readonly #file: string;
  readonly #sealsPerDataKey: number;
  readonly #lock: DatabaseSync;
  readonly #database: DatabaseSync;
  readonly #keyring: Keyring;
  readonly #engines = new Map<StoreName, SqliteEngine>();
  readonly #begin: StatementSync;
  readonly #end: StatementSync;
  #master: MasterKey;
  /** Values sealed by the newest data key. */
  #sealed = 0;
  /** Set for good when the disk no longer does what it says: SQLite cannot tell what of a failed sync is on it. */
  #broken: StoreError | undefined;

  /** StoreError: all STORE_ codes of opening, STORE_KEY_*. */
  constructor({ directory, keyFile, mustExist = false, sealsPerDataKey = 2 ** 31 }: SqliteFileOptions) {
    this.#file = join(directory, storeFileName);
    if (mustExist && !existsSync(this.#file))
      throw new StoreError('STORE_MISSING', `there is no store in "${directory}"; is the directory right?`);
    this.#sealsPerDataKey = sealsPerDataKey;
    prepareDirectory(directory);
    this.#lock = takeLock(join(directory, lockName), directory);
    let database: DatabaseSync | undefined;
    try {
      const isThere = existsSync(this.#file);
      if (!isThere && existsSync(join(directory, restoringName)))
        throw new StoreError('STORE_MISSING', `a restore into "${directory}" was not finished; run it again`);
      if (!isThere && !existsSync(keyFile)) createKeyFile(keyFile);
      this.#master = readKeyFile(keyFile);
      makePrivate(this.#file);
      database = openStoreFile(this.#file, 'quick_check');
      this.#database = database;
      if (database.prepare('SELECT 1 FROM sqlite_schema LIMIT 1').get() === undefined) {
        makeTables(database, this.#master);
        syncToDisk(directory);
      }
      this.#begin = database.prepare('BEGIN IMMEDIATE');
      this.#end = database.prepare('COMMIT');
      this.#keyring = openKeyring(database, this.#master, this.#file);
      this.#sealed = this.#scalar('SELECT sealed FROM data_keys ORDER BY id DESC LIMIT 1');
      for (const name of storeNames) this.#engines.set(name, new SqliteEngine(database, name, this.#keyring));
      // SQLite's own check does not look at values: 100,000 of 200 bytes take about 1.4 s.
      for (const engine of this.#engines.values()) engine.verify();
    } catch (error) {
      database?.close();
      this.#lock.close();
      throw toStoreError(error, 'opening', this.#file);
    }
  }

  opened(): Opened {
    const stores = [...this.#engines].map(([name, engine]) => ({
      name,
      revision: engine.revision,
      compacted: engine.compacted,
      history: engine.history(),
      leases: engine.leases(),
    }));
    return { epoch: this.#scalar('SELECT epoch FROM meta'), stores };
  }

  /** All in one transaction of SQLite, on the disk when it returns; a result for each, and what they changed, in order. */
  writeGroup(writes: readonly Write[]): { results: Result[]; changes: StoreChanged[] } {
    const changes: StoreChanged[] = [];
    try {
      const results = this.#transaction(() =>
        writes.map((write): Result => {
          try {
            return { value: this.#write(write, changes) };
          } catch (error) {
            // Thrown by an engine before it changed anything. What SQLite throws ends the whole group.
            if (error instanceof StoreError) return { error };
            throw error;
          }
        }),
      );
      return { results, changes };
    } catch (error) {
      const failure = toStoreError(error, 'writing', this.#file);
      if (writes.length === 1 || this.#broken !== undefined)
        return { results: writes.map(() => ({ error: failure })), changes: [] };
      // One that needs too much room must not fail those beside it.
      const single = writes.map((write) => this.writeGroup([write]));
      return { results: single.flatMap(({ results }) => results), changes: single.flatMap(({ changes }) => changes) };
    }
  }

  #write(write: Write, changes: StoreChanged[]): Answers['commit' | 'grant' | 'revoke'] {
    const { store } = write;
    const engine = this.#engines.get(store)!;
    if (write.kind === 'grant') return engine.grant(write.ttlSeconds);
    if (write.kind === 'revoke') {
      const changed = engine.revoke(write.leaseId);
      if (changed) changes.push({ store, ...changed });
      return undefined;
    }
    const { outcome, changed } = engine.commit(write.transaction);
    if (changed) changes.push({ store, ...changed });
    return outcome;
  }

  answer(request: Other): Result {
    try {
      if (this.#broken) throw this.#broken;
      return { value: this.#answer(request) };
    } catch (error) {
      return { error: this.#noteDamage(toStoreError(error, 'using', this.#file)) };
    }
  }

  #answer(request: Other): Answers[Other['kind']] {
    switch (request.kind) {
      case 'range':
        return this.#engines.get(request.store)!.range(request.range, request.revision, request.limit);
      case 'count':
        return this.#engines.get(request.store)!.count(request.range, request.revision);
      case 'log':
        return this.#engines.get(request.store)!.log(request.range, request.from);
      case 'compact':
        return this.#transaction(() => this.#engines.get(request.store)!.compact(request.revision));
      case 'newDataKey':
        return this.#newDataKey();
      case 'countRows':
        return this.#engines.get(request.store)!.countRows();
      case 'reseal':
        return this.#transaction(() =>
          this.#engines.get(request.store)!.reseal(request.from, (sealed) => dataKeyOf(sealed) >= request.oldest),
        );
      case 'forgetDataKeys':
        return this.#forgetDataKeys(request.oldest);
      case 'changeKeyFile':
        return this.#changeKeyFile(request.keyFile);
      default:
        throw new TypeError('unknown request', { cause: request satisfies never });
    }
  }

  #transaction<T>(run: () => T): T {
    if (this.#broken) throw this.#broken;
    if (this.#sealed >= this.#sealsPerDataKey) this.#newDataKey();
    try {
      this.#begin.run();
      const value = run();
      let sealed = 0;
      for (const engine of this.#engines.values()) sealed += engine.flush();
      this.#countSealed(sealed);
      this.#end.run();
      for (const engine of this.#engines.values()) engine.committed();
      return value;
    } catch (error) {
      this.#noteDamage(toStoreError(error, 'writing', this.#file), error);
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      for (const engine of this.#engines.values()) engine.rolledBack();
      throw error;
    }
  }

  /** After an error of the disk itself nothing is written any more: what it holds is known only after a new start. */
  #noteDamage(failure: StoreError, cause?: unknown): StoreError {
    if (failure.code === 'STORE_DAMAGED' && sqliteCode(failure.cause) >= 0) this.#broken = failure;
    if (sqliteCode(cause) === sqliteCodes.ioError) {
      this.#broken = new StoreError(
        'STORE_FAILED',
        `the disk failed while "${this.#file}" was written; look at the kernel's log, and start again when the disk is well (${failure.message})`,
        cause,
      );
    }
    return failure;
  }

  /** Before COMMIT. Kept in steps of a thousandth of the limit, rounded up; what is rolled back counts as well. */
  #countSealed(count: number): void {
    const step = Math.max(1, Math.floor(this.#sealsPerDataKey / 1000));
    const before = Math.floor(this.#sealed / step);
    this.#sealed += count;
    const after = Math.floor(this.#sealed / step);
    if (after > before)
      this.#database
        .prepare('UPDATE data_keys SET sealed = ? WHERE id = ?')
        .run((after + 1) * step, this.#keyring.newest);
  }

  #newDataKey(): number {
    const key = this.#keyring.make(this.#keyring.newest + 1, this.#master);
    this.#database.prepare('INSERT INTO data_keys (id, wrapped, sealed) VALUES (?, ?, 0)').run(key.id, key.wrapped);
    this.#keyring.add(key, this.#master);
    this.#sealed = 0;
    return key.id;
  }

  /** Those before `oldest`: the caller has resealed everything of theirs. There may be newer ones than `oldest` by now. */
  #forgetDataKeys(oldest: number): number {
    const old = this.#database.prepare('SELECT id FROM data_keys WHERE id < ?').all(oldest);
    this.#database.prepare('DELETE FROM data_keys WHERE id < ?').run(oldest);
    for (const row of old) this.#keyring.forget(row['id'] as number);
    // What old data keys sealed is then gone from the write-ahead log as well.
    this.#database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
    return old.length;
  }

  #changeKeyFile(keyFile: string): undefined {
    const master = readKeyFile(keyFile);
    const wrapped = this.#keyring.rewrap(master);
    this.#transaction(() => {
      for (const { id, wrapped: bytes } of wrapped)
        this.#database.prepare('UPDATE data_keys SET wrapped = ? WHERE id = ?').run(bytes, id);
      this.#database.prepare('UPDATE meta SET key_fingerprint = ?').run(master.fingerprint);
    });
    this.#master = master;
    this.#database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  }

  #scalar(sql: string): number {
    return Number(Object.values(this.#database.prepare(sql).get()!)[0]);
  }

  close(): void {
    if (this.#database.isOpen) this.#database.close();
    if (this.#lock.isOpen) this.#lock.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** For writing, checked as far as `check` goes. StoreError STORE_FOREIGN, STORE_TOO_NEW, STORE_DAMAGED; errors of SQLite. */
export const openStoreFile = (file: string, check: 'quick_check' | 'integrity_check'): DatabaseSync => {
  const database = new DatabaseSync(file, { timeout: 2_000 });
  try {
    checkFormat(database, file, format);
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON');
    const found = database.prepare(`PRAGMA ${check}(1)`).get();
    if (Object.values(found ?? {})[0] !== 'ok') throw damaged(file);
    if (database.prepare('PRAGMA user_version').get()?.['user_version'] === 1)
      database.exec(`BEGIN IMMEDIATE; ${storeNames.map(upgradeOf).join('')} PRAGMA user_version = 2; COMMIT`);
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
};

const makeTables = (database: DatabaseSync, master: MasterKey): void => {
  const id = randomBytes(16);
  const key = new Keyring(id).make(1, master);
  database.exec(`BEGIN IMMEDIATE;
    CREATE TABLE meta (id BLOB NOT NULL, epoch INTEGER NOT NULL, key_fingerprint TEXT NOT NULL) STRICT;
    CREATE TABLE data_keys (id INTEGER PRIMARY KEY, wrapped BLOB NOT NULL, sealed INTEGER NOT NULL) STRICT;
    CREATE TABLE stores (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, compacted INTEGER NOT NULL) STRICT;
    ${storeNames.map(tablesOf).join('\n')}
    PRAGMA application_id = ${format.applicationId};
    PRAGMA user_version = ${format.schemaVersion}`);
  database.prepare('INSERT INTO meta VALUES (?, 1, ?)').run(id, master.fingerprint);
  database.prepare('INSERT INTO data_keys VALUES (?, ?, 0)').run(key.id, key.wrapped);
  database.exec('COMMIT');
};

/** StoreError STORE_KEY_WRONG, STORE_DAMAGED. */
export const openKeyring = (database: DatabaseSync, master: MasterKey, file: string): Keyring => {
  const meta = database.prepare('SELECT id, key_fingerprint FROM meta').get();
  const rows = database.prepare('SELECT id, wrapped FROM data_keys ORDER BY id').all();
  if (meta === undefined || rows.length === 0) throw damaged(file);
  if (meta['key_fingerprint'] !== master.fingerprint) {
    throw new StoreError(
      'STORE_KEY_WRONG',
      `"${master.file}" is not the key of "${file}": it is key ${master.fingerprint}, and the store was sealed by key ${String(meta['key_fingerprint'])}; give that one. If it is lost, what the store holds is lost for good, and so are backups of the time`,
    );
  }
  const keyring = new Keyring(Buffer.from(meta['id'] as Uint8Array));
  for (const row of rows) {
    if (!keyring.add({ id: row['id'] as number, wrapped: row['wrapped'] as Uint8Array }, master)) throw damaged(file);
  }
  return keyring;
};
