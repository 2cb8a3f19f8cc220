/** Bytes of the values put since the last compaction, in a few steps: up to which revision to compact, for few to be left. */
const stepsOfShare = 32;

export class HistorySize {
  readonly #retainBytes: number;
  /** Each holds the bytes up to and including its revision, from the one before on. */
  #steps: { revision: number; bytes: number }[] = [];
  #total = 0;

  /** For at least so many bytes of history, and at most twice as many. */
  constructor(retainBytes: number) {
    this.#retainBytes = retainBytes;
  }

  /** In the order of revisions. */
  add(revision: number, bytes: number): void {
    const newest = this.#steps.at(-1);
    this.#total += bytes;
    if (newest !== undefined && newest.bytes + bytes <= this.#retainBytes / stepsOfShare) {
      newest.revision = revision;
      newest.bytes += bytes;
    } else {
      this.#steps.push({ revision, bytes });
    }
  }

  compacted(revision: number): void {
    while (this.#steps.length > 0 && this.#steps[0]!.revision <= revision) this.#total -= this.#steps.shift()!.bytes;
  }

  /** Up to where to compact; undefined: not yet. */
  due(): number | undefined {
    if (this.#total < 2 * this.#retainBytes) return undefined;
    let left = this.#total;
    let upTo: number | undefined;
    for (const { revision, bytes } of this.#steps) {
      if (left - bytes < this.#retainBytes) break;
      left -= bytes;
      upTo = revision;
    }
    return upTo;
  }
}
