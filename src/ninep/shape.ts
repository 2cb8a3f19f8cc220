/** What a request's body looks like, and the one walk over it that checks every length before a handler looks at a field. */
import type { Field } from '../wire/index.ts';
import { MAXWELEM, Twalk, Twrite } from './abi.ts';

/** Any struct table: its size and the names of its fields. */
export interface AnyStruct {
  readonly sizeBytes: number;
  readonly fields: readonly string[];
}

/** A body: head, strings, tail, strings; or a head that says how many names or bytes follow. */
export interface Shape {
  readonly head: AnyStruct;
  /** Names of the strings that follow the head. */
  readonly strings: readonly string[];
  readonly tail?: AnyStruct;
  /** Older clients leave the tail out. */
  readonly tailMayMiss?: boolean;
  /** Strings that follow the tail. */
  readonly after: readonly string[];
  /** Names or bytes, as many as the head counts. */
  readonly counted?: 'names' | 'data';
}

const COUNT_BYTES = 2;

/** Where the parts of the body at hand begin and end. Reused for every request. */
export class Parts {
  /** Of each string, at most as many as a walk has names. */
  readonly starts = new Int32Array(MAXWELEM);
  readonly ends = new Int32Array(MAXWELEM);
  /** Where the tail begins; -1: it is missing. */
  tail = 0;
  #strings = 0;

  /** Measures `start` to `end` of a message; false when its parts do not fill it exactly. */
  measure(shape: Shape, view: DataView, start: number, end: number): boolean {
    this.#strings = 0;
    const { head, tail } = shape;
    let at = start + head.sizeBytes;
    if (at > end) return false;
    if (shape.counted === 'data') return Twrite.count.get(view, start) === end - at;
    const count = shape.counted === 'names' ? Twalk.nwname.get(view, start) : shape.strings.length;
    at = this.#measureStrings(count, view, at, end);
    if (at < 0) return false;
    if (tail === undefined) return at === end;
    if (at === end && shape.tailMayMiss === true) {
      this.tail = -1;
      return true;
    }
    this.tail = at;
    if (at + tail.sizeBytes > end) return false;
    return this.#measureStrings(shape.after.length, view, at + tail.sizeBytes, end) === end;
  }

  /** Returns where the last of them ends, or -1. */
  #measureStrings(count: number, view: DataView, start: number, end: number): number {
    let at = start;
    for (let index = 0; index < count; index++) {
      if (at + COUNT_BYTES > end) return -1;
      const from = at + COUNT_BYTES;
      at = from + view.getUint16(at, true);
      if (at > end) return -1;
      if (this.#strings === MAXWELEM) continue;
      this.starts[this.#strings] = from;
      this.ends[this.#strings++] = at;
    }
    return at;
  }
}

const SUFFIX = { 1: '[1]', 2: '[2]', 4: '[4]', 8: '[8]' } as const;

const fieldNames = (table: AnyStruct): string[] =>
  table.fields.map((name) => {
    const { size } = (table as unknown as Readonly<Record<string, Field>>)[name]!;
    return `${name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}${SUFFIX[size as keyof typeof SUFFIX]}`;
  });

/** The body in the protocol's own notation: `fid[4] name[s] flags[4]`. */
export function notation({ head, strings, tail, after, counted }: Shape): string {
  const rest = counted === 'names' ? ['nwname*(wname[s])'] : counted === 'data' ? ['data[count]'] : [];
  const text = (name: string) => `${name}[s]`;
  return [
    ...fieldNames(head),
    ...strings.map(text),
    ...(tail === undefined ? [] : fieldNames(tail)),
    ...after.map(text),
    ...rest,
  ].join(' ');
}
