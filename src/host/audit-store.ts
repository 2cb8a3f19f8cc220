/**
 * The audit log of a host: JSON lines in segments, each line chained to the one before it by a hash, so that nobody can
 * take a line out or change one without it being seen (`check`). Kept for a stated time and size.
 */

import {
  closeSync,
  fdatasync,
  fdatasyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import path from 'node:path';
import type { AuditCheck } from '../records/index.ts';
import type { AuditRecord } from '../tree/index.ts';
import {
  asLine,
  type ChainEnds,
  chainOf,
  firstLink,
  type LineHead,
  type Link,
  lastLineOf,
  noteEnds,
  readEnds,
} from './audit-chain.ts';
import { type CheckOptions, checkChain } from './audit-check.ts';
import { auditLine } from './audit-line.ts';
import type { LogPlace } from './audit-log.ts';
import {
  type AuditFilter,
  type KeptRecord,
  lastKeptUntil,
  matches,
  parseLine,
  type Slice,
  scanSegment,
} from './audit-scan.ts';

export interface AuditStoreOptions {
  /** Made with mode 0700. */
  readonly directory: string;
  readonly keepDays: number;
  /** Of all segments together; the oldest go first. */
  readonly mostBytes: number;
  readonly segmentBytes?: number;
  readonly wallMs: () => number;
  /** Called when the log can't be written any more, and when it can again. */
  readonly onHealth: (writable: boolean, reason: string) => void;
}

/** Records before `oldestSequence` are deleted. */
export class AuditCompactedError extends Error {
  readonly code = 'AUDIT_COMPACTED';
  readonly oldestSequence: number;

  constructor(oldestSequence: number) {
    super(`records before ${oldestSequence} are no longer kept; begin at ${oldestSequence}`);
    this.name = 'AuditCompactedError';
    this.oldestSequence = oldestSequence;
  }
}

interface Segment {
  readonly file: string;
  /** Of its first line. */
  readonly first: number;
  bytes: number;
  /** Of its last line, milliseconds since the epoch. */
  lastMs: number;
}

export interface QueryOptions {
  readonly after?: number | undefined;
  readonly newestFirst?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A record that was written lately, as its line has it. */
interface Recent extends LineHead {
  readonly json: string;
}

/** Whose records they are. */
export interface RecordsOf {
  readonly bootId?: string | undefined;
  readonly account?: string | undefined;
}

/** What one VM's ring has its lines appended to: `AuditRingReader` says how it is used. */
export interface RingLog {
  readonly writable: boolean;
  write(lines: Uint8Array, isRest?: boolean): number;
  place(): LogPlace;
  readFrom(place: LogPlace, bytes: number): Uint8Array;
}

const dayMs = 86_400_000;
const defaultSegmentBytes = 16 * 1024 * 1024;
/** In memory, for followers and for rings: more than a ring holds. */
const recentRecords = 32_768;
const syncEveryMs = 1_000;
const segmentName = (first: number): string => `${String(first).padStart(16, '0')}.jsonl`;

/** Opens, or makes, the log. One process at a time: the store's lock is the log's too. */
export class AuditStore implements Disposable {
  readonly #options: AuditStoreOptions;
  readonly #segments: Segment[];
  readonly #followers = new Set<() => void>();
  /** The newest records, so that followers need not read what was just written. */
  #recent: Recent[] = [];
  #fd: number | undefined;
  #last: Link = firstLink;
  #lastAtMs = 0;
  /** The last record that was deleted for its age; undefined where that was never noted. */
  #deleted: Link | undefined;
  #writable = true;
  #unsynced = false;
  readonly #syncing: NodeJS.Timeout;

  constructor(options: AuditStoreOptions) {
    this.#options = options;
    mkdirSync(options.directory, { recursive: true, mode: 0o700 });
    this.#segments = readdirSync(options.directory)
      .filter((name) => /^\d{16}\.jsonl$/.test(name))
      .toSorted()
      .map((name) => {
        const file = path.join(options.directory, name);
        const { size, mtimeMs } = statSync(file);
        return { file, first: Number.parseInt(name, 10), bytes: size, lastMs: mtimeMs };
      });
    this.#resume();
    this.#goOnFrom(readEnds(options.directory));
    this.#syncing = setInterval(() => this.#sync(), syncEveryMs).unref();
  }

  get writable(): boolean {
    return this.#writable;
  }

  /** Of the last record; 0 when there is none. */
  get sequence(): number {
    return this.#last.sequence;
  }

  get oldestSequence(): number {
    return this.#segments[0]?.first ?? this.sequence + 1;
  }

  /** Appends all or none. False when that is not possible now; `onHealth` has said why. */
  append(records: readonly AuditRecord[], of: RecordsOf = {}): boolean {
    return this.#append(
      records.map((record) => auditLine(record).slice(0, -1)),
      of,
    );
  }

  /** For the ring of one VM. */
  ringLog(of: () => RecordsOf): RingLog {
    // One host has one log: a place is how many records there are.
    const isWritable = (): boolean => this.#writable;
    const device = 0;
    const inode = 0;
    const place = (): LogPlace => ({ device, inode, offset: this.sequence });
    return {
      get writable() {
        return isWritable();
      },
      write: (lines) => {
        const text = Buffer.from(lines.buffer, lines.byteOffset, lines.length).toString().trimEnd();
        return text === '' || this.#append(text.split('\n'), of()) ? lines.length : 0;
      },
      place,
      readFrom: ({ offset }, bytes) => {
        let text = '';
        for (const { json } of this.#sinceRecent(offset) ?? []) {
          text += `${json}\n`;
          if (text.length >= bytes) break;
        }
        return Buffer.from(text);
      },
    };
  }

  #append(jsons: readonly string[], of: RecordsOf): boolean {
    if (jsons.length === 0) return true;
    const atMs = Math.max(this.#lastAtMs, this.#options.wallMs());
    let { sequence, chain } = this.#last;
    let text = '';
    const added: Recent[] = [];
    for (const json of jsons) {
      const head = { ...of, sequence: ++sequence, atMs };
      chain = chainOf(chain, head, json);
      text += asLine(head, chain, json);
      added.push({ ...head, json });
    }
    if (!this.#write(Buffer.from(text))) return false;
    for (const recent of added) this.#remember(recent);
    this.#last = { sequence, chain };
    this.#lastAtMs = atMs;
    for (const wake of this.#followers) wake();
    // Who hears of it may append at once.
    this.#health(true, '');
    return true;
  }

  #remember(recent: Recent): void {
    this.#recent.push(recent);
    if (this.#recent.length > 2 * recentRecords) this.#recent = this.#recent.slice(-recentRecords);
  }

  /** Tries whether a log that could not be written can be again. */
  probe(): boolean {
    if (!this.#writable && this.#write(Buffer.from('\n'))) this.#health(true, '');
    return this.#writable;
  }

  /**
   * The next `limit` records that match, from the one after `after` on (newest first: from the one before it down), or those in
   * the next `mostBytes` of the log. `next`: after what the page that follows begins; undefined at the end.
   */
  async page(
    filter: AuditFilter,
    options: QueryOptions & { readonly limit: number; readonly mostBytes: number },
  ): Promise<{ readonly records: readonly KeptRecord[]; readonly next: Slice['last'] }> {
    const { after, limit, mostBytes, newestFirst } = options;
    const isBeyond = (sequence: number): boolean =>
      after === undefined || (newestFirst === true ? sequence < after : sequence > after);
    const records: KeptRecord[] = [];
    let bytes = 0;
    let next: Slice['last'];
    for await (const slice of this.#scan(filter, options)) {
      records.push(...slice.records.slice(0, limit - records.length));
      if (records.length === limit) return { records, next: records.at(-1)! };
      bytes += slice.bytes;
      // The first slice may end before the page begins.
      if (slice.last !== undefined && isBeyond(slice.last.sequence)) next = slice.last;
      if (bytes >= mostBytes && next !== undefined) return { records, next };
    }
    return { records, next: undefined };
  }

  /** All records that match, as `page` has them. */
  async *query(filter: AuditFilter, options: QueryOptions = {}): AsyncGenerator<KeptRecord> {
    for await (const { records } of this.#scan(filter, options)) yield* records;
  }

  /** The whole log is read where the filter's times don't exclude a segment. */
  async *#scan(filter: AuditFilter, options: QueryOptions): AsyncGenerator<Slice> {
    const { after, newestFirst = false, signal } = options;
    const segments = this.#segments.filter((segment, index) => {
      const next = this.#segments[index + 1]?.first ?? Number.POSITIVE_INFINITY;
      const inRange = after === undefined || (newestFirst ? segment.first < after : next > after + 1);
      return (
        inRange && (filter.fromMs === undefined || segment.lastMs >= filter.fromMs || next === Number.POSITIVE_INFINITY)
      );
    });
    for (const { file } of newestFirst ? segments.toReversed() : segments)
      yield* scanSegment(file, { filter, after, newestFirst, signal });
  }

  /** The number of the last record that was kept until then; 0 when none was. */
  async lastUntil(atMs: number, signal?: AbortSignal): Promise<number> {
    // The newest first: whoever asks for times asks for late ones.
    for (const { file } of this.#segments.toReversed()) {
      const found = await lastKeptUntil(file, atMs, signal);
      if (found !== undefined) return found;
    }
    return 0;
  }

  /** Every record after `after` that matches, in order, as they come. AuditCompactedError when some are deleted already. */
  async *follow(filter: AuditFilter, after: number, signal: AbortSignal): AsyncGenerator<KeptRecord> {
    let told = after;
    while (!signal.aborted) {
      if (told + 1 < this.oldestSequence) throw new AuditCompactedError(this.oldestSequence);
      if (told < this.sequence) {
        const upTo = this.sequence;
        const source = this.#keptSince(told) ?? this.query(filter, { after: told, signal });
        for await (const kept of source) {
          if (kept.sequence > upTo) break;
          told = kept.sequence;
          if (matches(filter, kept)) yield kept;
        }
        told = upTo;
        continue;
      }
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          this.#followers.delete(wake);
          signal.removeEventListener('abort', wake);
          resolve();
        };
        this.#followers.add(wake);
        signal.addEventListener('abort', wake, { once: true });
      });
    }
    signal.throwIfAborted();
  }

  /** `HostPort` says what it is; a part has whole segments, of `mostBytes` or more where there are more. */
  async check(after: Link | undefined, options: CheckOptions): Promise<AuditCheck> {
    for (;;) {
      const deleted = this.#deleted;
      const isKept = after !== undefined && after.sequence >= (deleted?.sequence ?? 0);
      const oldest = this.#segments[0];
      const found = await checkChain([...this.#segments], isKept ? after : deleted, this.#last, options);
      // What was too old may have gone meanwhile.
      if (found.problems.length === 0 || this.#segments[0] === oldest) return found;
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#syncing);
    if (this.#fd === undefined) return;
    try {
      fdatasyncSync(this.#fd);
      this.#noteEnds(this.#last, false);
    } catch {
      // Then the note is of an earlier moment, and true.
    }
    closeSync(this.#fd);
    this.#fd = undefined;
  }

  /** What came after `told`; undefined when that is not all in memory. */
  #sinceRecent(told: number): readonly Recent[] | undefined {
    const first = this.#recent[0]?.sequence;
    return first !== undefined && first <= told + 1 ? this.#recent.slice(told + 1 - first) : undefined;
  }

  #keptSince(told: number): readonly KeptRecord[] | undefined {
    return this.#sinceRecent(told)?.map(({ json, ...head }) => parseLine(asLine(head, '', json).trimEnd())!);
  }

  /** Finds the end of the chain. What a crash left of a line goes; its record was not taken for kept. */
  #resume(): void {
    for (let segment = this.#segments.at(-1); segment !== undefined; segment = this.#segments.at(-1)) {
      const text = readFileSync(segment.file, 'utf8');
      const whole = text.slice(0, text.lastIndexOf('\n') + 1);
      const last = whole.split('\n').findLast((line) => line !== '');
      const line = last === undefined ? undefined : parseLine(last);
      if (last !== undefined && line === undefined)
        throw new Error(
          `the audit log "${segment.file}" is damaged at its end; move the file away to go on without it`,
        );
      if (line === undefined) {
        rmSync(segment.file);
        this.#segments.pop();
        continue;
      }
      this.#last = line;
      this.#lastAtMs = line.atMs;
      for (const text of whole.split('\n').slice(-recentRecords)) {
        const recent = text === '' ? undefined : parseLine(text);
        if (recent !== undefined) this.#remember(recent);
      }
      segment.bytes = Buffer.byteLength(whole);
      this.#fd = openSync(segment.file, 'a', 0o600);
      ftruncateSync(this.#fd, segment.bytes);
      return;
    }
  }

  /**
   * What the log had on the disk counts, whatever was done to it meanwhile: where records are missing at its end, or the last one
   * is another, the next one goes on from what was there, so that every check from then on finds it.
   */
  #goOnFrom(ends: ChainEnds | undefined): void {
    this.#deleted = ends === undefined && this.oldestSequence === 1 ? firstLink : ends?.deleted;
    if (ends === undefined || ends.newest.sequence < this.sequence) return;
    if (ends.newest.chain !== this.#last.chain) this.#recent = [];
    this.#last = ends.newest;
  }

  #write(bytes: Uint8Array): boolean {
    try {
      const segment = this.#openSegment();
      let written = 0;
      try {
        while (written < bytes.length) written += writeSync(this.#fd!, bytes, written);
      } catch (error) {
        // Half a line would end the log at the next start.
        ftruncateSync(this.#fd!, segment.bytes);
        throw error;
      }
      segment.bytes += written;
      segment.lastMs = this.#options.wallMs();
      this.#unsynced = true;
      return true;
    } catch (error) {
      this.#health(false, (error as NodeJS.ErrnoException).code ?? String(error));
      return false;
    }
  }

  #openSegment(): Segment {
    const last = this.#segments.at(-1);
    const { segmentBytes = defaultSegmentBytes, directory } = this.#options;
    if (last !== undefined && this.#fd !== undefined && last.bytes < segmentBytes) return last;
    const first = this.sequence + 1;
    const file = path.join(directory, segmentName(first));
    const fd = openSync(file, 'a', 0o600);
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = fd;
    const segment: Segment = { file, first, bytes: 0, lastMs: this.#options.wallMs() };
    if (last?.file !== file) this.#segments.push(segment);
    this.#expire();
    return this.#segments.at(-1)!;
  }

  #expire(): void {
    const { keepDays, mostBytes, wallMs } = this.#options;
    const oldestMs = wallMs() - keepDays * dayMs;
    let bytes = this.#segments.reduce((sum, segment) => sum + segment.bytes, 0);
    const old: Segment[] = [];
    while (this.#segments.length > 1 && (this.#segments[0]!.lastMs < oldestMs || bytes > mostBytes)) {
      const [oldest] = this.#segments.splice(0, 1);
      bytes -= oldest!.bytes;
      old.push(oldest!);
    }
    if (old.length === 0) return;
    // Noted before they go, or nobody could say later that no more than they are gone.
    const last = lastLineOf(old.at(-1)!.file);
    this.#deleted = (last === undefined ? undefined : parseLine(last)) ?? this.#deleted;
    this.#noteEnds(this.#last, true);
    for (const { file } of old) rmSync(file, { force: true });
  }

  #noteEnds(newest: Link, isLasting: boolean): void {
    const plain = ({ sequence, chain }: Link): Link => ({ sequence, chain });
    const deleted = this.#deleted && plain(this.#deleted);
    noteEnds(this.#options.directory, { deleted, newest: plain(newest) }, isLasting);
  }

  #health(writable: boolean, reason: string): void {
    if (writable === this.#writable) return;
    this.#writable = writable;
    this.#options.onHealth(writable, reason);
  }

  #sync(): void {
    if (!this.#unsynced || this.#fd === undefined) return;
    this.#unsynced = false;
    const newest = this.#last;
    fdatasync(this.#fd, (error) => {
      if (error?.code === 'EBADF') return;
      try {
        if (error !== null) throw error;
        this.#noteEnds(newest, false);
      } catch (failed) {
        this.#health(false, (failed as NodeJS.ErrnoException).code ?? String(failed));
      }
    });
  }
}
