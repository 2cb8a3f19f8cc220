/**
 * Memory that outlives this process and that requests of `/dev/fuse` are read into: what was read and not answered, a successor
 * answers. A request is there while the length in its `fuse_in_header` is not 0: the kernel puts it there with one read(2), and
 * it is set to 0 as soon as the answer is written. Whether a predecessor came to write it, the kernel knows.
 */
import {
  addSeals,
  close,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  fileSize,
  getSeals,
  Mapping,
  memfd,
  punchHole,
} from '../sys/index.ts';
import * as abi from './abi.ts';
import { MAX_WRITE_BYTES } from './handlers/lifecycle.ts';

/** A WRITE of the greatest size with its headers, to a whole page. */
export const REQUEST_BYTES = MAX_WRITE_BYTES + 4096;

/** Requests that may be held at once. Pages cost nothing before they are touched. */
const SLOTS = 1024;
/** Slots that keep their pages: the same few are used again and again. Others keep the first page at most. */
const WARM_SLOTS = 4;
const PAGE_BYTES = 4096;
/** Before the slots: words of 4 bytes. Another layout is another number. */
const HEAD_BYTES = 4096;
const head = { layout: 0, used: 1 } as const;
const LAYOUT = 0x7068_0001;
const FILE_BYTES = HEAD_BYTES + SLOTS * REQUEST_BYTES;
const TWO_32 = 2 ** 32;

export class RequestMemory implements Disposable {
  readonly fd: number;
  readonly #mapping: Mapping;
  readonly #words: Uint32Array;

  private constructor(fd: number, mapping: Mapping) {
    this.fd = fd;
    this.#mapping = mapping;
    this.#words = new Uint32Array(mapping.buffer);
  }

  /** Throws when there is no memory for it. */
  static create(): RequestMemory {
    const fd = memfd('porthole-requests', FILE_BYTES);
    if (fd < 0) throw new Error(`making the memory of requests failed with errno ${-fd}`);
    addSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW);
    const made = RequestMemory.#map(fd);
    made.#words[head.layout] = LAYOUT;
    return made;
  }

  /** What a predecessor has left; takes `fd` over. Undefined where it is no such memory. */
  static open(fd: number): RequestMemory | undefined {
    if (fileSize(fd) === FILE_BYTES && (getSeals(fd) & F_SEAL_SHRINK) !== 0) {
      const left = RequestMemory.#map(fd);
      if (left.#words[head.layout] === LAYOUT) return left;
      left[Symbol.dispose]();
    } else close(fd);
    return undefined;
  }

  static #map(fd: number): RequestMemory {
    const mapping = Mapping.map(fd, 0, FILE_BYTES);
    if (typeof mapping !== 'number') return new RequestMemory(fd, mapping);
    close(fd);
    throw new Error(`mapping the memory of requests failed with errno ${-mapping}`);
  }

  get slots(): number {
    return SLOTS;
  }

  /** How many slots were ever used: the first ones. To look at the others would make pages of them. */
  get used(): number {
    return Math.min(this.#words[head.used]!, SLOTS);
  }

  /** Where a slot's request is read to; it counts as used from now on. */
  bytes(slot: number): Uint8Array<ArrayBuffer> {
    this.#words[head.used] = Math.max(this.used, slot + 1);
    return new Uint8Array(this.#mapping.buffer, HEAD_BYTES + slot * REQUEST_BYTES, REQUEST_BYTES);
  }

  /** The `unique` of the request that is there, which counts up and never comes again; 0 for none. */
  uniqueAt(slot: number): number {
    const at = wordOf(slot);
    if (this.#words[at] === 0) return 0;
    const unique = at + abi.InHeader.unique.offset / 4;
    return this.#words[unique]! + this.#words[unique + 1]! * TWO_32;
  }

  clear(slot: number): void {
    const at = wordOf(slot);
    const bytes = this.#words[at]!;
    this.#words[at] = 0;
    if (bytes > PAGE_BYTES && slot >= WARM_SLOTS) punchHole(this.fd, at * 4, REQUEST_BYTES);
  }

  [Symbol.dispose](): void {
    this.#mapping.unmap();
    close(this.fd);
  }
}

const wordOf = (slot: number): number => (HEAD_BYTES + slot * REQUEST_BYTES) / 4;
