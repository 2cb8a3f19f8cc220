/**
 * One host daemon for a region's store, where that can be reached from other machines: two would each start every VM. The
 * claim has a lease, so that of a machine that is gone goes; a daemon that comes back knows its own.
 */
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { type Store, StoreError } from '../store/index.ts';

const claimKey = 'host-daemon';
const leaseSeconds = 30;
const keepAliveMs = (leaseSeconds * 1000) / 3;

const Claim = z.object({ id: z.string(), machine: z.string() });

export class StoreClaim implements AsyncDisposable {
  readonly #store: Store;
  readonly #claim: z.infer<typeof Claim>;
  readonly #closing = new AbortController();
  #leaseId = 0;
  #keeping: Promise<void> | undefined;

  private constructor(store: Store, claim: z.infer<typeof Claim>) {
    this.#store = store;
    this.#claim = claim;
  }

  /**
   * @param idFile which daemon this is; made where it is not there
   * @param onLost told with words when it cannot be kept
   */
  static async take(store: Store, idFile: string, onLost: (why: string) => void): Promise<StoreClaim> {
    if (!existsSync(idFile)) writeFileSync(idFile, randomUUID(), { mode: 0o600 });
    const claim = new StoreClaim(store, { id: readFileSync(idFile, 'utf8').trim(), machine: hostname() });
    await claim.#take();
    claim.#keeping = claim.#keep(onLost);
    return claim;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#keeping;
    await this.#store.revokeLease(this.#leaseId).catch(() => {});
  }

  /** Error in words: another has it. */
  async #take(): Promise<void> {
    const lease = await this.#store.grantLease(leaseSeconds);
    for (;;) {
      const found = await this.#store.get(claimKey);
      const other = found && Claim.parse(JSON.parse(Buffer.from(found.value).toString()));
      if (other !== undefined && other.id !== this.#claim.id) {
        await this.#store.revokeLease(lease.id).catch(() => {});
        throw new Error(
          `the host daemon on "${other.machine}" uses this store; stop it, or give this one another prefix: two would start each VM twice. If that machine is gone, its claim ends within ${leaseSeconds} s`,
        );
      }
      const { committed } = await this.#store.commit({
        conditions: [
          found === undefined ? { key: claimKey, exists: false } : { key: claimKey, modRevision: found.modRevision },
        ],
        operations: [
          { type: 'put', key: claimKey, value: Buffer.from(JSON.stringify(this.#claim)), leaseId: lease.id },
        ],
      });
      if (!committed) continue;
      this.#leaseId = lease.id;
      return;
    }
  }

  async #keep(onLost: (why: string) => void): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await pause(keepAliveMs, undefined, { signal });
        await this.#store.keepAlive(this.#leaseId, { signal });
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof StoreError && error.code === 'STORE_LEASE_GONE')) continue;
        await this.#take().catch((failure: unknown) => onLost((failure as Error).message));
      }
    }
  }
}
