/**
 * A split virtqueue, seen from the device (virtio 1.2 §2.7).
 *
 * A queue is three tables in memory that the driver and the device share:
 *
 *   descriptor table  `num` descriptors of 16 bytes: guest address u64, length u32, flags u16, next u16. The driver
 *                     writes them. The device never does.
 *   available ring    flags u16, idx u16, `num` heads u16, used_event u16. The driver writes all of it: it puts the head
 *                     of a chain of descriptors at `ring[idx % num]` and then raises `idx`.
 *   used ring         flags u16, idx u16, `num` entries (head u32, written u32), avail_event u16. The device writes all
 *                     of it: it puts the head of a chain that it is done with at `ring[idx % num]` and then raises `idx`.
 *
 * The indices count for ever and wrap at 2^16; their difference is what is outstanding. Both sides run at once and take
 * no lock, so everything hangs on the order in which stores are seen:
 *
 *   taking     load avail.idx, then the ring entry and the descriptors. The load of the index must come first.
 *   giving     store the used entry (and the reply in the guest's buffers), then used.idx. The store of the index must
 *              come last.
 *   sleeping   store avail_event ("kick me when idx passes this"), then load avail.idx again. A *full* barrier stands
 *              between: without it the load may be served before the store is visible, the driver sees the old event and
 *              does not kick, we see the old index and sleep for ever.
 *   waking     store used.idx, then load used_event (or avail.flags) to see whether the driver wants an interrupt. The
 *              same full barrier, mirrored.
 *
 * `Atomics.load` and `Atomics.store` on the typed arrays are sequentially consistent and give all four; everything between
 * them may be plain. (Plain stores and loads failed the sleeping pattern in 136,498 of 3 million rounds on x86-64,
 * `Atomics` in none.) `DataView` and `Buffer` give no order and may tear an index in two; they are never used on a ring.
 *
 * The driver is not trusted, and it can write to all of this memory, the used ring included, while we look. Hence:
 *
 *   - Each field of a descriptor is loaded exactly once, into a local, and only the local is checked and used.
 *   - Our own indices live here. Neither used.idx nor avail_event is ever read back while the ring runs.
 *   - A chain is at most `num` descriptors long (§2.7.5.3.1), which also ends every loop.
 *   - At most `num` chains are in flight: each takes a descriptor that is not free before it is given back. So what a device
 *     keeps for held requests is bounded by the queue.
 *   - One table of indirect descriptors may end a chain (§2.7.5.3.2); none may stand in another.
 *   - What is readable is copied into memory of ours before a byte of it is parsed. Readable parts come before writable
 *     ones (§2.7.4.2).
 *   - Writable parts are kept as guest addresses and translated when the reply is written, by the memory table of then.
 *
 * With a journal, a successor of this process goes on where it stopped: each chain is marked in flight when it is taken, and
 * the mark goes after the driver was shown that it is given back (in-flight.ts). What is marked is taken again, in order.
 *
 * A chain whose buffers are bad but that has room for an error is handed up as `POP_FAULT`. When the ring itself makes no
 * sense (a head outside the table, an index that ran away, a loop) the queue is *broken*: it says so on the error eventfd
 * and stands still until the driver resets it. Nothing here throws, and nothing outside this VM notices.
 */
import { signalEventfd } from '../sys/index.ts';
import type { GuestMemory } from './guest-memory.ts';
import { InFlight } from './in-flight.ts';
import { BATCH, type RingMemory, type SavedQueue } from './journal.ts';

const DESC_NEXT = 1;
const DESC_WRITE = 2;
const DESC_INDIRECT = 4;
const AVAIL_NO_INTERRUPT = 1;
const USED_NO_NOTIFY = 1;
const DESC_BYTES = 16;
/** Indices of fields in the arrays over the rings: 16-bit ones, but words (32 bits) where it says so. */
const DESC_LENGTH_WORD = 2;
const DESC_FLAGS_WORD = 3;
const AVAIL_IDX = 1;
const AVAIL_RING = 2;
const USED_IDX = 1;
const USED_RING_WORD = 1;
const USED_ENTRY_WORDS = 2;
/** The layout, for the test that compares it with the kernel's header. */
export const ring = {
  NEXT: DESC_NEXT,
  WRITE: DESC_WRITE,
  INDIRECT: DESC_INDIRECT,
  NO_INTERRUPT: AVAIL_NO_INTERRUPT,
  NO_NOTIFY: USED_NO_NOTIFY,
  descBytes: DESC_BYTES,
  descLengthWord: DESC_LENGTH_WORD,
  descFlagsWord: DESC_FLAGS_WORD,
  availIdx: AVAIL_IDX,
  availRing: AVAIL_RING,
  usedIdx: USED_IDX,
  usedRing32: USED_RING_WORD,
  usedEntryWords: USED_ENTRY_WORDS,
} as const;
const TWO_32 = 2 ** 32;
/** Chains that are looked at ahead of their turn. */
const LOOK_AHEAD = 32;
/** Addresses from 2^53 on are no numbers any more; no machine has them. */
const MAX_HIGH_WORD = 0x1fffff;

/** Largest queue that a split ring can have (virtio 1.2 §2.7). */
export const MAX_QUEUE_SIZE = 32768;

/** Nothing is available. */
export const POP_EMPTY = 0;
/** A chain was taken. */
export const POP_CHAIN = 1;
/** A chain was taken whose buffers are bad; there is room to say so. */
export const POP_FAULT = 2;
/** The queue is broken. */
export const POP_BROKEN = 3;

/** The size of the smallest answer, `fuse_out_header`: a fault can be told when so much is writable. Other devices say theirs. */
const FAULT_REPLY_BYTES = 16;

/** Writable parts of one chain, as guest addresses. */
export interface Segments {
  readonly addrs: Float64Array;
  readonly lengths: Uint32Array;
  count: number;
  /** Sum of the lengths. */
  sizeBytes: number;
}

export const makeSegments = (capacity: number): Segments => ({
  addrs: new Float64Array(capacity),
  lengths: new Uint32Array(capacity),
  count: 0,
  sizeBytes: 0,
});

export class Virtqueue {
  readonly index: number;
  readonly #faultReplyBytes: number;
  readonly #memory: GuestMemory;
  /** Where the readable parts of the chain that was taken last stand. Shared between the queues of a device. */
  readonly #request: Uint8Array;
  readonly #requestWords: Uint32Array;

  /** Set by the control messages; they count from the next `start` on. */
  num = 0;
  descAddr = 0;
  availAddr = 0;
  usedAddr = 0;
  hasEventIdx = false;
  hasIndirect = false;
  isEnabled = false;
  kickFd = -1;
  callFd = -1;
  errFd = -1;

  /** Rises whenever what was in flight is forgotten: replies of an older generation must not be written. */
  generation = 0;
  /** Chains taken and not given back in this generation. */
  inFlight = 0;
  /** Why the queue stands still, or undefined. */
  brokenBy: string | undefined;

  /** Of the chain that `pop` took last. */
  head = 0;
  requestBytes = 0;
  /** How many descriptors it has. */
  chainLength = 0;
  #writable: Segments = makeSegments(0);

  #isStarted = false;
  #desc: Uint32Array | undefined;
  #avail: Uint16Array = new Uint16Array(0);
  #used: Uint16Array = new Uint16Array(0);
  #used32: Uint32Array = new Uint32Array(0);
  #scratch = new Uint8Array(0);
  #scratchWords = new Uint32Array(0);
  /** How far we have taken chains: what GET_VRING_BASE answers. */
  #lastAvail = 0;
  /** avail.idx as last seen. */
  #seenAvail = 0;
  #usedIdx = 0;
  readonly #aheadTables: Uint32Array[] = [];
  readonly #aheadWords: number[] = [];
  /** What looking ahead loaded last: of no meaning, but kept, or the loads would be optimised away. */
  lookedAt = 0;
  /** used.idx as the driver sees it. */
  #shownIdx = 0;
  /** used.idx when the driver was last asked whether it wants an interrupt. */
  #signalledIdx = 0;
  #hasSignalled = false;
  #suppressesKicks = false;
  /** Whether this queue ever ran, and therefore has a position of its own. */
  #hasRun = false;
  readonly #inFlightLog: InFlight | undefined;
  /** Heads that a predecessor took and did not give back, the first one last. */
  #redo: number[] = [];
  /** Whether a predecessor had taken the chain that `pop` took last. */
  isRedone = false;

  constructor(
    index: number,
    memory: GuestMemory,
    request: Uint8Array,
    requestWords: Uint32Array,
    ringMemory?: RingMemory,
    faultReplyBytes = FAULT_REPLY_BYTES,
  ) {
    this.index = index;
    this.#faultReplyBytes = faultReplyBytes;
    this.#inFlightLog = ringMemory === undefined ? undefined : new InFlight(ringMemory);
    this.#memory = memory;
    this.#request = request;
    this.#requestWords = requestWords;
  }

  /** The writable parts of the chain that `pop` took last. */
  get writable(): Segments {
    return this.#writable;
  }

  /** Our position in the available ring. */
  get base(): number {
    return this.#lastAvail;
  }

  get isStarted(): boolean {
    return this.#isStarted;
  }

  get hasRun(): boolean {
    return this.#hasRun;
  }

  /** Whether chains may be taken and given back now. */
  get isRunning(): boolean {
    return this.#isStarted && this.isEnabled && this.#desc !== undefined && this.brokenBy === undefined;
  }

  // --- life ---

  /**
   * Looks the saved ring addresses up in the memory table of now; the ring cannot run before it has been found. Called when
   * the addresses or the table change. Returns whether all three tables lie in mapped memory.
   */
  translate(): boolean {
    this.#desc = undefined;
    const { num } = this;
    if (num === 0) return false;
    const desc = this.#find(this.descAddr, num * DESC_BYTES, 16);
    const avail = this.#find(this.availAddr, 6 + num * 2, 2);
    const used = this.#find(this.usedAddr, 6 + num * 8, 4);
    if (desc === undefined || avail === undefined || used === undefined) return false;
    this.#avail = new Uint16Array(avail.buffer, avail.byteOffset, 3 + num);
    this.#used = new Uint16Array(used.buffer, used.byteOffset, 3 + num * 4);
    this.#used32 = new Uint32Array(used.buffer, used.byteOffset, 1 + num * 2);
    this.#desc = new Uint32Array(desc.buffer, desc.byteOffset, num * 4);
    if (this.#writable.addrs.length < num) {
      this.#writable = makeSegments(num);
      this.#scratch = new Uint8Array(num * DESC_BYTES);
      this.#scratchWords = new Uint32Array(this.#scratch.buffer);
    }
    return true;
  }

  #find(frontendAddr: number, sizeBytes: number, alignment: number): Uint8Array | undefined {
    if (frontendAddr % alignment !== 0) return undefined;
    const region = this.#memory.regionAtFrontend(frontendAddr, sizeBytes);
    const offset = region === undefined ? 0 : frontendAddr - region.frontendAddr;
    return region?.u8.subarray(offset, offset + sizeBytes);
  }

  /**
   * Starts the ring at `base`. When that is where we stopped and the used ring is as we left it, this is the same ring going
   * on (QMP `cont`) and what is in flight stays ours; otherwise it is a new one, and everything of the old one is forgotten.
   * Returns whether something was forgotten that had run.
   */
  start(base: number): boolean {
    if (this.#isStarted || this.#desc === undefined) return false;
    const usedIdx = Atomics.load(this.#used, USED_IDX);
    const resumes = this.#hasRun && base === this.#lastAvail && usedIdx === this.#usedIdx;
    const forgets = this.#hasRun && !resumes;
    if (!resumes) {
      this.generation++;
      this.inFlight = 0;
      this.#lastAvail = base;
      this.#usedIdx = usedIdx;
      this.#redo = [];
      this.#inFlightLog?.starts(this.num, base, usedIdx);
    }
    // A queue that broke before it gave anything back looks the same after a reset. Whoever starts it deserves a try.
    this.brokenBy = undefined;
    this.#seenAvail = this.#lastAvail;
    this.#signalledIdx = this.#usedIdx;
    this.#shownIdx = this.#usedIdx;
    this.#hasSignalled = false;
    this.#isStarted = true;
    this.#hasRun = true;
    this.suppressKicks(this.#suppressesKicks);
    return forgets;
  }

  /** Becomes what a predecessor left; the memory table is that of then. What was in flight is taken again. */
  recover({ isEnabled, isStarted, hasRun, num, descAddr, availAddr, usedAddr }: SavedQueue): void {
    this.num = num;
    this.descAddr = descAddr;
    this.availAddr = availAddr;
    this.usedAddr = usedAddr;
    this.isEnabled = isEnabled;
    this.#hasRun = hasRun;
    const found = this.translate();
    if (!hasRun || this.#inFlightLog === undefined) return;
    const left = this.#inFlightLog.recover(num, found ? Atomics.load(this.#used, USED_IDX) : undefined);
    this.generation++;
    this.inFlight = left.heads.length;
    this.#redo = left.heads.toReversed();
    this.#lastAvail = left.lastAvail;
    this.#seenAvail = left.lastAvail;
    this.#usedIdx = left.usedIdx;
    this.#shownIdx = left.usedIdx;
    this.#signalledIdx = left.usedIdx;
    this.#isStarted = isStarted;
    this.suppressKicks(false);
  }

  /** Whether chains are left that a predecessor took; on a ring that stands still they wait for it. */
  get hasRedone(): boolean {
    return this.isRunning && this.#redo.length > 0;
  }

  /** When the chain of `head` was taken, by the journal's count; 0 while it is not in flight, or without a journal. */
  orderOf(head: number): number {
    return this.#inFlightLog?.orderOf(head) ?? 0;
  }

  /** Stops the ring; its position and what is in flight are kept. */
  stop(): void {
    this.#isStarted = false;
  }

  /** Forgets that there ever was a ring: the peer is gone or has reset its owner. */
  forget(): void {
    this.stop();
    this.generation++;
    this.inFlight = 0;
    this.brokenBy = undefined;
    this.#inFlightLog?.starts(this.num, 0, 0);
    this.num = 0;
    this.#lastAvail = 0;
    this.#redo = [];
    this.#hasRun = false;
    this.#desc = undefined;
    this.isEnabled = false;
  }

  /** Marks the queue broken and tells the front end. */
  break(reason: string): void {
    if (this.brokenBy !== undefined) return;
    this.brokenBy = `queue ${this.index}: ${reason}`;
    if (this.errFd >= 0) signalEventfd(this.errFd);
  }

  // --- taking ---

  /** Whether a chain is available. */
  hasMore(): boolean {
    return this.isRunning && (this.#redo.length > 0 || Atomics.load(this.#avail, AVAIL_IDX) !== this.#lastAvail);
  }

  #broken(reason: string): number {
    this.break(reason);
    return POP_BROKEN;
  }

  /**
   * Takes the next chain: `head`, the request in the first `requestBytes` bytes of the request buffer, `writable`. One of
   * POP_EMPTY, POP_CHAIN, POP_FAULT, POP_BROKEN.
   */
  pop(): number {
    const desc = this.#desc;
    if (desc === undefined || !this.isRunning) return POP_EMPTY;
    const { num } = this;
    if (this.#redo.length > 0) return this.#popAgain(desc);
    this.isRedone = false;
    if (this.#lastAvail === this.#seenAvail) {
      this.#seenAvail = Atomics.load(this.#avail, AVAIL_IDX);
      if (this.#lastAvail === this.#seenAvail) return POP_EMPTY;
      const count = (this.#seenAvail - this.#lastAvail) & 0xffff;
      if (count > num) return this.#broken('avail.idx ran away');
      if (count > 1 && this.hasIndirect) this.#lookAhead(desc, Math.min(count, LOOK_AHEAD));
    }
    const head = this.#avail[AVAIL_RING + (this.#lastAvail & (num - 1))]!;
    if (head >= num) return this.#broken(`head ${head} is outside of ${num} descriptors`);
    if (this.inFlight >= num) return this.#broken(`more than ${num} chains in flight`);
    this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    this.head = head;
    const taken = this.#walk(desc, head);
    if (taken === POP_BROKEN) return taken;
    this.inFlight++;
    this.#inFlightLog?.took(head);
    return taken;
  }

  /** A chain that a predecessor took. */
  #popAgain(desc: Uint32Array): number {
    this.head = this.#redo.pop()!;
    this.isRedone = true;
    return this.#walk(desc, this.head);
  }

  /**
   * Loads a word of every table and request that is about to be taken. The driver's core wrote them last, so each load misses
   * the cache; one after the other, as `pop` comes to them, these misses would cost more than all the rest, here they
   * overlap. Nothing is decided by what is read.
   */
  #lookAhead(desc: Uint32Array, count: number): void {
    const { num } = this;
    const memory = this.#memory;
    const tables = this.#aheadTables;
    const words = this.#aheadWords;
    let found = 0;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const word = this.#avail[AVAIL_RING + ((this.#lastAvail + i) & (num - 1))]! * 4;
      if (word >= desc.length) continue;
      const addr = desc[word + 1]! * TWO_32 + desc[word]!;
      const region = memory.regionOf(addr, DESC_BYTES);
      if (region === undefined) continue;
      const at = Math.floor((addr - region.guestAddr) / 4);
      sum ^= region.u32[at]!;
      tables[found] = region.u32;
      words[found++] = at;
    }
    for (let i = 0; i < found; i++) {
      const table = tables[i]!;
      const at = words[i]!;
      const addr = table[at + 1]! * TWO_32 + table[at]!;
      const region = memory.regionOf(addr, 4);
      if (region !== undefined) sum ^= region.u32[Math.floor((addr - region.guestAddr) / 4)]!;
    }
    this.lookedAt = sum;
  }

  /** Follows a chain from descriptor `first` on. */
  #walk(desc: Uint32Array, first: number): number {
    const writable = this.#writable;
    const { addrs, lengths } = writable;
    const capacity = this.#request.byteLength;
    let table = desc;
    /** Index of word 0 of the table in `table`, and the number of its descriptors. */
    let base = 0;
    let size = this.num;
    let isIndirect = false;
    let at = first;
    let taken = 0;
    let hasFault = false;
    let requestBytes = 0;
    let count = 0;
    let sizeBytes = 0;
    for (;;) {
      const word = base + at * 4;
      const low = table[word]!;
      const high = table[word + 1]!;
      const length = table[word + DESC_LENGTH_WORD]!;
      const flagsAndNext = table[word + DESC_FLAGS_WORD]!;
      const addr = high > MAX_HIGH_WORD ? Number.POSITIVE_INFINITY : high * TWO_32 + low;
      if ((flagsAndNext & DESC_INDIRECT) !== 0) {
        if (isIndirect || !this.hasIndirect) return this.#broken('an indirect table where none may be');
        if ((flagsAndNext & DESC_NEXT) !== 0) return this.#broken('an indirect table that goes on');
        size = length / DESC_BYTES;
        if (!Number.isInteger(size) || size === 0 || size > this.num)
          return this.#broken(`an indirect table of ${length} bytes`);
        const region = this.#memory.regionAt(addr);
        const offset = region === undefined ? 0 : addr - region.guestAddr;
        if (region !== undefined && addr + length <= region.guestEnd && offset % 4 === 0) {
          table = region.u32;
          base = offset / 4;
        } else {
          if (!this.#memory.copyOut(addr, length, this.#scratch, this.#scratchWords, 0))
            return this.#broken('an indirect table outside of memory');
          table = this.#scratchWords;
          base = 0;
        }
        isIndirect = true;
        at = 0;
        continue;
      }
      if (++taken > this.num) return this.#broken('a chain longer than the queue');
      if (length === 0 || !this.#memory.has(addr, length)) hasFault = true;
      else if ((flagsAndNext & DESC_WRITE) !== 0) {
        addrs[count] = addr;
        lengths[count] = length;
        count++;
        sizeBytes += length;
      } else if (count > 0 || requestBytes + length > capacity) hasFault = true;
      else {
        this.#memory.copyOut(addr, length, this.#request, this.#requestWords, requestBytes);
        requestBytes += length;
      }
      if ((flagsAndNext & DESC_NEXT) === 0) break;
      at = flagsAndNext >>> 16;
      if (at >= size) return this.#broken(`descriptor ${at} is outside of ${size}`);
    }
    this.requestBytes = requestBytes;
    this.chainLength = taken;
    writable.count = count;
    writable.sizeBytes = sizeBytes;
    if (!hasFault) return POP_CHAIN;
    return sizeBytes >= this.#faultReplyBytes ? POP_FAULT : this.#broken('a bad chain without room for an answer');
  }

  // --- giving back ---

  /**
   * Writes `headBytes` bytes of `head` and then `payload` into `segments`. Returns the bytes written; fewer than asked where
   * the memory is not there any more or has no room.
   */
  scatter(segments: Segments, head: Uint8Array, headBytes: number, payload: Uint8Array | undefined): number {
    const payloadBytes = payload === undefined ? 0 : payload.byteLength;
    const total = headBytes + payloadBytes;
    let done = 0;
    for (let i = 0; i < segments.count && done < total; i++) {
      let addr = segments.addrs[i]!;
      let room = segments.lengths[i]!;
      if (done < headBytes) {
        const bytes = Math.min(room, headBytes - done);
        if (!this.#memory.copyIn(addr, head, done, bytes)) return done;
        done += bytes;
        addr += bytes;
        room -= bytes;
      }
      if (payload !== undefined && done >= headBytes && room > 0 && done < total) {
        const bytes = Math.min(room, total - done);
        if (!this.#memory.copyIn(addr, payload, done - headBytes, bytes)) return done;
        done += bytes;
      }
    }
    return done;
  }

  /**
   * Gives the chain of `head` back with `written` bytes in it. The driver sees it with the batch: `notify` ends one. A store
   * of used.idx takes the cache line from a driver that polls it, so there is one for a few chains.
   */
  push(head: number, written: number): void {
    const entry = USED_RING_WORD + (this.#usedIdx & (this.num - 1)) * USED_ENTRY_WORDS;
    this.#used32[entry] = head;
    this.#used32[entry + 1] = written;
    this.#inFlightLog?.gave(head, (this.#usedIdx - this.#shownIdx) & 0xffff);
    this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    this.inFlight--;
    if (((this.#usedIdx - this.#shownIdx) & 0xffff) >= BATCH) this.#show();
  }

  #show(): void {
    const count = (this.#usedIdx - this.#shownIdx) & 0xffff;
    this.#shownIdx = this.#usedIdx;
    Atomics.store(this.#used, USED_IDX, this.#usedIdx);
    this.#inFlightLog?.showed(this.#usedIdx, count);
  }

  /** Shows the driver what was given back since the last time, and interrupts it if it wants to know (§2.7.7.2). */
  notify(): void {
    const now = this.#usedIdx;
    const before = this.#signalledIdx;
    if (now === before || this.#desc === undefined) return;
    if (now !== this.#shownIdx) this.#show();
    this.#signalledIdx = now;
    let wants: boolean;
    if (this.hasEventIdx) {
      const event = Atomics.load(this.#avail, 2 + this.num);
      wants = !this.#hasSignalled || ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
      this.#hasSignalled = true;
    } else wants = (Atomics.load(this.#avail, 0) & AVAIL_NO_INTERRUPT) === 0;
    if (wants && this.callFd >= 0) signalEventfd(this.callFd);
  }

  /** Interrupts the driver whatever it wants: a predecessor may have shown it something and not come to tell. */
  interrupt(): void {
    if (this.isRunning && this.callFd >= 0) signalEventfd(this.callFd);
  }

  // --- sleeping ---

  /**
   * Tells the driver whether to kick (§2.7.10). After switching kicks on, look whether something came meanwhile: returns
   * true if so, and then no kick may come for it.
   */
  suppressKicks(suppress: boolean): boolean {
    this.#suppressesKicks = suppress;
    if (!this.isRunning) return false;
    if (this.hasEventIdx) {
      // A past position as the event is as good as none: the driver compares it with the step it makes.
      if (!suppress) Atomics.store(this.#used, 2 + this.num * 4, this.#lastAvail);
    } else Atomics.store(this.#used, 0, suppress ? USED_NO_NOTIFY : 0);
    return !suppress && (this.#redo.length > 0 || Atomics.load(this.#avail, AVAIL_IDX) !== this.#lastAvail);
  }
}
