/**
 * How a manager learns what became of a transaction whose answer was lost. Each transaction puts a *slot* as well: a key of
 * etcd that one transaction of one manager uses at a time, and whose revision is a condition of it. Who gets no answer puts
 * the slot itself, under the same condition. Either that succeeds: the transaction had not happened, and never will,
 * because its condition is no longer met, wherever it may still be under way. Or it does not, and the slot says whose put
 * came before.
 */
import { Buffer } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import { StoreError } from './error.ts';
import { type EtcdClient, EtcdLost, EtcdRefused, isRefusal, type Patience, refusals } from './etcd-client.ts';
import { compares, type RequestOp } from './etcd-schema.ts';
import { limits } from './store.ts';

/** Transactions under way at once. */
const mostSlots = 64;
/** Slots of a manager that is gone go with its lease, which is replaced long before it runs out. */
const leaseMs = limits.leaseSeconds * 1000;

export const newLeaseId = (): number => randomBytes(6).readUIntBE(0, 6) + 1;

export interface Slot {
  readonly key: Uint8Array;
  /** When it was last put; 0: never. */
  revision: number;
}

export class EtcdSlots {
  readonly #client: EtcdClient;
  readonly #prefix: string;
  readonly #free: Slot[] = [];
  readonly #waiting = new Set<() => void>();
  #made = 0;
  #used = 0;
  #marks = 0;
  #lease: { readonly id: Promise<number>; readonly sinceMs: number } | undefined;

  /** @param prefix of the slots of all managers */
  constructor(client: EtcdClient, prefix: string) {
    this.#client = client;
    this.#prefix = `${prefix}${randomBytes(12).toString('hex')}/`;
  }

  /** For one transaction, until `release`. STORE_UNAVAILABLE when others have them all for too long; the signal's reason. */
  async take(patience: Patience, signal?: AbortSignal): Promise<Slot> {
    while (this.#used >= mostSlots) await this.#released(patience, signal);
    this.#used++;
    return this.#free.pop() ?? { key: Buffer.from(`${this.#prefix}${this.#made++}`), revision: 0 };
  }

  /** @param isKnown whether its revision is; else it is never used again */
  release(slot: Slot, isKnown: boolean): void {
    this.#used--;
    if (isKnown) this.#free.push(slot);
    const [next] = this.#waiting;
    if (next === undefined) return;
    this.#waiting.delete(next);
    next();
  }

  async #released(patience: Patience, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const giveUp = (reason: unknown): void => {
      // At once, so that none is woken who is gone.
      this.#waiting.delete(resolve);
      reject(reason as Error);
    };
    const aborted = (): void => giveUp(signal?.reason);
    const late = setTimeout(() => giveUp(tooMany()), patience.leftMs);
    signal?.addEventListener('abort', aborted, { once: true });
    this.#waiting.add(resolve);
    try {
      await promise;
    } finally {
      clearTimeout(late);
      signal?.removeEventListener('abort', aborted);
    }
  }

  /** What no other put of a slot says. */
  newMark(): Uint8Array {
    return Buffer.from(String(++this.#marks));
  }

  async put({ key }: Slot, mark: Uint8Array, signal?: AbortSignal): Promise<RequestOp> {
    return { requestPut: { key, value: mark, lease: await this.#leaseId(signal) } };
  }

  /**
   * Whether a transaction that put `mark` happened, for good.
   * @returns its revision; undefined: it did not. StoreError STORE_UNAVAILABLE: that is open.
   */
  async settle(slot: Slot, mark: Uint8Array, lost: unknown, patience: Patience): Promise<number | undefined> {
    let error = lost;
    for (;;) {
      await patience.after(error, openFate);
      const fence = this.newMark();
      try {
        const { succeeded, header, responses } = await this.#client.call('Txn', {
          compare: [{ result: compares.equal, target: compares.mod, key: slot.key, modRevision: slot.revision }],
          success: [await this.put(slot, fence)],
          failure: [{ requestRange: { key: slot.key } }],
        });
        if (succeeded) {
          slot.revision = header.revision;
          return undefined;
        }
        const found = responses[0]?.responseRange?.kvs[0];
        if (found === undefined) throw new StoreError('STORE_UNAVAILABLE', `the slot is gone; ${openFate}`, lost);
        slot.revision = found.modRevision;
        // Else it is a fence of ours, whose answer was lost as well.
        return Buffer.from(mark).equals(found.value) ? found.modRevision : undefined;
      } catch (failure) {
        error = (await this.lostLease(failure)) ? new EtcdLost('a lease ran out', failure) : failure;
        // Refused was the question, not what it is about.
        if (error instanceof EtcdRefused || (error instanceof StoreError && error.code === 'STORE_FULL'))
          throw new StoreError('STORE_UNAVAILABLE', `${error.message}; ${openFate}`, error);
      }
    }
  }

  /** Whether etcd refused because the slots' own lease is gone, as when a machine slept for a day: another is granted. */
  async lostLease(error: unknown, signal?: AbortSignal): Promise<boolean> {
    const lease = this.#lease;
    if (!isRefusal(error, refusals.leaseGone) || lease === undefined) return false;
    const { ttl } = await this.#client.ask('LeaseTimeToLive', { id: await lease.id }, signal);
    if (ttl > 0) return false;
    if (this.#lease === lease) this.#lease = undefined;
    return true;
  }

  /** Takes the slots away, if etcd answers. */
  async close(): Promise<void> {
    const lease = this.#lease;
    this.#lease = undefined;
    await lease?.id.then((id) => this.#client.call('LeaseRevoke', { id })).catch(() => {});
  }

  async #leaseId(signal: AbortSignal | undefined): Promise<number> {
    if (this.#lease === undefined || performance.now() - this.#lease.sinceMs > leaseMs / 2) {
      const id = newLeaseId();
      const granted = this.#client.ask('LeaseGrant', { id, ttl: limits.leaseSeconds }).then(
        () => id,
        (error: unknown) => {
          if (isRefusal(error, refusals.leaseExists)) return id;
          this.#lease = undefined;
          throw error;
        },
      );
      this.#lease = { id: granted, sinceMs: performance.now() };
    }
    const { id } = this.#lease;
    signal?.throwIfAborted();
    return id;
  }
}

const tooMany = (): StoreError =>
  new StoreError(
    'STORE_UNAVAILABLE',
    `${mostSlots} changes wait for etcd's answer, so this one was not begun. See that a majority of the members run and are reached`,
  );

export const openFate = 'whether the change happened is open: read back';
