/**
 * The driver's side of one split virtqueue, with fixed descriptors per slot so that a request in flight allocates nothing.
 * A slot has a request buffer and a reply buffer. Its chain looks like the Linux driver's: `fuse_in_header`, arguments,
 * `fuse_out_header`, arguments; four descriptors, or one that points to a table of four.
 */
import { drainEventfd, eventfd, POLLIN, pollOne, signalEventfd } from '../../src/sys/index.ts';
import type { FrontMemory } from './memory.ts';

export const DESC_NEXT = 1;
export const DESC_WRITE = 2;
export const DESC_INDIRECT = 4;
const AVAIL_NO_INTERRUPT = 1;
const USED_NO_NOTIFY = 1;
const CHAIN = 4;
const IN_HEADER_BYTES = 40;
const OUT_HEADER_BYTES = 16;

interface QueueLayout {
  /** Offsets in the memfd. */
  descOffset: number;
  availOffset: number;
  usedOffset: number;
  tablesOffset: number;
  buffersOffset: number;
  requestBytes: number;
  replyBytes: number;
}

export class FrontQueue {
  readonly index: number;
  readonly size: number;
  readonly slots: number;
  readonly layout: QueueLayout;
  readonly kickFd = eventfd();
  readonly callFd = eventfd();
  readonly errFd = eventfd();
  /** How long the reply of the last slot that `next` returned is, by the used ring. */
  usedBytes = 0;
  readonly desc: Uint32Array;
  readonly avail: Uint16Array;
  readonly used: Uint16Array;
  readonly used32: Uint32Array;
  readonly #memory: FrontMemory;
  readonly #isIndirect: boolean;
  readonly #requests: Uint8Array[] = [];
  readonly #replies: Uint8Array[] = [];
  readonly #tables: Uint32Array[] = [];
  /** Set by the front end after SET_FEATURES. */
  hasEventIdx = false;
  kicks = 0;
  #availIdx = 0;
  #kickedIdx = 0;
  #usedIdx = 0;

  constructor(memory: FrontMemory, index: number, size: number, isIndirect: boolean, layout: QueueLayout) {
    this.index = index;
    this.size = size;
    this.layout = layout;
    this.#memory = memory;
    this.#isIndirect = isIndirect;
    this.slots = isIndirect ? size : Math.floor(size / CHAIN);
    const { buffer } = memory.u8;
    this.desc = new Uint32Array(buffer, layout.descOffset, size * 4);
    this.avail = new Uint16Array(buffer, layout.availOffset, 3 + size);
    this.used = new Uint16Array(buffer, layout.usedOffset, 3 + size * 4);
    this.used32 = new Uint32Array(buffer, layout.usedOffset, 1 + size * 2);
    for (let slot = 0; slot < this.slots; slot++) {
      const request = layout.buffersOffset + slot * (layout.requestBytes + layout.replyBytes);
      this.#requests.push(new Uint8Array(buffer, request, layout.requestBytes));
      this.#replies.push(new Uint8Array(buffer, request + layout.requestBytes, layout.replyBytes));
      this.#tables.push(new Uint32Array(buffer, layout.tablesOffset + slot * CHAIN * 16, CHAIN * 4));
    }
    this.resetDriver();
  }

  /** Forgets everything, as a driver that starts anew: indices 0, memory of the rings zeroed. */
  resetDriver(): void {
    this.#availIdx = 0;
    this.#kickedIdx = 0;
    this.#usedIdx = 0;
    this.desc.fill(0);
    this.avail.fill(0);
    this.used.fill(0);
    for (let slot = 0; slot < this.slots; slot++) this.#prepare(slot);
  }

  #setDesc(table: Uint32Array, at: number, offset: number, bytes: number, flags: number, next: number): void {
    const guestAddr = this.#memory.guestAddrOf(offset);
    table[at * 4] = guestAddr >>> 0;
    table[at * 4 + 1] = Math.floor(guestAddr / 2 ** 32);
    table[at * 4 + 2] = bytes;
    table[at * 4 + 3] = flags | (next << 16);
  }

  #prepare(slot: number): void {
    const { layout } = this;
    const request = layout.buffersOffset + slot * (layout.requestBytes + layout.replyBytes);
    const reply = request + layout.requestBytes;
    const table = this.#isIndirect ? this.#tables[slot]! : this.desc;
    const at = this.#isIndirect ? 0 : slot * CHAIN;
    this.#setDesc(table, at, request, IN_HEADER_BYTES, DESC_NEXT, at + 1);
    this.#setDesc(table, at + 1, request + IN_HEADER_BYTES, 0, DESC_NEXT, at + 2);
    this.#setDesc(table, at + 2, reply, OUT_HEADER_BYTES, DESC_NEXT | DESC_WRITE, at + 3);
    this.#setDesc(table, at + 3, reply + OUT_HEADER_BYTES, 0, DESC_WRITE, 0);
    if (this.#isIndirect)
      this.#setDesc(this.desc, slot, layout.tablesOffset + slot * CHAIN * 16, CHAIN * 16, DESC_INDIRECT, 0);
  }

  request(slot: number): Uint8Array {
    return this.#requests[slot]!;
  }

  reply(slot: number): Uint8Array {
    return this.#replies[slot]!;
  }

  /** Where the four descriptors of a slot stand, for tests that spoil them: the table and the index of the first. */
  chain(slot: number): { table: Uint32Array; at: number } {
    return this.#isIndirect ? { table: this.#tables[slot]!, at: 0 } : { table: this.desc, at: slot * CHAIN };
  }

  /** The head descriptor of a slot. */
  headOf(slot: number): number {
    return this.#isIndirect ? slot : slot * CHAIN;
  }

  /**
   * Makes the slot's chain available: `requestBytes` of its request buffer to read, `replyBytes` of its reply buffer to
   * write (0: no reply wanted). Not visible before `publish`.
   */
  add(slot: number, requestBytes: number, replyBytes: number): void {
    const table = this.#isIndirect ? this.#tables[slot]! : this.desc;
    const at = this.#isIndirect ? 0 : slot * CHAIN;
    const hasArguments = requestBytes > IN_HEADER_BYTES;
    const first = at * 4;
    table[first + 2] = Math.min(requestBytes, IN_HEADER_BYTES);
    const afterHeader = hasArguments ? at + 1 : at + 2;
    table[first + 3] = (hasArguments || replyBytes > 0 ? DESC_NEXT : 0) | (afterHeader << 16);
    table[first + 6] = requestBytes - IN_HEADER_BYTES;
    table[first + 7] = (replyBytes > 0 ? DESC_NEXT : 0) | ((at + 2) << 16);
    table[first + 10] = Math.min(replyBytes, OUT_HEADER_BYTES);
    const hasBody = replyBytes > OUT_HEADER_BYTES;
    table[first + 11] = DESC_WRITE | (hasBody ? DESC_NEXT : 0) | ((at + 3) << 16);
    table[first + 14] = replyBytes - OUT_HEADER_BYTES;
    this.addHead(this.headOf(slot));
  }

  /** Puts a head into the avail ring as it is. */
  addHead(head: number): void {
    this.avail[2 + (this.#availIdx & (this.size - 1))] = head;
    this.#availIdx = (this.#availIdx + 1) & 0xffff;
  }

  /** Shows what was added to the device, and kicks it if it asked for that. Returns whether it kicked. */
  publish(): boolean {
    Atomics.store(this.avail, 1, this.#availIdx);
    const old = this.#kickedIdx;
    this.#kickedIdx = this.#availIdx;
    if (this.hasEventIdx) {
      const event = Atomics.load(this.used, 2 + this.size * 4);
      if (((this.#availIdx - event - 1) & 0xffff) >= ((this.#availIdx - old) & 0xffff)) return false;
    } else if ((Atomics.load(this.used, 0) & USED_NO_NOTIFY) !== 0) return false;
    this.kick();
    return true;
  }

  kick(): void {
    this.kicks++;
    signalEventfd(this.kickFd);
  }

  /** The next slot that the device has finished, or -1. Sets `usedBytes`. */
  next(): number {
    if (Atomics.load(this.used, 1) === this.#usedIdx) return -1;
    const entry = 1 + (this.#usedIdx & (this.size - 1)) * 2;
    const head = this.used32[entry]!;
    this.usedBytes = this.used32[entry + 1]!;
    this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    return this.#isIndirect ? head : head / CHAIN;
  }

  /** Asks for an interrupt at the next completion and waits for one; false when `timeoutMs` passed. */
  wait(timeoutMs: number): boolean {
    if (this.hasEventIdx) Atomics.store(this.avail, 2 + this.size, this.#usedIdx);
    else Atomics.store(this.avail, 0, 0);
    if (Atomics.load(this.used, 1) !== this.#usedIdx) return true;
    if (pollOne(this.callFd, POLLIN, timeoutMs) <= 0) return Atomics.load(this.used, 1) !== this.#usedIdx;
    drainEventfd(this.callFd);
    return true;
  }

  /** Asks for no interrupts: for a driver that polls. */
  suppressInterrupts(): void {
    if (this.hasEventIdx) Atomics.store(this.avail, 2 + this.size, (this.#usedIdx - 1) & 0xffff);
    else Atomics.store(this.avail, 0, AVAIL_NO_INTERRUPT);
  }

  get availIdx(): number {
    return this.#availIdx;
  }

  get usedIdx(): number {
    return this.#usedIdx;
  }
}
