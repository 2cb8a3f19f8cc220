/** Resets that the guest is to be sent, in order: of connections that are no more, or never were. */

const WORDS = 6;

export class Resets {
  readonly #words: Uint32Array;
  readonly #capacity: number;
  #first = 0;
  #count = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
    this.#words = new Uint32Array(capacity * WORDS);
  }

  get count(): number {
    return this.#count;
  }

  /** False when there is no room. `slot`: where the connection stands in the journal, -1 for nowhere. */
  add(cidLo: number, cidHi: number, hostPort: number, guestPort: number, type: number, slot: number): boolean {
    if (this.#count === this.#capacity) return false;
    const at = ((this.#first + this.#count) % this.#capacity) * WORDS;
    this.#words[at] = cidLo;
    this.#words[at + 1] = cidHi;
    this.#words[at + 2] = hostPort;
    this.#words[at + 3] = guestPort;
    this.#words[at + 4] = type;
    this.#words[at + 5] = slot + 1;
    this.#count++;
    return true;
  }

  #word(index: number): number {
    return this.#words[this.#first * WORDS + index]!;
  }

  /** Of the first one. */
  get cidLo(): number {
    return this.#word(0);
  }

  get cidHi(): number {
    return this.#word(1);
  }

  get hostPort(): number {
    return this.#word(2);
  }

  get guestPort(): number {
    return this.#word(3);
  }

  get type(): number {
    return this.#word(4);
  }

  get slot(): number {
    return this.#word(5) - 1;
  }

  /** Removes the first one. */
  shift(): void {
    this.#first = (this.#first + 1) % this.#capacity;
    this.#count--;
  }

  clear(): void {
    this.#count = 0;
  }
}
