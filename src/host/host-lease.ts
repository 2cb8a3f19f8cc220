/** This host's lease, as its managers grant it: kept in a file for the guards of VMs, which need no daemon to read it. */
import { bootClockMs, type GuardingLease, leaseLeftMs, writeLease } from '../qemu/index.ts';

export interface LeaseGrant {
  readonly id: string;
  /** Of the boot clock, from before it was asked for. */
  readonly fromMs: number;
  readonly seconds: number;
}

/**
 * How much sooner VMs are ended than managers may start them elsewhere, of the lease's time: for a guard to look, QEMU to be
 * killed, and two clocks to differ.
 */
const marginPart = 0.1;

export class HostLease {
  readonly #file: string;
  #id = '';
  #waiting: (() => void)[] = [];

  constructor(file: string) {
    this.#file = file;
  }

  /** Errors of the file system. */
  granted({ id, fromMs, seconds }: LeaseGrant): void {
    const deadlineMs = fromMs + seconds * 1000 * (1 - marginPart);
    if (deadlineMs <= bootClockMs()) return;
    writeLease(this.#file, id, deadlineMs);
    this.#id = id;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Waits for one that holds. The signal's reason. */
  async held(signal: AbortSignal): Promise<GuardingLease> {
    for (;;) {
      signal.throwIfAborted();
      if (leaseLeftMs(this.#file, this.#id) > 0) return { file: this.#file, id: this.#id };
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const abort = (): void => reject(signal.reason);
      this.#waiting.push(resolve);
      signal.addEventListener('abort', abort, { once: true });
      try {
        await promise;
      } finally {
        signal.removeEventListener('abort', abort);
      }
    }
  }
}
