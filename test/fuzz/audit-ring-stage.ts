/** An audit ring on a file of its own, and a log in memory that can be full and be cut off. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { AuditRing } from '../../src/device/audit-ring.ts';
import { emptyRing, RING_HEAD_BYTES, RingRecord, ringDataBytes } from '../../src/device/audit-ring-layout.ts';
import { AuditRingReader } from '../../src/host/audit-ring-reader.ts';
import type { AuditRecord } from '../../src/tree/index.ts';

export const DATA_BYTES = ringDataBytes.least;

/** What a daemon that is killed between two system calls meets. */
export class Killed extends Error {}

/** As `AuditLog`: takes what there is room for, and says so. */
export class MemoryLog {
  #bytes = new Uint8Array(0);
  /** How many more bytes find room. */
  room = Number.POSITIVE_INFINITY;
  /** The daemon is killed after so many more bytes, before it learns that they were written. */
  killAfter = Number.POSITIVE_INFINITY;
  writable = true;
  onHealth: (writable: boolean) => void = () => {};

  readonly write = (lines: Uint8Array): number => {
    const taken = Math.min(lines.length, this.room, this.killAfter);
    const bytes = new Uint8Array(this.#bytes.length + taken);
    bytes.set(this.#bytes);
    bytes.set(lines.subarray(0, taken), this.#bytes.length);
    this.#bytes = bytes;
    this.room -= taken;
    if (this.killAfter < Number.POSITIVE_INFINITY) {
      this.killAfter = Number.POSITIVE_INFINITY;
      throw new Killed();
    }
    const writable = taken === lines.length;
    if (writable !== this.writable) {
      this.writable = writable;
      this.onHealth(writable);
    }
    return taken;
  };

  readonly place = () => ({ device: 1, inode: 2, offset: this.#bytes.length });

  readonly readFrom = ({ offset }: { readonly offset: number }, bytes: number): Uint8Array =>
    this.#bytes.slice(offset, offset + bytes);

  get text(): string {
    return new TextDecoder('utf-8', { fatal: true }).decode(this.#bytes);
  }
}

/** One ring file, given back by `remove`. */
export class RingStage {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'porthole-ring-'));
  readonly file = path.join(this.#directory, 'audit.ring');
  readonly log = new MemoryLog();
  readonly lies: string[] = [];
  readonly troubles: string[] = [];

  /** An empty ring whose first record gets `position`. */
  make(position = 0): void {
    this.write(emptyRing(DATA_BYTES, position), 0, true);
  }

  /** Scribbles on the file. */
  write(bytes: Uint8Array, offset: number, anew = false): void {
    const fd = openSync(this.file, anew ? 'w' : 'r+');
    writeSync(fd, bytes, 0, bytes.length, offset);
    if (anew) writeSync(fd, new Uint8Array(DATA_BYTES), 0, DATA_BYTES, RING_HEAD_BYTES);
    closeSync(fd);
  }

  reader(busyMs = 20): AuditRingReader {
    const reader = new AuditRingReader({
      path: this.file,
      vm: 'vm',
      log: this.log,
      dataBytes: DATA_BYTES,
      onLie: (reason) => this.lies.push(reason),
      onTrouble: (what) => this.troubles.push(what),
      busyMs,
    });
    this.log.onHealth = (writable) => reader.setUnwritable(!writable);
    return reader;
  }

  remove(): void {
    rmSync(this.#directory, { recursive: true });
  }
}

export const goodRecord: AuditRecord = {
  timeMs: Date.UTC(2026, 0, 1),
  vm: 'vm',
  way: 'virtiofs',
  operation: 'open',
  path: '/secrets/x',
  uid: 1000,
  gid: 1000,
  pid: 7,
  program: undefined,
  revision: 3,
  verdict: 'allowed',
  rule: '/secrets/* (web.yaml:3)',
  errno: undefined,
  dropped: undefined,
  droppedOthers: undefined,
};

/** The record as the device process writes it first. */
export function goodRecordBytes(): Uint8Array {
  const stage = new RingStage();
  stage.make();
  const ring = new AuditRing(stage.file);
  ring.record(goodRecord);
  ring.close();
  const file = readFileSync(stage.file);
  stage.remove();
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  return Uint8Array.from(
    file.subarray(RING_HEAD_BYTES, RING_HEAD_BYTES + RingRecord.length.get(view, RING_HEAD_BYTES)),
  );
}
