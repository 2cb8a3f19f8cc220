import { StoreError } from './error.ts';
import type { Clock } from './store.ts';

/** An expiry that could not be written is tried again after so long. */
const retryMs = 1_000;

/**
 * When leases run out. Deadlines are kept in memory only: keeping a lease alive costs no disk, and a store that was down
 * could not have been told, so at its start every lease has its whole time again.
 */
export class Leases {
  readonly #clock: Clock;
  readonly #expire: (leaseId: number) => Promise<void>;
  readonly #leases = new Map<number, { readonly ttlMs: number; deadlineMs: number; hasRunOut: boolean }>();
  #cancel: (() => void) | undefined;
  #isClosed = false;

  /** @param expire deletes the lease and its keys; rejected: it is called again later */
  constructor(clock: Clock, expire: (leaseId: number) => Promise<void>) {
    this.#clock = clock;
    this.#expire = expire;
  }

  add(leaseId: number, ttlSeconds: number): void {
    const ttlMs = ttlSeconds * 1000;
    this.#leases.set(leaseId, { ttlMs, deadlineMs: this.#clock.nowMs() + ttlMs, hasRunOut: false });
    this.#arm();
  }

  /** STORE_LEASE_GONE, from the very moment that its time was over. */
  keepAlive(leaseId: number): void {
    const lease = this.#leases.get(leaseId);
    const nowMs = this.#clock.nowMs();
    if (lease === undefined || lease.hasRunOut || lease.deadlineMs <= nowMs)
      throw new StoreError('STORE_LEASE_GONE', `lease ${leaseId} has run out or was revoked; grant another`);
    lease.deadlineMs = nowMs + lease.ttlMs;
  }

  remove(leaseId: number): void {
    this.#leases.delete(leaseId);
  }

  close(): void {
    this.#isClosed = true;
    this.#cancel?.();
    this.#leases.clear();
  }

  /** For the earliest deadline; one that moved since is looked at once too often, and no more. */
  #arm(): void {
    this.#cancel?.();
    this.#cancel = undefined;
    let earliestMs = Infinity;
    for (const { deadlineMs } of this.#leases.values()) earliestMs = Math.min(earliestMs, deadlineMs);
    if (earliestMs === Infinity || this.#isClosed) return;
    this.#cancel = this.#clock.after(Math.max(0, earliestMs - this.#clock.nowMs()), () => this.#sweep());
  }

  #sweep(): void {
    const nowMs = this.#clock.nowMs();
    for (const [leaseId, lease] of this.#leases) {
      if (lease.deadlineMs > nowMs) continue;
      lease.hasRunOut = true;
      lease.deadlineMs = nowMs + retryMs;
      this.#expire(leaseId).then(
        () => this.remove(leaseId),
        (error: unknown) => {
          if (error instanceof StoreError && error.code === 'STORE_LEASE_GONE') this.remove(leaseId);
        },
      );
    }
    this.#arm();
  }
}
