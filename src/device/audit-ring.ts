/** The device process's end of the audit ring. A record is kept once it is in there, whoever is killed next. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { Mapping } from '../sys/index.ts';
import type { AuditRecord } from '../tree/index.ts';
import {
  FILLER_HEAD_BYTES,
  FILLER_KIND,
  RECORD_ALIGN,
  RECORD_KIND,
  RING_HEAD_BYTES,
  RingRecord,
  ringStrings,
  ringWords,
  whyNoRing,
} from './audit-ring-layout.ts';

const encoder = new TextEncoder();
/** UTF-16 code units take three bytes of UTF-8 at most. */
const most = (text: string, limit: number): number => Math.min(text.length * 3, limit);

/** One for each ring at a time. Owned by the device process; its file is the host daemon's. */
export class AuditRing {
  readonly #mapping: Mapping;
  readonly #words: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #dataBytes: number;
  #head: number;
  /** As it was seen last. It only moves on. */
  #tail: number;
  #sequence: number;
  #wantsDoorbell = false;

  /** Maps the ring at `path`. Throws when there is none, or when it is none. */
  constructor(path: string) {
    const fd = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
    try {
      const { size } = fstatSync(fd);
      const mapping = size < RING_HEAD_BYTES ? `it has ${size} bytes` : Mapping.map(fd, 0, size);
      if (!(mapping instanceof Mapping)) throw new Error(`mapping the audit ring "${path}" failed: ${mapping}`);
      this.#mapping = mapping;
      const { buffer } = mapping;
      this.#words = new Uint32Array(buffer, 0, RING_HEAD_BYTES / 4);
      const why = whyNoRing(this.#words, size);
      if (why !== undefined) throw new Error(`"${path}" is no audit ring: ${why}`);
    } finally {
      closeSync(fd);
    }
    const { buffer } = this.#mapping;
    this.#dataBytes = this.#words[ringWords.dataBytes]!;
    this.#bytes = new Uint8Array(buffer, RING_HEAD_BYTES);
    this.#view = new DataView(buffer, RING_HEAD_BYTES);
    this.#head = Atomics.load(this.#words, ringWords.head);
    // As if it were full: the first record looks where the tail is.
    this.#tail = (this.#head - this.#dataBytes) >>> 0;
    this.#sequence = Atomics.load(this.#words, ringWords.nextSequence);
    if (this.#head % RECORD_ALIGN !== 0)
      throw new Error(`"${path}" is no audit ring: it says that its next record begins at ${this.#head}`);
  }

  /** An `AuditSink`: false when the ring is full, or the log can't be written. */
  readonly record = (record: AuditRecord): boolean => {
    if (Atomics.load(this.#words, ringWords.unwritable) !== 0) return false;
    const { way, operation, path, rule, errno = '', program = '' } = record;
    const limit = ringStrings;
    const needed =
      RingRecord.sizeBytes +
      RECORD_ALIGN +
      most(way, limit.way) +
      most(operation, limit.operation) +
      most(path, limit.path) +
      most(rule, limit.rule) +
      most(errno, limit.errno) +
      most(program, limit.program);
    if (!this.#makeRoom(needed)) return false;
    const view = this.#view;
    const base = this.#head & (this.#dataBytes - 1);
    let at = base + RingRecord.sizeBytes;
    const wayBytes = this.#put(way, at, limit.way);
    const operationBytes = this.#put(operation, (at += wayBytes), limit.operation);
    const errnoBytes = this.#put(errno, (at += operationBytes), limit.errno);
    const pathBytes = this.#put(path, (at += errnoBytes), limit.path);
    const ruleBytes = this.#put(rule, (at += pathBytes), limit.rule);
    const programBytes = this.#put(program, (at += ruleBytes), limit.program);
    at += programBytes;
    const length = Math.ceil((at - base) / RECORD_ALIGN) * RECORD_ALIGN;
    // The daemon knows texts by these bytes too.
    for (const end = base + length; at < end; at++) this.#bytes[at] = 0;
    RingRecord.padding.set(view, base, 0);
    RingRecord.padding2.set(view, base, 0);
    RingRecord.length.set(view, base, length);
    RingRecord.kind.set(view, base, RECORD_KIND);
    RingRecord.sequence.set(view, base, this.#sequence);
    RingRecord.uid.set(view, base, record.uid);
    RingRecord.gid.set(view, base, record.gid);
    RingRecord.pid.set(view, base, record.pid);
    RingRecord.timeMs.set(view, base, Math.floor(record.timeMs));
    RingRecord.revision.set(view, base, record.revision);
    RingRecord.dropped.set(view, base, record.dropped ?? 0);
    RingRecord.droppedOthers.set(view, base, record.droppedOthers ?? 0);
    RingRecord.wayBytes.set(view, base, wayBytes);
    RingRecord.operationBytes.set(view, base, operationBytes);
    RingRecord.errnoBytes.set(view, base, errnoBytes);
    RingRecord.verdict.set(view, base, record.verdict === 'allowed' ? 0 : 1);
    RingRecord.pathBytes.set(view, base, pathBytes);
    RingRecord.ruleBytes.set(view, base, ruleBytes);
    RingRecord.programBytes.set(view, base, programBytes);
    this.#sequence = (this.#sequence + 1) >>> 0;
    Atomics.store(this.#words, ringWords.nextSequence, this.#sequence);
    this.#publish(length);
    return true;
  };

  /** Whether the daemon sleeps and has to be told that there are records; true once for each time. */
  takeDoorbell(): boolean {
    const wanted = this.#wantsDoorbell;
    this.#wantsDoorbell = false;
    return wanted;
  }

  /** The doorbell could not be rung: it is still due. */
  returnDoorbell(): void {
    this.#wantsDoorbell = true;
  }

  close(): void {
    this.#mapping.unmap();
  }

  /** Makes `needed` bytes free in one piece from the head on, by filler where the end is too near. */
  #makeRoom(needed: number): boolean {
    const untilEnd = this.#dataBytes - (this.#head & (this.#dataBytes - 1));
    const filler = untilEnd < needed ? untilEnd : 0;
    if (!this.#hasFree(filler + needed)) return false;
    if (filler > 0) {
      const base = this.#dataBytes - untilEnd;
      this.#view.setUint32(base, filler, true);
      this.#view.setUint32(base + FILLER_HEAD_BYTES / 2, FILLER_KIND, true);
      this.#publish(filler);
    }
    return true;
  }

  #hasFree(bytes: number): boolean {
    if (((this.#head - this.#tail) >>> 0) + bytes <= this.#dataBytes) return true;
    const check = Atomics.load(this.#words, ringWords.tailCheck);
    const tail = Atomics.load(this.#words, ringWords.tail);
    if (~check >>> 0 !== tail) return false;
    this.#tail = tail;
    return ((this.#head - tail) >>> 0) + bytes <= this.#dataBytes;
  }

  #publish(bytes: number): void {
    const words = this.#words;
    this.#head = (this.#head + bytes) >>> 0;
    Atomics.store(words, ringWords.head, this.#head);
    Atomics.store(words, ringWords.headCheck, ~this.#head >>> 0);
    if (Atomics.load(words, ringWords.asleep) === 0) return;
    Atomics.store(words, ringWords.asleep, 0);
    this.#wantsDoorbell = true;
  }

  /** Writes text as UTF-8, cut to `limit` bytes; returns how many there are. */
  #put(text: string, at: number, limit: number): number {
    const { length } = text;
    if (length > limit) return this.#encode(text, at, limit);
    const bytes = this.#bytes;
    for (let i = 0; i < length; i++) {
      const unit = text.charCodeAt(i);
      if (unit > 0x7f) return this.#encode(text, at, limit);
      bytes[at + i] = unit;
    }
    return length;
  }

  #encode(text: string, at: number, limit: number): number {
    return encoder.encodeInto(text, this.#bytes.subarray(at, at + limit)).written;
  }
}
