/**
 * The records of an audit ring, as bytes that a device process wrote: it parses what guests send and may have been taken
 * over by one, so every length, number and string is checked before it is believed.
 */
import { type Buffer, isUtf8 } from 'node:buffer';
import {
  FILLER_HEAD_BYTES,
  FILLER_KIND,
  RECORD_ALIGN,
  RECORD_KIND,
  RingRecord,
  ringStrings,
  ringVerdicts,
} from '../device/index.ts';
import { type LineParts, lineOf, lineParts, type RecordTexts } from './audit-line.ts';

/** The ring does not hold what a device process writes. */
export class RingError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'RingError';
  }
}

/** ECMAScript time values end there (ECMA-262 §21.4.1.1). */
const lastTimeMs = 8.64e15;
/** Texts of records that are remembered, and how long they may be. */
const KNOWN = 1024;
const KNOWN_CHARACTERS = 1024;

/** Reads records out of pieces of one ring, in order. */
export class RingRecords {
  readonly #vm: string;
  /** Forgotten all at once when there are too many. */
  readonly #known = new Map<string, LineParts>();
  /** Of the next record; undefined before the first. */
  #sequence: number | undefined;

  constructor(vm: string) {
    this.#vm = vm;
  }

  /**
   * The length of the record or filler at `at` in `bytes`, which end at the end of the records or of the ring's data
   * (`isLast`), or before; 0: not all of it is here. RingError.
   */
  lengthAt(bytes: Buffer, at: number, isLast: boolean): number {
    const left = bytes.length - at;
    if (left < FILLER_HEAD_BYTES) throw new RingError(`a record has ${left} bytes left`);
    const length = bytes.readUInt32LE(at);
    const kind = bytes.readUInt32LE(at + 4);
    if (kind !== RECORD_KIND && kind !== FILLER_KIND) throw new RingError(`a record is of kind ${kind}`);
    const least = kind === RECORD_KIND ? RingRecord.sizeBytes : FILLER_HEAD_BYTES;
    if (length < least || length % RECORD_ALIGN !== 0)
      throw new RingError(`a record of kind ${kind} has ${length} bytes`);
    if (length <= left) return length;
    if (isLast) throw new RingError(`a record has ${length} bytes where ${left} are left`);
    return 0;
  }

  /** The line of the record of `length` bytes at `at`; undefined where it is filler. RingError. */
  lineAt(bytes: Buffer, at: number, length: number): string | undefined {
    if (bytes.readUInt32LE(at + RingRecord.kind.offset) === FILLER_KIND) return undefined;
    const view = new DataView(bytes.buffer, bytes.byteOffset + at, length);
    const sequence = RingRecord.sequence.get(view, 0);
    if (this.#sequence !== undefined && (sequence - this.#sequence) >>> 0 > 1)
      throw new RingError(`record ${sequence} comes where ${this.#sequence} should`);
    const timeMs = RingRecord.timeMs.get(view, 0);
    if (timeMs > lastTimeMs) throw new RingError(`a record has time ${timeMs}`);
    const revision = RingRecord.revision.get(view, 0);
    if (!Number.isSafeInteger(revision)) throw new RingError(`a record has revision ${revision}`);
    const dropped = RingRecord.dropped.get(view, 0);
    const droppedOthers = RingRecord.droppedOthers.get(view, 0);
    const parts = this.#partsAt(bytes, at, length, view);
    this.#sequence = (sequence + 1) >>> 0;
    return lineOf(parts, {
      timeMs,
      uid: RingRecord.uid.get(view, 0),
      gid: RingRecord.gid.get(view, 0),
      pid: RingRecord.pid.get(view, 0),
      revision,
      dropped: dropped === 0 ? undefined : dropped,
      droppedOthers: droppedOthers === 0 ? undefined : droppedOthers,
    });
  }

  /** The texts of a record, checked. Those that came before are known by their bytes, lengths and verdict included. */
  #partsAt(bytes: Buffer, at: number, length: number, view: DataView): LineParts {
    const key = bytes.toString('latin1', at + RingRecord.wayBytes.offset, at + length);
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const parts = lineParts({ vm: this.#vm, ...textsAt(bytes, at, length, view) });
    if (key.length > KNOWN_CHARACTERS) return parts;
    if (this.#known.size >= KNOWN) this.#known.clear();
    this.#known.set(key, parts);
    return parts;
  }

  /** Another device process writes from now on: it goes on counting where the ring says. */
  restart(): void {
    this.#sequence = undefined;
  }

  /** Goes back to where it was before a piece that is read again. */
  get position(): number | undefined {
    return this.#sequence;
  }

  set position(sequence: number | undefined) {
    this.#sequence = sequence;
  }
}

/** The texts of a record of `length` bytes at `at`. RingError. */
const textsAt = (bytes: Buffer, at: number, length: number, view: DataView): Omit<RecordTexts, 'vm'> => {
  const verdict = ringVerdicts[RingRecord.verdict.get(view, 0)];
  if (verdict === undefined) throw new RingError(`a record has verdict ${RingRecord.verdict.get(view, 0)}`);
  const wayBytes = RingRecord.wayBytes.get(view, 0);
  const operationBytes = RingRecord.operationBytes.get(view, 0);
  const errnoBytes = RingRecord.errnoBytes.get(view, 0);
  const pathBytes = RingRecord.pathBytes.get(view, 0);
  const ruleBytes = RingRecord.ruleBytes.get(view, 0);
  const programBytes = RingRecord.programBytes.get(view, 0);
  if (
    wayBytes > ringStrings.way ||
    operationBytes > ringStrings.operation ||
    errnoBytes > ringStrings.errno ||
    pathBytes > ringStrings.path ||
    ruleBytes > ringStrings.rule ||
    programBytes > ringStrings.program
  )
    throw new RingError('a record has a string that is too long');
  const textBytes = wayBytes + operationBytes + errnoBytes + pathBytes + ruleBytes + programBytes;
  const room = length - RingRecord.sizeBytes;
  if (textBytes > room || room - textBytes >= RECORD_ALIGN)
    throw new RingError(`a record has ${textBytes} bytes of text in ${room}`);
  if (wayBytes === 0 || operationBytes === 0 || pathBytes === 0 || ruleBytes === 0)
    throw new RingError('a record lacks what was asked for, or by which rule it was decided');
  if ((verdict === 'denied') !== errnoBytes > 0)
    throw new RingError('a record has a verdict and an errno that disagree');
  const wayAt = at + RingRecord.sizeBytes;
  if (!isUtf8(bytes.subarray(wayAt, wayAt + textBytes))) throw new RingError('a record has text that is no UTF-8');
  const operationAt = wayAt + wayBytes;
  const errnoAt = operationAt + operationBytes;
  const pathAt = errnoAt + errnoBytes;
  const ruleAt = pathAt + pathBytes;
  const programAt = ruleAt + ruleBytes;
  return {
    way: text(bytes, wayAt, operationAt),
    operation: text(bytes, operationAt, errnoAt),
    path: text(bytes, pathAt, ruleAt),
    program: programBytes === 0 ? undefined : text(bytes, programAt, programAt + programBytes),
    verdict,
    rule: text(bytes, ruleAt, programAt),
    errno: errnoBytes === 0 ? undefined : text(bytes, errnoAt, pathAt),
  };
};

/** A piece of what is UTF-8 as a whole; it is UTF-8 by itself where it does not begin within a character. */
const text = (bytes: Buffer, start: number, end: number): string => {
  if (start < end && (bytes[start]! & 0xc0) === 0x80) throw new RingError('a record has text that is no UTF-8');
  return bytes.toString('utf8', start, end);
};
