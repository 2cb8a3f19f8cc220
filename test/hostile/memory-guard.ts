/** Tells what a device wrote into a guest's memory that it was not given to write. */
import type { FrontEnd } from '../front-end/index.ts';

/** A part of the memfd behind a guest's memory. */
export interface Range {
  readonly offset: number;
  readonly bytes: number;
}

const PATTERN = 0xa5;

/** The used rings: the device writes them whenever it likes. */
const usedRings = (front: FrontEnd): Range[] =>
  front.queues.map(({ layout, size }) => ({ offset: layout.usedOffset, bytes: 6 + size * 8 }));

/** Fills the buffers of all slots, so that what is written into them shows. */
export function fillBuffers(front: FrontEnd): void {
  for (const { layout, slots } of front.queues) {
    const bytes = slots * (layout.requestBytes + layout.replyBytes);
    front.memory.u8.fill(PATTERN, layout.buffersOffset, layout.buffersOffset + bytes);
  }
}

export class MemoryGuard {
  readonly #front: FrontEnd;
  readonly #before: Uint8Array;

  /** Remembers all of the memory as it is now. */
  constructor(front: FrontEnd) {
    this.#front = front;
    this.#before = front.memory.u8.slice();
  }

  /** The first offset that changed outside of `writable` and the used rings, or undefined. */
  stray(writable: readonly Range[]): number | undefined {
    const { u8 } = this.#front.memory;
    for (const { offset, bytes } of [...writable, ...usedRings(this.#front)])
      this.#before.set(u8.subarray(offset, offset + bytes), offset);
    if (Buffer.compare(this.#before, u8) === 0) return undefined;
    return this.#before.findIndex((byte, at) => byte !== u8[at]);
  }
}
