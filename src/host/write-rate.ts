/**
 * How fast what the guest of one VM writes goes to the store: a write of one byte to a long value is one of the whole value
 * there, and the store is one for all VMs. What is over the rate is kept later, never refused; what gathers meanwhile is kept
 * together, a value that was written many times once. What is changed from outside waits for none of it.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type { Commit, Persist } from '../tree/index.ts';

export interface WriteRateOptions {
  readonly bytesPerSecond: number;
  /** Monotonic. */
  readonly nowMs?: () => number;
  /** Resolves after a time, or when the signal is aborted. */
  readonly wait?: (ms: number, signal: AbortSignal) => Promise<void>;
}

/** What may be written at once after a rest, in seconds of the rate. */
const burstSeconds = 4;
/** A guest's device process takes a daemon for away that answers nothing for a second. */
const longestWaitMs = 500;

const waitFor = async (ms: number, signal: AbortSignal): Promise<void> => {
  await pause(ms, undefined, { signal }).catch(() => {});
};

export class WriteRate {
  readonly #bytesPerMs: number;
  readonly #burstBytes: number;
  readonly #nowMs: () => number;
  readonly #wait: NonNullable<WriteRateOptions['wait']>;
  /** Below 0: owed. */
  #left: number;
  #atMs: number;
  #urgent = 0;
  #waiting: AbortController | undefined;

  constructor({ bytesPerSecond, nowMs = () => performance.now(), wait = waitFor }: WriteRateOptions) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#burstBytes = bytesPerSecond * burstSeconds;
    this.#nowMs = nowMs;
    this.#wait = wait;
    this.#left = this.#burstBytes;
    this.#atMs = nowMs();
  }

  /** `persist` at this rate. `writtenBytes`: what it has written until now. */
  paced(persist: (commits: readonly Commit[]) => Promise<void>, writtenBytes: () => number): Persist {
    return async (commits) => {
      const guestBytes = commits.reduce((sum, commit) => sum + bytesOfGuest(commit), 0);
      if (guestBytes > 0) await this.#turn();
      const before = writtenBytes();
      try {
        await persist(commits);
      } finally {
        // At most as much as it would be by itself.
        this.#settle();
        this.#left -= Math.min(guestBytes, writtenBytes() - before);
      }
    };
  }

  /** While this runs nothing waits: it may have to come after what does. */
  async urgently<T>(work: () => Promise<T>): Promise<T> {
    this.#urgent++;
    this.#waiting?.abort();
    try {
      return await work();
    } finally {
      this.#urgent--;
    }
  }

  async #turn(): Promise<void> {
    this.#settle();
    if (this.#left >= 0 || this.#urgent > 0) return;
    const waiting = new AbortController();
    this.#waiting = waiting;
    await this.#wait(Math.min(longestWaitMs, -this.#left / this.#bytesPerMs), waiting.signal);
    this.#waiting = undefined;
  }

  #settle(): void {
    const nowMs = this.#nowMs();
    this.#left = Math.min(this.#burstBytes, this.#left + (nowMs - this.#atMs) * this.#bytesPerMs);
    this.#atMs = nowMs;
  }
}

/** Values of what a guest asked for. An entry without one counts for a little. */
const bytesOfGuest = ({ applied, put }: Commit): number =>
  applied === undefined ? 0 : put.reduce((sum, { node }) => sum + 256 + (node.bytes?.length ?? 0), 0);
