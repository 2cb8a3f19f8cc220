/**
 * The journal: memory that outlives a device process. A memfd, mapped by one device process at a time and held by the keeper
 * in between. Everything in it is written by one thread in an order in which a process may end at any store: a kernel stops a
 * thread between two instructions, and what it stored before is there.
 *
 *   head      numbers: magic, version, counters, where the arena ends, which of the two control slots counts
 *   control   two slots, each a length and a JSON text: the vhost-user connection after the last message (`saveControl`)
 *   rings     one for each queue: what is in flight (`RingMemory`)
 *   arena     blocks of powers of two: nodeids, handles, old versions, mutations (journal-records.ts)
 *
 * A block is written first and gets its kind last; it is free while its kind is 0. The arena counts up to where it ends, so
 * that nothing that an earlier block held can be taken for a block. The file is as long as it may ever be from the start: pages
 * cost nothing before they are touched.
 */
import { addSeals, close, F_SEAL_GROW, F_SEAL_SHRINK, fileSize, getSeals, Mapping, memfd } from '../sys/index.ts';
import { BATCH, MAX_QUEUE_SIZE, type RingMemory } from '../virtio/index.ts';
import { JOURNAL_VERSION } from './journal-version.ts';

const MAGIC = 0x706f_7274_6a6c;

export const journalLimits = {
  queues: 17,
  /** Of the whole file; pages are taken as they are touched. */
  bytes: 512 * 1024 * 1024,
} as const;

const HEAD_BYTES = 4096;
const CONTROL_BYTES = 32_768;
const RING_HEAD_BYTES = 4096;
const RING_BYTES = RING_HEAD_BYTES + MAX_QUEUE_SIZE * 8;
const RINGS_AT = HEAD_BYTES + 2 * CONTROL_BYTES;
const ARENA_AT = 8 * 1024 * 1024;
const BATCH_AT = 64;

/** Numbers of the head, as indices of 8 bytes. */
const head = {
  magic: 0,
  version: 1,
  arenaEnd: 2,
  control: 3,
  /** Number of the control message that was answered last. */
  message: 4,
  /** Counters: nodeids and file handles are never given twice. */
  nextNodeid: 5,
  nextFh: 6,
  isInitialized: 7,
  /** How often it was taken up since requests in flight were last done again to their end. */
  takenUp: 8,
} as const;
type Counter = 'message' | 'nextNodeid' | 'nextFh' | 'isInitialized' | 'takenUp';

/** Of a block, before its payload: its size, its kind, and how long its payload is. */
const BLOCK_HEAD_BYTES = 16;
const LEAST_BLOCK_LOG = 6;
const MOST_BLOCK_LOG = 22;

/** Typed arrays over the same memory. Tests put something in between that counts stores. */
export interface JournalMemory {
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly f64: Float64Array;
}

const viewsOf = (buffer: ArrayBuffer): JournalMemory => ({
  u8: new Uint8Array(buffer),
  u16: new Uint16Array(buffer),
  u32: new Uint32Array(buffer),
  f64: new Float64Array(buffer),
});

export class Journal {
  readonly memory: JournalMemory;
  /** By the logarithm of the size: payloads of blocks that are free. */
  readonly #free: number[][] = Array.from({ length: MOST_BLOCK_LOG + 1 }, () => []);
  readonly #arenaLimit: number;
  /** Rises with every `wipe`: blocks of an earlier life are nobody's any more. */
  life = 1;

  /** Over memory of `bytes` bytes, all zero or a journal of this version. */
  constructor(memory: JournalMemory, bytes: number = journalLimits.bytes) {
    this.memory = memory;
    this.#arenaLimit = bytes;
    const { f64 } = memory;
    if (f64[head.magic] === MAGIC) return;
    f64[head.version] = JOURNAL_VERSION;
    f64[head.arenaEnd] = ARENA_AT;
    f64[head.nextNodeid] = 2;
    f64[head.nextFh] = 1;
    f64[head.magic] = MAGIC;
  }

  /** Why memory that was found is no journal that can be read, in words, or undefined. */
  static refusal(memory: JournalMemory): string | undefined {
    const { f64 } = memory;
    if (f64[head.magic] !== MAGIC) return 'it is no journal';
    const version = f64[head.version];
    return version === JOURNAL_VERSION
      ? undefined
      : `it is of version ${version}, and this is version ${JOURNAL_VERSION}`;
  }

  counter(name: Counter): number {
    return this.memory.f64[head[name]]!;
  }

  setCounter(name: Counter, value: number): void {
    this.memory.f64[head[name]] = value;
  }

  // --- control ---

  /** Keeps `text` in place of what was kept, in one store. */
  saveControl(text: string): void {
    const { u8, u32, f64 } = this.memory;
    const slot = f64[head.control] === 1 ? 0 : 1;
    const bytes = Buffer.from(text);
    if (bytes.length > CONTROL_BYTES - 8) throw new Error(`the state of a connection takes ${bytes.length} bytes`);
    const at = HEAD_BYTES + slot * CONTROL_BYTES;
    u32[at / 4] = bytes.length;
    u8.set(bytes, at + 8);
    f64[head.control] = slot;
  }

  control(): string {
    const { u8, u32, f64 } = this.memory;
    const at = HEAD_BYTES + (f64[head.control] === 1 ? 1 : 0) * CONTROL_BYTES;
    const bytes = Math.min(u32[at / 4]!, CONTROL_BYTES - 8);
    return Buffer.from(u8.slice(at + 8, at + 8 + bytes)).toString();
  }

  ring(queueIndex: number): RingMemory {
    const { u16, f64 } = this.memory;
    const at = RINGS_AT + queueIndex * RING_BYTES;
    const ordersAt = at + RING_HEAD_BYTES;
    return {
      state: f64.subarray(at / 8, at / 8 + 4),
      batch: u16.subarray((at + BATCH_AT) / 2, (at + BATCH_AT) / 2 + BATCH),
      orders: f64.subarray(ordersAt / 8, ordersAt / 8 + MAX_QUEUE_SIZE),
    };
  }

  // --- arena ---

  /** Room for a payload of so many bytes, aligned to 16; 0 when there is none. It is free until `commit`. */
  allocate(payloadBytes: number): number {
    const { u32, f64 } = this.memory;
    const log = Math.max(LEAST_BLOCK_LOG, 32 - Math.clz32(payloadBytes + BLOCK_HEAD_BYTES - 1));
    if (log > MOST_BLOCK_LOG) return 0;
    let payload = this.#free[log]!.pop();
    if (payload === undefined) {
      const at = f64[head.arenaEnd]!;
      const end = at + 2 ** log;
      if (end > this.#arenaLimit) return 0;
      u32[at / 4] = log;
      u32[at / 4 + 1] = 0;
      f64[head.arenaEnd] = end;
      payload = at + BLOCK_HEAD_BYTES;
    }
    u32[payload / 4 - 2] = payloadBytes;
    return payload;
  }

  /** What stands in the payload counts from now on. */
  commit(payload: number, kind: number): void {
    this.memory.u32[payload / 4 - 3] = kind;
  }

  free(payload: number): void {
    const { u32 } = this.memory;
    u32[payload / 4 - 3] = 0;
    this.#free[u32[payload / 4 - 4]!]!.push(payload);
  }

  /** Gives the bytes up that a secret stood in. */
  shred(payload: number): void {
    const { u8, u32 } = this.memory;
    u8.fill(0, payload, payload + u32[payload / 4 - 2]!);
    this.free(payload);
  }

  payloadBytes(payload: number): number {
    const room = 2 ** this.memory.u32[payload / 4 - 4]! - BLOCK_HEAD_BYTES;
    return Math.min(this.memory.u32[payload / 4 - 2]!, room);
  }

  /** Forgets every block at once. */
  wipe(): void {
    this.life++;
    this.memory.f64[head.arenaEnd] = ARENA_AT;
    for (const free of this.#free) free.length = 0;
  }

  /** Every block that counts, and makes the others free for use. Ends where it makes no sense. Called once, at first. */
  *blocks(): Generator<{ readonly kind: number; readonly payload: number }> {
    const { u32, f64 } = this.memory;
    const end = Math.min(f64[head.arenaEnd]!, this.#arenaLimit);
    const found: { kind: number; payload: number }[] = [];
    let at = ARENA_AT;
    while (at + BLOCK_HEAD_BYTES <= end) {
      const log = u32[at / 4]!;
      if (log < LEAST_BLOCK_LOG || log > MOST_BLOCK_LOG || at + 2 ** log > end) break;
      const payload = at + BLOCK_HEAD_BYTES;
      const kind = u32[payload / 4 - 3]!;
      if (kind === 0) this.#free[log]!.push(payload);
      else found.push({ kind, payload });
      at += 2 ** log;
    }
    // A journal that was scribbled on: what lies beyond is given up.
    if (at !== f64[head.arenaEnd]) f64[head.arenaEnd] = at;
    yield* found;
  }
}

/** A journal in a memfd. */
export class JournalFile implements Disposable {
  readonly fd: number;
  readonly journal: Journal;
  readonly #mapping: Mapping;

  private constructor(fd: number, mapping: Mapping) {
    this.fd = fd;
    this.#mapping = mapping;
    this.journal = new Journal(viewsOf(mapping.buffer));
  }

  /** A new one. Throws when there is no memory for it. */
  static create(): JournalFile {
    const fd = memfd('porthole-journal', journalLimits.bytes);
    if (fd < 0) throw new Error(`making the journal failed with errno ${-fd}`);
    addSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW);
    const mapping = Mapping.map(fd, 0, journalLimits.bytes);
    if (typeof mapping === 'number') throw new Error(`mapping the journal failed with errno ${-mapping}`);
    return new JournalFile(fd, mapping);
  }

  /** One that a predecessor has left; takes `fd` over. Answers with why it can't be read. */
  static open(fd: number): JournalFile | string {
    const refusal = (reason: string): string => {
      close(fd);
      return reason;
    };
    if (fileSize(fd) !== journalLimits.bytes || (getSeals(fd) & F_SEAL_SHRINK) === 0)
      return refusal('it has not the size of a journal');
    const mapping = Mapping.map(fd, 0, journalLimits.bytes);
    if (typeof mapping === 'number') return refusal(`mapping it failed with errno ${-mapping}`);
    const reason = Journal.refusal(viewsOf(mapping.buffer));
    if (reason === undefined) return new JournalFile(fd, mapping);
    mapping.unmap();
    return refusal(reason);
  }

  [Symbol.dispose](): void {
    this.#mapping.unmap();
    close(this.fd);
  }
}
