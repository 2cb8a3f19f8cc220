/**
 * Which connections a guest believes to have, in memory that may outlive this process: whoever comes after it resets them. A
 * place is written before the guest can learn of the connection, and is free again once the guest has been shown its end.
 */

/** Connections of one device at once, at most. */
export const MAX_CONNECTIONS = 1024;

const WORDS = 4;
/** Bytes of that memory, zero at first. */
export const SLOTS_BYTES = MAX_CONNECTIONS * WORDS * 4;

export class Slots {
  readonly #words: Uint32Array;
  readonly #free: number[] = [];
  /** Their end is in the ring, but may not be shown yet. */
  readonly #ending: number[] = [];

  constructor(words: Uint32Array = new Uint32Array(SLOTS_BYTES / 4)) {
    this.#words = words;
    for (let slot = MAX_CONNECTIONS - 1; slot >= 0; slot--) if (words[slot * WORDS] === 0) this.#free.push(slot);
  }

  /** Connections that a predecessor left. Called at first. */
  *left(): Generator<{ readonly slot: number; readonly guestPort: number; readonly hostPort: number }> {
    for (let slot = 0; slot < MAX_CONNECTIONS; slot++) {
      const at = slot * WORDS;
      if (this.#words[at] !== 0) yield { slot, guestPort: this.#words[at + 1]!, hostPort: this.#words[at + 2]! };
    }
  }

  /** A place for a connection, or -1. */
  take(guestPort: number, hostPort: number): number {
    const slot = this.#free.pop() ?? -1;
    if (slot < 0) return slot;
    const at = slot * WORDS;
    this.#words[at + 1] = guestPort;
    this.#words[at + 2] = hostPort;
    this.#words[at] = 1;
    return slot;
  }

  /** The guest knows its end once `shown` is called. */
  ends(slot: number): void {
    if (slot >= 0) this.#ending.push(slot);
  }

  /** The guest has been shown all that was given to it. */
  shown(): void {
    if (this.#ending.length === 0) return;
    for (const slot of this.#ending) {
      this.#words[slot * WORDS] = 0;
      this.#free.push(slot);
    }
    this.#ending.length = 0;
  }

  /** The guest has forgotten everything. */
  clear(): void {
    this.#words.fill(0);
    this.#ending.length = 0;
    this.#free.length = 0;
    for (let slot = MAX_CONNECTIONS - 1; slot >= 0; slot--) this.#free.push(slot);
  }
}
