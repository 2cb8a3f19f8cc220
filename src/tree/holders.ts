/** Who may have files open that have no name any more: they stay until none of them does. */

/** A holder of which a restored tree knows no more than that there may be one. */
const UNKNOWN = '';

export class Holders {
  readonly #holders = new Set<string>();
  /** Who may hold handles of an unlinked node, by ino. */
  readonly #held = new Map<number, Set<string>>();
  /** Told of a node that nobody can have open. */
  readonly #released: (ino: number) => void;

  constructor(released: (ino: number) => void) {
    this.#released = released;
  }

  /** Nobody can have anything open. */
  get none(): boolean {
    return this.#holders.size === 0;
  }

  add(holder: string): void {
    this.#holders.add(holder);
  }

  /** There may be some that were there before this tree was restored. */
  addUnknown(): void {
    this.#holders.add(UNKNOWN);
  }

  /** All others are gone for good. */
  are(alive: ReadonlySet<string>): void {
    for (const holder of alive) this.#holders.add(holder);
    // Whoever held something before this tree was restored is one of them, or gone.
    for (const held of this.#held.values()) if (held.has(UNKNOWN)) for (const holder of alive) held.add(holder);
    for (const holder of [...this.#holders]) if (!alive.has(holder)) this.end(holder);
  }

  end(holder: string): void {
    this.#holders.delete(holder);
    for (const ino of [...this.#held.keys()]) this.drop(ino, holder);
  }

  /** A node has lost its name: each of them may have it open. False when there is none. */
  hold(ino: number): boolean {
    if (!this.none && !this.#held.has(ino)) this.#held.set(ino, new Set(this.#holders));
    return this.#held.has(ino);
  }

  /** A node that had lost its name when the tree was restored. */
  holdUnknown(ino: number): void {
    this.#held.set(ino, new Set([UNKNOWN]));
  }

  /** The node is gone. */
  forget(ino: number): void {
    this.#held.delete(ino);
  }

  /** The holder has it open no more. */
  drop(ino: number, holder: string): void {
    const holders = this.#held.get(ino);
    if (holders === undefined || !holders.delete(holder) || holders.size > 0) return;
    this.#held.delete(ino);
    this.#released(ino);
  }
}
