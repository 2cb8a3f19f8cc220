/** Which chains of one queue are in flight, in memory that survives this process (journal.ts). */
import { BATCH, CEILING, OFFSET, type RingMemory, USED_IDX } from './journal.ts';

/** Orders that are taken from the memory's ceiling at once: it is written once for so many requests. */
const RESERVED = 2 ** 20;

export class InFlight {
  readonly #orders: Float64Array;
  readonly #state: Float64Array;
  readonly #batch: Uint16Array;
  #next: number;
  #ceiling: number;

  constructor({ orders, state, batch }: RingMemory) {
    this.#orders = orders;
    this.#state = state;
    this.#batch = batch;
    const ceiling = state[CEILING]!;
    this.#next = Number.isSafeInteger(ceiling) && ceiling > 0 ? ceiling : 1;
    this.#ceiling = this.#next;
  }

  /** The order in which the chain of `head` was taken, or 0. */
  orderOf(head: number): number {
    return this.#orders[head]!;
  }

  /** Before anything is done for the chain. */
  took(head: number): void {
    if (this.#next === this.#ceiling) {
      this.#ceiling += RESERVED;
      this.#state[CEILING] = this.#ceiling;
    }
    this.#orders[head] = this.#next++;
  }

  /** The chain of `head` stands in the used ring, `place` entries after what the driver was shown. */
  gave(head: number, place: number): void {
    this.#batch[place] = head;
  }

  /** used.idx has been stored: `count` chains are the driver's again. */
  showed(usedIdx: number, count: number): void {
    for (let i = 0; i < count; i++) this.#orders[this.#batch[i]!] = 0;
    // Last: a successor that finds used.idx beyond this one clears them itself.
    this.#state[USED_IDX] = usedIdx;
  }

  /** A new ring of `num` descriptors: nothing is in flight. */
  starts(num: number, base: number, usedIdx: number): void {
    this.#orders.fill(0, 0, num);
    this.#state[USED_IDX] = usedIdx;
    this.#state[OFFSET] = (base - usedIdx) & 0xffff;
  }

  /**
   * What a predecessor left of a queue of `num` descriptors. `usedIdx` is what stands in the ring, where it can be read: up to
   * a batch beyond what was noted, and these chains were given back. Anything else the driver has scribbled.
   */
  recover(num: number, usedIdx: number | undefined): { usedIdx: number; lastAvail: number; heads: number[] } {
    const noted = this.#state[USED_IDX]! & 0xffff;
    const beyond = usedIdx === undefined ? 0 : (usedIdx - noted) & 0xffff;
    if (beyond > 0 && beyond <= BATCH) this.showed(usedIdx!, beyond);
    const heads: number[] = [];
    for (let head = 0; head < num; head++) if (this.#orders[head]! > 0) heads.push(head);
    heads.sort((a, b) => this.#orders[a]! - this.#orders[b]!);
    const used = this.#state[USED_IDX]! & 0xffff;
    return { usedIdx: used, lastAvail: (used + heads.length + (this.#state[OFFSET]! & 0xffff)) & 0xffff, heads };
  }
}
