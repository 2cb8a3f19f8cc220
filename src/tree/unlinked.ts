/**
 * Nodes that have no name any more, as the file systems of one replica see them: such a node lives while any of them has it
 * open. Once none has, it is given up, and from then on nobody may open it: it is on its way out.
 */
export class Unlinked {
  readonly #holders = new Set<(ino: number) => boolean>();
  readonly #leaving = new Set<number>();

  /** Asks a file system, from now on, whether it has a node open. Returns how to stop. */
  ask(hasOpen: (ino: number) => boolean): () => void {
    this.#holders.add(hasOpen);
    return () => this.#holders.delete(hasOpen);
  }

  /** True when nobody has the node open and it is for the caller to tell the authority so, and `left` afterwards. */
  giveUp(ino: number): boolean {
    if (this.#leaving.has(ino)) return false;
    for (const hasOpen of this.#holders) if (hasOpen(ino)) return false;
    this.#leaving.add(ino);
    return true;
  }

  /** The authority has answered: the node is gone, or stays for good. */
  left(ino: number): void {
    this.#leaving.delete(ino);
  }

  isLeaving(ino: number): boolean {
    return this.#leaving.size > 0 && this.#leaving.has(ino);
  }
}
