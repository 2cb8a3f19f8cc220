/** A lease under which what is written lives for a day at least, and for 25 hours at most while the manager runs. */
import type { Store } from '../store/index.ts';
import type { Kit } from './kit.ts';

const daySeconds = 24 * 3600;
const hourMs = 3600 * 1000;

/** One lease an hour, kept alive for its hour, so that records need neither a lease each nor a sweeper. */
export class DayLease {
  readonly #store: Store;
  readonly #wallMs: () => number;
  #current: { readonly id: number; readonly sinceMs: number } | undefined;
  #granting: Promise<number> | undefined;

  constructor(store: Store, { wallMs }: Pick<Kit, 'wallMs'>) {
    this.#store = store;
    this.#wallMs = wallMs;
  }

  async current(): Promise<number> {
    const current = this.#current;
    if (current !== undefined && Math.abs(this.#wallMs() - current.sinceMs) < hourMs) return current.id;
    this.#granting ??= this.#grant(current?.id).finally(() => {
      this.#granting = undefined;
    });
    return this.#granting;
  }

  /** After a STORE_LEASE_GONE: the machine slept for a day. */
  forget(): void {
    this.#current = undefined;
  }

  async #grant(before: number | undefined): Promise<number> {
    // What was written last under the one before shall live for a day from now.
    if (before !== undefined) await this.#store.keepAlive(before).catch(() => {});
    const { id } = await this.#store.grantLease(daySeconds);
    this.#current = { id, sinceMs: this.#wallMs() };
    return id;
  }
}
