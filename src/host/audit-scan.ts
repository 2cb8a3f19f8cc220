/**
 * Reading the segments of an audit log: a slice at a time, so that whoever reads a gigabyte keeps nobody waiting who shares the
 * thread. A line is looked at only where its text can match.
 */
import { Buffer } from 'node:buffer';
import { type FileHandle, open } from 'node:fs/promises';
import type { AuditFilter as Asked } from '../records/index.ts';
import type { AuditRecord } from '../tree/index.ts';
import type { LineHead } from './audit-chain.ts';
import { quote } from './audit-line.ts';

/** One record as it was kept. */
export interface KeptRecord extends LineHead {
  readonly record: AuditRecord;
}

export interface AuditFilter extends Asked {
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
  /** The last line of it in the order of reading; undefined when it has none that is whole. */
  readonly last: Pick<LineHead, 'sequence' | 'atMs'> | undefined;
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
    const {
      at: atMs = 0,
      record: { time, ...record },
      ...head
    } = JSON.parse(text) as Omit<Line, 'json' | 'record' | 'atMs'> & {
      readonly at?: number;
      readonly record: Omit<AuditRecord, 'timeMs'> & { readonly time: string };
    };
    const json = text.slice(at + recordStart.length, -1);
    return { ...head, atMs, record: { timeMs: Date.parse(time), ...record }, json };
  } catch {
    return undefined;
  }
};

const isAmong = ({ names, prefixes }: NonNullable<AuditFilter['vms']>, vm: string): boolean =>
  names.includes(vm) || prefixes.some((prefix) => vm.startsWith(prefix));

export const matches = (filter: AuditFilter, { record, account }: Pick<KeptRecord, 'record' | 'account'>): boolean => {
  if (filter.account !== undefined && account !== filter.account) return false;
  if (filter.vms !== undefined && !isAmong(filter.vms, record.vm)) return false;
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
const needlesOf = ({ account, vm, path, uid, operation, verdict }: AuditFilter): readonly string[] => [
  ...(account === undefined ? [] : [`"account":${JSON.stringify(account)}`]),
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
  await using opened = await openSegment(file);
  if (opened !== undefined) yield* new SegmentScan(opened, await sizeOf(opened), options).run();
}

/** The number of the last record of a segment that was kept until then; undefined where there is none. */
export const lastKeptUntil = async (
  file: string,
  atMs: number,
  signal: AbortSignal | undefined,
): Promise<number | undefined> => {
  await using opened = await openSegment(file);
  if (opened === undefined) return undefined;
  const options = { filter: {}, after: undefined, newestFirst: false, signal };
  return await new SegmentScan(opened, await sizeOf(opened), options).lastUntil(atMs);
};

const openSegment = async (file: string): Promise<FileHandle | undefined> => {
  try {
    return await open(file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
};

/** A line that is written meanwhile is for the next who asks. */
const sizeOf = async (handle: FileHandle): Promise<number> => (await handle.stat()).size;

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
    let from = after === undefined ? 0 : (await this.#around(isAfter(after))).from;
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
    let to = after === undefined ? this.#size : (await this.#around(isAfter(after - 1))).to;
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
    let last: Slice['last'];
    for (const text of lines) {
      const head = headOf(text);
      if (head === undefined) continue;
      last = head;
      const { sequence } = head;
      if (after !== undefined && (newestFirst ? sequence >= after : sequence <= after)) continue;
      if (!this.#needles.every((needle) => text.includes(needle))) continue;
      const line = parseLine(text);
      if (line === undefined || !matches(filter, line)) continue;
      const { chain: _, json: __, ...kept } = line;
      records.push(kept);
    }
    return { records, last, bytes: bytes.length };
  }

  /** The number of the last line that was kept until then; undefined when the first was kept later. */
  async lastUntil(atMs: number): Promise<number | undefined> {
    let last: number | undefined;
    const isLater = (head: Head): boolean => head.atMs > atMs;
    const { from, to } = await this.#around(isLater);
    for (const text of (await this.#read(from, to - from)).toString().split('\n')) {
      const head = headOf(text);
      if (head !== undefined && isLater(head)) break;
      last = head?.sequence ?? last;
    }
    return last;
  }

  /**
   * Two beginnings of lines, less than a slice apart where lines are not long, between which the first line begins that is
   * beyond: none before `from` is, and every line from `to` on. Lines are in order of it.
   */
  async #around(isBeyond: (head: Head) => boolean): Promise<{ readonly from: number; readonly to: number }> {
    let from = 0;
    let to = this.#size;
    while (to - from > sliceBytes) {
      const middle = from + Math.floor((to - from) / 2);
      const found = firstLine(await this.#read(middle, sliceBytes));
      if (found === undefined || middle + found.at >= to) break;
      if (isBeyond(found.head)) to = middle + found.at;
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

type Head = Pick<LineHead, 'sequence' | 'atMs'>;

const isAfter =
  (sequence: number) =>
  (head: Head): boolean =>
    head.sequence > sequence;

const headOf = (line: string): Head | undefined => {
  const found = /^\{"sequence":(\d{1,15}),"chain":"[0-9a-f]{64}",(?:"at":(\d{1,15}),)?/.exec(line);
  return found === null ? undefined : { sequence: Number(found[1]), atMs: Number(found[2] ?? 0) };
};

/** The first line that begins in there and says its number. */
const firstLine = (bytes: Buffer): { readonly at: number; readonly head: Head } | undefined => {
  for (let at = bytes.indexOf(newline) + 1; at > 0; at = bytes.indexOf(newline, at) + 1) {
    const head = headOf(bytes.toString('latin1', at, at + 140));
    if (head !== undefined) return { at, head };
  }
  return undefined;
};
