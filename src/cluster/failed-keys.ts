/** How often wrong keys may be tried from an address: a bucket that holds few and fills slowly. */
const burst = 20;
const refillMs = 3_000;
/** Addresses remembered at once: those that were heard of last. */
const remembered = 4_096;

export class FailedKeys {
  readonly #nowMs: () => number;
  /** Failures that are left, and of when that is; in order of their last use. */
  readonly #buckets = new Map<string, { left: number; atMs: number }>();

  constructor(nowMs: () => number = () => performance.now()) {
    this.#nowMs = nowMs;
  }

  /** Seconds to wait before another wrong key is heard from there; 0: none. */
  waitSeconds(address: string): number {
    const left = this.#left(address);
    return left >= 1 ? 0 : Math.max(1, Math.ceil(((1 - left) * refillMs) / 1000));
  }

  failed(address: string): void {
    const left = Math.max(0, this.#left(address) - 1);
    this.#buckets.delete(address);
    this.#buckets.set(address, { left, atMs: this.#nowMs() });
    if (this.#buckets.size > remembered) this.#buckets.delete(this.#buckets.keys().next().value!);
  }

  #left(address: string): number {
    const bucket = this.#buckets.get(address);
    if (bucket === undefined) return burst;
    return Math.min(burst, bucket.left + (this.#nowMs() - bucket.atMs) / refillMs);
  }
}
