/** A lease that a manager keeps for as long as it lives. What is under it tells others what the manager is at. */
import { type Store, StoreError } from '../store/index.ts';

export class ManagerLease {
  readonly #store: Store;
  /** How long one that died keeps others from its work. */
  readonly #seconds: number;
  readonly #keeping: NodeJS.Timeout;
  #lease: Promise<number> | undefined;

  constructor(store: Store, seconds: number) {
    this.#store = store;
    this.#seconds = seconds;
    this.#keeping = setInterval(() => void this.#keep(), (seconds * 1000) / 3).unref();
  }

  /** Once more under a new one when the one before had run out. `act` has had no effect then. */
  async under<T>(act: (leaseId: number) => Promise<T>): Promise<T> {
    try {
      return await act(await this.#current());
    } catch (error) {
      if (!isGone(error)) throw error;
      this.#lease = undefined;
      return act(await this.#current());
    }
  }

  async #current(): Promise<number> {
    this.#lease ??= this.#store.grantLease(this.#seconds).then(({ id }) => id);
    const lease = this.#lease;
    return lease.catch((error: unknown) => {
      if (this.#lease === lease) this.#lease = undefined;
      throw error;
    });
  }

  async #keep(): Promise<void> {
    const lease = this.#lease;
    const id = await lease?.catch(() => undefined);
    if (id === undefined) return;
    await this.#store.keepAlive(id).catch((error: unknown) => {
      if (isGone(error) && this.#lease === lease) this.#lease = undefined;
    });
  }

  /** Others need not wait for its end. */
  async close(): Promise<void> {
    clearInterval(this.#keeping);
    const id = await this.#lease?.catch(() => undefined);
    if (id !== undefined) await this.#store.revokeLease(id).catch(() => {});
  }
}

const isGone = (error: unknown): boolean => error instanceof StoreError && error.code === 'STORE_LEASE_GONE';
