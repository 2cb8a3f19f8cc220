/**
 * One named store's tables in the SQLite file, in step with one transaction of SQLite that its caller opens and ends.
 * A log of every change (`NAME_log`) and which of its rows is each key's newest (`NAME_current`). The log only grows at its
 * end, in the order of revisions, and has no index: what a commit writes is what its sync has to wait for.
 */
import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite';
import { StoreError } from './error.ts';
import { keyAfter } from './keys.ts';
import type { CheckedCondition, CheckedRange, CheckedTransaction } from './request.ts';
import type { Keyring } from './seal.ts';
import { type Entry, limits, type Outcome, type Page, type WatchBatch, type WatchEvent } from './store.ts';

/**
 * `value` NULL: the key was deleted. `previous`: the row that this one took the place of; NULL where the key was not there.
 * `stores.revision` is as of the last compaction: what came after is in the log.
 */
export const tablesOf = (name: string): string => `
  CREATE TABLE ${name}_log (
    id INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key BLOB NOT NULL, value BLOB,
    create_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER, previous INTEGER) STRICT;
  CREATE TABLE ${name}_current (key BLOB PRIMARY KEY, id INTEGER NOT NULL, lease INTEGER) STRICT, WITHOUT ROWID;
  CREATE INDEX ${name}_current_lease ON ${name}_current (lease) WHERE lease IS NOT NULL;
  CREATE TABLE ${name}_leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_seconds INTEGER NOT NULL) STRICT;
  INSERT INTO stores (name, revision, compacted) VALUES ('${name}', 0, 0);`;

/** From version 1 of the tables, whose log had indexes. */
export const upgradeOf = (name: string): string => `
  ALTER TABLE ${name}_log ADD COLUMN previous INTEGER;
  UPDATE ${name}_log AS newer SET previous = (
    SELECT iif(older.value IS NULL, NULL, older.id) FROM ${name}_log older
    WHERE older.key = newer.key AND older.revision < newer.revision ORDER BY older.revision DESC LIMIT 1);
  DROP INDEX ${name}_log_key;
  DROP INDEX ${name}_log_revision;`;

/** What a transaction changed, for those who watch. */
export interface Changed {
  readonly revision: number;
  readonly keys: readonly Uint8Array[];
  /** Of the values that were put. */
  readonly bytes: number;
}

export interface LogPart {
  readonly batches: readonly WatchBatch[];
  /** Where the next reading starts: after all that was read, and after the newest revision when nothing was left. */
  readonly next: number;
}

/** What one step of sealing anew did. */
export interface Resealed {
  /** The row to go on from; undefined after the last step. */
  readonly next: number | undefined;
  /** Rows that were looked at, and of those the values that were sealed. */
  readonly rows: number;
  readonly resealed: number;
}

type Row = Record<string, unknown>;
type Bytes = Uint8Array<ArrayBuffer>;

/** After so many revisions, or so many bytes, one step of a compaction ends, so that commits do not wait for the whole. */
const compactionStep = 500;
const compactionStepBytes = 8 * 1024 * 1024;

export class SqliteEngine {
  readonly name: string;
  readonly #database: DatabaseSync;
  readonly #keyring: Keyring;
  readonly #statements = new Map<string, StatementSync>();
  #revision: number;
  #compacted: number;
  /** As of the last transaction of SQLite that was committed. */
  #kept: { readonly revision: number; readonly compacted: number };
  #sealed = 0;

  constructor(database: DatabaseSync, name: string, keyring: Keyring) {
    this.name = name;
    this.#database = database;
    this.#keyring = keyring;
    const row = this.#get('SELECT revision, compacted FROM stores WHERE name = ?', name);
    if (row === undefined) throw new StoreError('STORE_DAMAGED', `the ${name} store is missing; restore a backup`);
    const newest = this.#get(`SELECT revision FROM ${name}_log ORDER BY id DESC LIMIT 1`);
    this.#revision = Math.max(row['revision'] as number, (newest?.['revision'] as number | undefined) ?? 0);
    this.#compacted = row['compacted'] as number;
    this.#kept = { revision: this.#revision, compacted: this.#compacted };
  }

  get revision(): number {
    return this.#revision;
  }

  get compacted(): number {
    return this.#compacted;
  }

  /** Before COMMIT. @returns how many values this transaction sealed */
  flush(): number {
    if (this.#compacted !== this.#kept.compacted) {
      const sql = 'UPDATE stores SET revision = ?, compacted = ? WHERE name = ?';
      this.#run(sql, this.#revision, this.#compacted, this.name);
    }
    return this.#sealed;
  }

  /** After COMMIT. */
  committed(): void {
    this.#kept = { revision: this.#revision, compacted: this.#compacted };
    this.#sealed = 0;
  }

  /** After ROLLBACK. */
  rolledBack(): void {
    ({ revision: this.#revision, compacted: this.#compacted } = this.#kept);
    this.#sealed = 0;
  }

  /** STORE_LEASE_GONE, before anything was changed. */
  commit({ conditions, operations }: CheckedTransaction): { readonly outcome: Outcome; readonly changed?: Changed } {
    const unmet = conditions.flatMap((condition, index) => (this.#holds(condition) ? [] : [index]));
    if (unmet.length > 0) return { outcome: { committed: false, revision: this.#revision, unmet } };
    for (const operation of operations) {
      if (operation.type === 'put' && operation.leaseId !== undefined) this.#needLease(operation.leaseId);
    }
    const revision = this.#revision + 1;
    const keys: Uint8Array[] = [];
    let bytes = 0;
    for (const operation of operations) {
      const { key } = operation;
      const found = this.#current(key);
      if (operation.type === 'delete') {
        if (found === undefined) continue;
        this.#delete(key, revision, found['id'] as number);
      } else {
        const lease = operation.leaseId ?? null;
        const { lastInsertRowid } = this.#run(
          `INSERT INTO ${this.name}_log (revision, key, value, create_revision, version, lease, previous)
           VALUES (?, ?, ?, ?, ?, ?, ?)`,
          revision,
          key,
          this.#keyring.seal(this.name, key, revision, operation.value),
          found === undefined ? revision : (found['create_revision'] as number),
          found === undefined ? 1 : (found['version'] as number) + 1,
          lease,
          found === undefined ? null : (found['id'] as number),
        );
        this.#sealed++;
        bytes += operation.value.length;
        this.#run(`INSERT OR REPLACE INTO ${this.name}_current VALUES (?, ?, ?)`, key, lastInsertRowid, lease);
      }
      keys.push(key);
    }
    if (keys.length > 0) this.#revision = revision;
    const outcome: Outcome = { committed: true, revision: this.#revision };
    return keys.length > 0 ? { outcome, changed: { revision, keys, bytes } } : { outcome };
  }

  #holds(condition: CheckedCondition): boolean {
    const found = this.#current(condition.key);
    if ('exists' in condition) return condition.exists === (found !== undefined);
    return found?.['revision'] === condition.modRevision;
  }

  #current(key: Uint8Array): Row | undefined {
    return this.#get(
      `SELECT l.id, l.revision, l.create_revision, l.version FROM ${this.name}_current n JOIN ${this.name}_log l
         ON l.id = n.id WHERE n.key = ?`,
      key,
    );
  }

  #delete(key: Uint8Array, revision: number, previous: number): void {
    this.#run(
      `INSERT INTO ${this.name}_log (revision, key, value, create_revision, version, lease, previous)
       VALUES (?, ?, NULL, 0, 0, NULL, ?)`,
      revision,
      key,
      previous,
    );
    this.#run(`DELETE FROM ${this.name}_current WHERE key = ?`, key);
  }

  range({ start, end }: CheckedRange, asked: number | undefined, limit: number): Page {
    const revision = this.#readable(asked);
    // One more than asked for tells whether there is a next page.
    const rows = this.#prepare(
      `SELECT l.* FROM (${this.#rowsIn(end, revision)} ORDER BY key LIMIT ?) n
       JOIN ${this.name}_log l ON l.id = n.id ORDER BY n.key`,
    ).iterate(...this.#boundsOf({ start, end }, revision), limit + 1);
    const entries: Entry[] = [];
    let bytes = 0;
    for (const row of rows) {
      if (entries.length === limit || bytes > limits.pageBytes)
        return { revision, entries, next: keyAfter(entries.at(-1)!.key) };
      const entry = this.#entryOf(row);
      bytes += entry.value.length;
      entries.push(entry);
    }
    return { revision, entries, next: undefined };
  }

  count({ start, end }: CheckedRange, asked: number | undefined): { revision: number; count: number } {
    const revision = this.#readable(asked);
    const sql = `SELECT count(*) AS count FROM (${this.#rowsIn(end, revision)})`;
    const row = this.#get(sql, ...this.#boundsOf({ start, end }, revision));
    return { revision, count: row!['count'] as number };
  }

  /**
   * Which row of the log each key had at a revision. A key that was changed since had the one before its first row since
   * then; every other has its newest.
   */
  #rowsIn(end: Uint8Array | undefined, revision: number): string {
    const range = end === undefined ? 'key >= ?' : 'key >= ? AND key < ?';
    const newest = `SELECT key, id FROM ${this.name}_current WHERE ${range}`;
    if (revision === this.#revision) return newest;
    return `${newest} AND id < ? UNION ALL
      SELECT key, previous FROM
        (SELECT key, previous, min(id) FROM ${this.name}_log WHERE ${range} AND id >= ? GROUP BY key)
      WHERE previous IS NOT NULL`;
  }

  #boundsOf({ start, end }: CheckedRange, revision: number): SQLInputValue[] {
    const bounds = end === undefined ? [start] : [start, end];
    if (revision === this.#revision) return bounds;
    const first = this.#firstRowOf(revision + 1);
    return [...bounds, first, ...bounds, first];
  }

  /** No row before this id is of the revision or of a later one, and no row from it on is of an earlier one. */
  #firstRowOf(revision: number): number {
    const newest = (this.#get(`SELECT max(id) AS id FROM ${this.name}_log`)!['id'] as number | null) ?? 0;
    const isBefore = (id: number): boolean => {
      const row = this.#get(`SELECT revision FROM ${this.name}_log WHERE id >= ? ORDER BY id LIMIT 1`, id);
      return (row!['revision'] as number) < revision;
    };
    let high = newest + 1;
    let low = newest;
    // Whoever watches asks for one of the newest.
    for (let step = 1; low > 0 && !isBefore(low); step *= 2) {
      high = low;
      low = Math.max(0, low - step);
    }
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if (isBefore(middle)) low = middle;
      else high = middle;
    }
    return high;
  }

  #readable(revision = this.#revision): number {
    if (revision > this.#revision)
      throw new StoreError('STORE_INVALID', `revision ${revision} is not there yet: the newest is ${this.#revision}`);
    if (revision < this.#compacted) throw this.#gone(revision, this.#compacted);
    return revision;
  }

  #gone(revision: number, oldest: number): StoreError {
    const message = `revision ${revision} of the ${this.name} store was compacted; the oldest there is, is ${oldest}: list anew`;
    return new StoreError('STORE_COMPACTED', message, undefined, oldest);
  }

  /** Whole transactions, from `from` on. STORE_COMPACTED. */
  log({ start, end }: CheckedRange, from: number): LogPart {
    if (from <= this.#compacted) throw this.#gone(from, this.#compacted + 1);
    const rows = this.#prepare(
      `SELECT * FROM ${this.name}_log WHERE id >= ? AND key >= ? ${end === undefined ? '' : 'AND key < ?'} ORDER BY id`,
    ).iterate(this.#firstRowOf(from), start, ...(end === undefined ? [] : [end]));
    const batches: { readonly revision: number; readonly events: WatchEvent[] }[] = [];
    let bytes = 0;
    for (const row of rows) {
      const revision = row['revision'] as number;
      let batch = batches.at(-1);
      if (batch?.revision !== revision) {
        if (bytes > limits.pageBytes || batches.length === limits.pageEntries) return { batches, next: revision };
        batch = { revision, events: [] };
        batches.push(batch);
      }
      if (row['value'] === null) {
        batch.events.push({ type: 'delete', key: row['key'] as Bytes, modRevision: revision });
      } else {
        const entry = this.#entryOf(row);
        bytes += entry.value.length;
        batch.events.push({ type: 'put', entry });
      }
    }
    return { batches, next: Math.max(from, this.#revision + 1) };
  }

  #entryOf(row: Row): Entry {
    const key = row['key'] as Bytes;
    const modRevision = row['revision'] as number;
    return {
      key,
      value: this.#keyring.open(this.name, key, modRevision, row['value'] as Bytes),
      createRevision: row['create_revision'] as number,
      modRevision,
      version: row['version'] as number,
      leaseId: (row['lease'] as number | null) ?? undefined,
    };
  }

  leases(): { id: number; ttlSeconds: number }[] {
    return this.#prepare(`SELECT id, ttl_seconds FROM ${this.name}_leases`)
      .all()
      .map((row) => ({ id: row['id'] as number, ttlSeconds: row['ttl_seconds'] as number }));
  }

  grant(ttlSeconds: number): number {
    return Number(this.#run(`INSERT INTO ${this.name}_leases (ttl_seconds) VALUES (?)`, ttlSeconds).lastInsertRowid);
  }

  /** STORE_LEASE_GONE. */
  revoke(leaseId: number): Changed | undefined {
    this.#needLease(leaseId);
    const rows = this.#prepare(`SELECT key, id FROM ${this.name}_current WHERE lease = ? ORDER BY key`).all(leaseId);
    this.#run(`DELETE FROM ${this.name}_leases WHERE id = ?`, leaseId);
    if (rows.length === 0) return undefined;
    const revision = ++this.#revision;
    for (const row of rows) this.#delete(row['key'] as Bytes, revision, row['id'] as number);
    return { revision, keys: rows.map((row) => row['key'] as Bytes), bytes: 0 };
  }

  #needLease(leaseId: number): void {
    if (this.#get(`SELECT 1 FROM ${this.name}_leases WHERE id = ?`, leaseId) === undefined)
      throw new StoreError('STORE_LEASE_GONE', `lease ${leaseId} of the ${this.name} store has run out or was revoked`);
  }

  /** One step. @returns whether that was the last. STORE_INVALID. */
  compact(revision: number): boolean {
    if (revision > this.#revision)
      throw new StoreError('STORE_INVALID', `compacting up to ${revision} failed: the newest is ${this.#revision}`);
    if (revision <= this.#compacted) return true;
    const from = this.#compacted;
    const to = this.#compactionStep(from, Math.min(revision, from + compactionStep));
    const rows = [this.#firstRowOf(from + 1), this.#firstRowOf(to + 1)] as const;
    this.#run(
      `DELETE FROM ${this.name}_log WHERE id IN (SELECT previous FROM ${this.name}_log WHERE id >= ? AND id < ?)`,
      ...rows,
    );
    this.#run(`DELETE FROM ${this.name}_log WHERE id >= ? AND id < ? AND value IS NULL`, ...rows);
    this.#compacted = to;
    return to === revision;
  }

  /** Where a step ends that begins after `from`: at least one revision further, at most at `to`. */
  #compactionStep(from: number, to: number): number {
    const rows = this.#prepare(
      `SELECT newer.revision, length(older.value) AS bytes FROM ${this.name}_log newer JOIN ${this.name}_log older
         ON older.id = newer.previous WHERE newer.id >= ? AND newer.id < ? ORDER BY newer.id`,
    ).iterate(this.#firstRowOf(from + 1), this.#firstRowOf(to + 1));
    let bytes = 0;
    for (const row of rows) {
      const revision = row['revision'] as number;
      if (bytes > compactionStepBytes && revision - 1 > from) return revision - 1;
      bytes += (row['bytes'] as number | null) ?? 0;
    }
    return to;
  }

  /** What was put since the last compaction, in the order of revisions. */
  history(): { revision: number; bytes: number }[] {
    return this.#prepare(
      `SELECT revision, sum(length(value)) AS bytes FROM ${this.name}_log WHERE id >= ? AND value IS NOT NULL
       GROUP BY revision ORDER BY revision`,
    )
      .all(this.#firstRowOf(this.#compacted + 1))
      .map((row) => ({ revision: row['revision'] as number, bytes: row['bytes'] as number }));
  }

  /** All that `reseal` has to look at. */
  countRows(): number {
    return this.#get(`SELECT count(*) AS count FROM ${this.name}_log`)!['count'] as number;
  }

  /** One step: seals anew, by the newest data key, what `isRecent` denies, from row `from` on. */
  reseal(from: number, isRecent: (sealed: Uint8Array) => boolean): Resealed {
    let bytes = 0;
    let resealed = 0;
    let next: number | undefined;
    const found: { id: number; key: Bytes; revision: number; value: Bytes }[] = [];
    const rows = this.#prepare(
      `SELECT id, key, revision, value FROM ${this.name}_log WHERE id >= ? ORDER BY id LIMIT 501`,
    ).iterate(from);
    let seen = 0;
    for (const row of rows) {
      const id = row['id'] as number;
      if (seen === 500 || bytes > limits.pageBytes) {
        next = id;
        break;
      }
      seen++;
      const value = row['value'] as Bytes | null;
      if (value === null || isRecent(value)) continue;
      bytes += value.length;
      found.push({ id, key: row['key'] as Bytes, revision: row['revision'] as number, value });
    }
    for (const { id, key, revision, value } of found) {
      const opened = this.#keyring.open(this.name, key, revision, value);
      const sealed = this.#keyring.seal(this.name, key, revision, opened);
      this.#run(`UPDATE ${this.name}_log SET value = ? WHERE id = ?`, sealed, id);
      resealed++;
      this.#sealed++;
    }
    return { next, rows: seen, resealed };
  }

  /** Opens every value there is. STORE_DAMAGED. */
  verify(): void {
    for (const row of this.#prepare(`SELECT * FROM ${this.name}_log WHERE value IS NOT NULL`).iterate())
      this.#entryOf(row);
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#database.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }

  #get(sql: string, ...values: SQLInputValue[]): Row | undefined {
    return this.#prepare(sql).get(...values);
  }

  #run(sql: string, ...values: SQLInputValue[]) {
    return this.#prepare(sql).run(...values);
  }
}
