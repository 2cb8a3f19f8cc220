/**
 * One host daemon for a region's store, where that can be reached from other machines: two would each start every VM. The
 * claim has a lease, so that of a machine that is gone goes; a daemon that comes back knows its own.
 */
import { randomUUID } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { machineBootId } from '../qemu/index.ts';
import { hostLiveKey } from '../records/index.ts';
import { type Entry, keyText, prefixRange, type Store, StoreError } from '../store/index.ts';
import { flock, LOCK_EX, LOCK_NB } from '../sys/index.ts';
import { errnoName } from '../wire/index.ts';

const claimKey = 'host-daemon';

const Claim = z.object({
  /** Of the state directory. */
  id: z.string(),
  /** Its name, for people. */
  machine: z.string(),
  machineId: z.string(),
  bootId: z.string(),
});
type Claim = z.infer<typeof Claim>;

const claimIn = ({ value }: Entry): Claim => Claim.parse(JSON.parse(Buffer.from(value).toString()));

/** Who uses a store, in words, as far as the store says; undefined: nobody. A manager says so while a host is connected to it. */
export const claimant = async (store: Store): Promise<string | undefined> => {
  const found = await store.get(claimKey);
  if (found !== undefined) return `the host daemon on "${claimIn(found).machine}" uses this store`;
  const prefix = hostLiveKey('');
  const [live] = (await store.range(prefixRange(prefix), { limit: 1 })).entries;
  return live && `a manager uses this store: host "${keyText(live.key).slice(prefix.length)}" is connected to it`;
};

export interface StoreClaimOptions {
  /** Which daemon this is; made where it is not there, and locked while the claim lasts. */
  readonly idFile: string;
  /** Told once, with words, when another may have the store from now on. */
  readonly onLost: (why: string) => void;
  readonly leaseSeconds?: number;
}

export class StoreClaim implements AsyncDisposable {
  readonly #store: Store;
  readonly #claim: Claim;
  readonly #leaseSeconds: number;
  readonly #lock: number;
  readonly #closing = new AbortController();
  #leaseId = 0;
  /** What nobody takes away before. */
  #heldUntilMs = 0;
  #isLost = false;
  #keeping: Promise<void> | undefined;

  private constructor(store: Store, lock: number, { idFile, leaseSeconds = 30 }: StoreClaimOptions) {
    this.#store = store;
    this.#lock = lock;
    this.#leaseSeconds = leaseSeconds;
    const machineId = existsSync('/etc/machine-id') ? readFileSync('/etc/machine-id', 'utf8').trim() : '';
    const id = readFileSync(idFile, 'utf8').trim();
    this.#claim = { id, machine: hostname(), machineId, bootId: machineBootId() };
  }

  /** Error in words: another daemon has the state directory, or the store. */
  static async take(store: Store, options: StoreClaimOptions): Promise<StoreClaim> {
    const lock = lockAlone(options.idFile);
    try {
      const claim = new StoreClaim(store, lock, options);
      await claim.#take();
      claim.#keeping = claim.#keep(options.onLost);
      return claim;
    } catch (error) {
      closeSync(lock);
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#keeping;
    if (!this.#isLost) await this.#store.revokeLease(this.#leaseId).catch(() => {});
    closeSync(this.#lock);
  }

  async #take(): Promise<void> {
    const askedMs = performance.now();
    const lease = await this.#store.grantLease(this.#leaseSeconds);
    for (;;) {
      const found = await this.#store.get(claimKey);
      const other = found && claimIn(found);
      if (other !== undefined && !this.#isOwn(other)) {
        await this.#store.revokeLease(lease.id).catch(() => {});
        throw new Error(
          `the host daemon on "${other.machine}" uses this store; stop it, or give this one another prefix: two would start each VM twice. If that machine is gone, or was started anew, its claim ends within ${this.#leaseSeconds} s`,
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
      this.#heldUntilMs = askedMs + this.#leaseSeconds * 1000;
      return;
    }
  }

  /** A state directory is used by one daemon of a machine, by its lock; a copy of it on another machine is another's. */
  #isOwn({ id, machineId, bootId }: Claim): boolean {
    return id === this.#claim.id && machineId === this.#claim.machineId && bootId === this.#claim.bootId;
  }

  /** Until it is closed, or lost. Never rejects. */
  async #keep(onLost: StoreClaimOptions['onLost']): Promise<void> {
    const { signal } = this.#closing;
    const keepAliveMs = (this.#leaseSeconds * 1000) / 3;
    let why: string | undefined;
    while (why === undefined) {
      await pause(keepAliveMs, undefined, { signal }).catch(() => {});
      const askedMs = performance.now();
      const late = AbortSignal.timeout(Math.max(0, Math.ceil(this.#heldUntilMs - askedMs)));
      try {
        why = await this.#goneSince(AbortSignal.any([signal, late]));
        this.#heldUntilMs = askedMs + this.#leaseSeconds * 1000;
      } catch {
        if (late.aborted) why = `nothing was heard of it for ${this.#leaseSeconds} s`;
      }
      if (signal.aborted) return;
    }
    this.#isLost = true;
    onLost(
      `the claim to be the only host daemon of this store is lost: ${why}. Another may have it by now, so this one ends; VMs go on`,
    );
  }

  /** @returns why the claim is gone; undefined: it was kept alive */
  async #goneSince(signal: AbortSignal): Promise<string | undefined> {
    try {
      await this.#store.keepAlive(this.#leaseId, { signal });
    } catch (error) {
      if (error instanceof StoreError && error.code === 'STORE_LEASE_GONE') return 'its lease has run out';
      throw error;
    }
    const found = await this.#store.get(claimKey, { signal });
    if (found === undefined) return 'it was deleted';
    return found.leaseId === this.#leaseId ? undefined : `"${claimIn(found).machine}" took it`;
  }
}

/** @returns a descriptor of the file, which has an id, as long as which nobody else can lock it */
const lockAlone = (idFile: string): number => {
  const lock = openSync(idFile, 'a+', 0o600);
  const errno = flock(lock, LOCK_EX | LOCK_NB);
  if (errno < 0) {
    closeSync(lock);
    throw new Error(
      errnoName(-errno) === 'EAGAIN'
        ? `another host daemon uses "${dirname(idFile)}"; stop it, or give another --state directory`
        : `"${idFile}" cannot be locked: ${errnoName(-errno)}`,
    );
  }
  if (readFileSync(idFile, 'utf8').trim() === '') writeFileSync(idFile, randomUUID());
  return lock;
};
