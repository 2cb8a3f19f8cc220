/**
 * Reading the segments of an audit log: a slice at a time, so that whoever reads a gigabyte keeps nobody waiting who shares the
 * thread. A line is looked at only where its text can match.
 */
import { Buffer } from 'node:buffer';
import { type FileHandle, open } from 'node:fs/promises';
import type { AuditRecord } from '../tree/index.ts';
import { quote } from './audit-line.ts';

/** One record as it was kept. */
export interface KeptRecord {
  /** Counts all records of this host, from 1. */
  readonly sequence: number;
  readonly record: AuditRecord;
  /** The VM's boot that it is of, where one is known. */
  readonly bootId?: string | undefined;
}

export interface AuditFilter {
  readonly vm?: string | undefined;
  /** A path and all below it. */
  readonly path?: string | undefined;
  readonly uid?: number | undefined;
  readonly operation?: string | undefined;
  readonly verdict?: 'allowed' | 'denied' | undefined;
  /** Inclusive and exclusive, milliseconds since the epoch. */
  readonly fromMs?: number | undefined;
  readonly untilMs?: number | undefined;
}

/** A line without its end, and what it says. `json`: the record as `auditLine` writes it. */
export interface Line extends KeptRecord {
  readonly chain: string;
  readonly json: string;
}

/** What was found in one read. */
export interface Slice {
  readonly records: readonly KeptRecord[];
  /** Of the last line of it in the order of reading; undefined when it has none that is whole. */
  readonly last: number | undefined;
  readonly bytes: number;
}

export interface ScanOptions {
  readonly filter: AuditFilter;
  /** Only records after this one; newest first: only those before it. */
  readonly after: number | undefined;
  readonly newestFirst: boolean;
  readonly signal: AbortSignal | undefined;
}

/** What is parsed in one go. A line that is longer comes whole. */
export const sliceBytes = 128 * 1024;

const recordStart = '"record":';

/** Undefined when the line is not whole, or not one of ours. */
export const parseLine = (text: string): Line | undefined => {
  const at = text.indexOf(recordStart);
  if (at < 0 || !text.endsWith('}}')) return undefined;
  try {
    const { sequence, chain, bootId, record } = JSON.parse(text) as Omit<Line, 'json' | 'record'> & {
      readonly record: Omit<AuditRecord, 'timeMs'> & { readonly time: string };
    };
    const { time, ...rest } = record;
    const json = text.slice(at + recordStart.length, -1);
    return {
      sequence,
      chain,
      ...(bootId !== undefined && { bootId }),
      record: { timeMs: Date.parse(time), ...rest },
      json,
    };
  } catch {
    return undefined;
  }
};

export const matches = (filter: AuditFilter, record: AuditRecord): boolean => {
  if (filter.vm !== undefined && record.vm !== filter.vm) return false;
  if (filter.uid !== undefined && record.uid !== filter.uid) return false;
  if (filter.operation !== undefined && record.operation !== filter.operation) return false;
  if (filter.verdict !== undefined && record.verdict !== filter.verdict) return false;
  if (filter.path !== undefined) {
    const below = filter.path === '/' ? '/' : `${filter.path}/`;
    if (record.path !== filter.path && !record.path.startsWith(below)) return false;
  }
  const { fromMs = Number.NEGATIVE_INFINITY, untilMs = Number.POSITIVE_INFINITY } = filter;
  return record.timeMs >= fromMs && record.timeMs < untilMs;
};

/** What every line has in it that can match. */
const needlesOf = ({ vm, path, uid, operation, verdict }: AuditFilter): readonly string[] => [
  ...(vm === undefined ? [] : [`"vm":${quote(vm)}`]),
  // Without the quote at its end: what lies below matches too.
  ...(path === undefined || path === '/' ? [] : [`"path":${quote(path).slice(0, -1)}`]),
  ...(uid === undefined ? [] : [`"uid":${uid},`]),
  ...(operation === undefined ? [] : [`"operation":${quote(operation)}`]),
  ...(verdict === undefined ? [] : [`"verdict":"${verdict}"`]),
];

const newline = 0x0a;

/** Slices of a segment in the order that is asked for. Nothing where the file is gone: it was too old. */
export async function* scanSegment(file: string, options: ScanOptions): AsyncGenerator<Slice> {
  let handle: FileHandle;
  try {
    handle = await open(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  try {
    // A line that is written meanwhile is for the next who asks.
    const { size } = await handle.stat();
    yield* new SegmentScan(handle, size, options).run();
  } finally {
    await handle.close();
  }
}

class SegmentScan {
  readonly #handle: FileHandle;
  readonly #size: number;
  readonly #options: ScanOptions;
  readonly #needles: readonly string[];

  constructor(handle: FileHandle, size: number, options: ScanOptions) {
    this.#handle = handle;
    this.#size = size;
    this.#options = options;
    this.#needles = needlesOf(options.filter);
  }

  run(): AsyncGenerator<Slice> {
    return this.#options.newestFirst ? this.#backward() : this.#forward();
  }

  async *#forward(): AsyncGenerator<Slice> {
    const { after } = this.#options;
    let from = after === undefined ? 0 : (await this.#around(after)).from;
    for (let want = sliceBytes; from < this.#size; ) {
      const bytes = await this.#read(from, want);
      const end = bytes.lastIndexOf(newline) + 1;
      if (end === 0) {
        if (from + bytes.length >= this.#size) return;
        want *= 2;
        continue;
      }
      yield this.#slice(bytes.subarray(0, end));
      from += end;
      want = sliceBytes;
    }
  }

  async *#backward(): AsyncGenerator<Slice> {
    const { after } = this.#options;
    let to = after === undefined ? this.#size : (await this.#around(after - 1)).to;
    for (let want = sliceBytes; to > 0; ) {
      const from = Math.max(0, to - want);
      const bytes = await this.#read(from, to - from);
      const start = from === 0 ? 0 : bytes.subarray(0, -1).indexOf(newline) + 1;
      if (from > 0 && start === 0) {
        want *= 2;
        continue;
      }
      yield this.#slice(bytes.subarray(start));
      to = from + start;
      want = sliceBytes;
    }
  }

  /** Whole lines; what follows the last of them is none. */
  #slice(bytes: Buffer): Slice {
    const { filter, after, newestFirst } = this.#options;
    const lines = bytes.toString().split('\n');
    lines.pop();
    if (newestFirst) lines.reverse();
    const records: KeptRecord[] = [];
    let last: number | undefined;
    for (const text of lines) {
      const sequence = sequenceOf(text);
      if (sequence === undefined) continue;
      last = sequence;
      if (after !== undefined && (newestFirst ? sequence >= after : sequence <= after)) continue;
      if (!this.#needles.every((needle) => text.includes(needle))) continue;
      const line = parseLine(text);
      if (line === undefined || !matches(filter, line.record)) continue;
      const { record, bootId } = line;
      records.push({ sequence, record, ...(bootId !== undefined && { bootId }) });
    }
    return { records, last, bytes: bytes.length };
  }

  /**
   * Two beginnings of lines, less than a slice apart where lines are not long, between which the first line with a higher number
   * begins: no line before `from` has one, and every line from `to` on.
   */
  async #around(sequence: number): Promise<{ readonly from: number; readonly to: number }> {
    let from = 0;
    let to = this.#size;
    while (to - from > sliceBytes) {
      const middle = from + Math.floor((to - from) / 2);
      const found = firstLine(await this.#read(middle, sliceBytes));
      if (found === undefined || middle + found.at >= to) break;
      if (found.sequence > sequence) to = middle + found.at;
      else from = middle + found.at;
    }
    return { from, to };
  }

  async #read(from: number, want: number): Promise<Buffer> {
    this.#options.signal?.throwIfAborted();
    const bytes = Buffer.allocUnsafe(Math.min(want, this.#size - from));
    let filled = 0;
    while (filled < bytes.length) {
      const { bytesRead } = await this.#handle.read(bytes, filled, bytes.length - filled, from + filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    return bytes.subarray(0, filled);
  }
}

const sequenceOf = (line: string): number | undefined => {
  const found = /^\{"sequence":(\d{1,15}),/.exec(line);
  return found === null ? undefined : Number(found[1]);
};

/** The first line that begins in there and says its number. */
const firstLine = (bytes: Buffer): { readonly at: number; readonly sequence: number } | undefined => {
  for (let at = bytes.indexOf(newline) + 1; at > 0; at = bytes.indexOf(newline, at) + 1) {
    const sequence = sequenceOf(bytes.toString('latin1', at, at + 40));
    if (sequence !== undefined) return { at, sequence };
  }
  return undefined;
};
