/**
 * Replaces device processes of another version, one VM after the other: the next one only when the last is served again, so
 * that a version that does not work takes one VM's directory away and not all of them.
 */
import { setTimeout as pause } from 'node:timers/promises';

export interface RenewalsOptions {
  /** Resolves when a process of this version serves the VM; rejects with words for people. */
  readonly renew: (vm: string) => Promise<void>;
  /** Whether anything serves the VM now. A VM that is gone or stopped needs nothing. */
  readonly isServed: (vm: string) => boolean;
  readonly onTrouble: (vm: string, what: string) => void;
  /** Milliseconds; tests have no time. */
  readonly wait?: (ms: number, signal: AbortSignal) => Promise<void>;
}

/** Between two VMs. */
const betweenMs = 100;
/** After a replacement that failed: how long until it is looked at again whether the VM is served. */
const looksMs = [1_000, 2_000, 5_000, 10_000, 30_000] as const;
/** Failures in all after which the rest is left as it is. */
const mostFailures = 3;

const waitFor = async (ms: number, signal: AbortSignal): Promise<void> => pause(ms, undefined, { signal });

export class Renewals {
  readonly #options: RenewalsOptions;
  readonly #waiting = new Set<string>();
  readonly #stop = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #isRunning = false;
  #failures = 0;
  #givenUp: string | undefined;

  constructor(options: RenewalsOptions) {
    this.#options = options;
  }

  /** Once each; those that were given up are not tried again. */
  add(vm: string): void {
    if (this.#stop.signal.aborted || this.#givenUp !== undefined) return;
    this.#waiting.add(vm);
    if (this.#isRunning) return;
    this.#isRunning = true;
    this.#running = this.#run();
  }

  /** It needs none any more. */
  remove(vm: string): void {
    this.#waiting.delete(vm);
  }

  /** Resolves when nothing waits. */
  get idle(): Promise<void> {
    return this.#running;
  }

  /** Why no more is replaced, in words; undefined while all is well. */
  get givenUp(): string | undefined {
    return this.#givenUp;
  }

  async close(): Promise<void> {
    this.#stop.abort();
    this.#waiting.clear();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { renew, onTrouble, wait = waitFor } = this.#options;
    const { signal } = this.#stop;
    try {
      for (let [vm] = this.#waiting; vm !== undefined; [vm] = this.#waiting) {
        this.#waiting.delete(vm);
        try {
          await renew(vm);
        } catch (error) {
          if (signal.aborted) return;
          const why = error instanceof Error ? error.message : String(error);
          onTrouble(vm, `replacing its device process by one of this version failed: ${why}`);
          if (++this.#failures === mostFailures || !(await this.#isServedAgain(vm))) return this.#giveUp(why);
        }
        await wait(betweenMs, signal);
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      this.#isRunning = false;
    }
  }

  async #isServedAgain(vm: string): Promise<boolean> {
    const { isServed, wait = waitFor } = this.#options;
    for (const ms of looksMs) {
      await wait(ms, this.#stop.signal);
      if (isServed(vm)) return true;
    }
    return false;
  }

  #giveUp(why: string): void {
    this.#waiting.clear();
    this.#givenUp = `device processes of another version are left as they are, as replacing them failed (${why}); "porthole vm renew" tries one again`;
  }
}
