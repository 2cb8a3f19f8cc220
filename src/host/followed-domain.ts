/** One attached VM and the libvirt domain that is its machine: starts and reboots there become boots here. */
import { z } from 'zod';
import { decodeRecord, encodeRecord } from '../records/index.ts';
import type { Operation, Store } from '../store/index.ts';
import type { DomainFollower, DomainWatch } from './domain-watch.ts';
import { type DomainRun, isSameRun } from './virsh.ts';

/** `domainrun/NAME`, written by the host for itself: the life of the domain that the last boot was found in. */
const DomainRunRecord = z.looseObject({
  vm: z.string(),
  uuid: z.string(),
  id: z.int(),
  cpuNs: z.number().nonnegative().optional(),
});

export const domainRunKey = (name: string): string => `domainrun/${name}`;

export interface FollowedDomainOptions {
  readonly vm: { readonly name: string; readonly id: string };
  readonly domain: string;
  readonly watch: Pick<DomainWatch, 'follow' | 'look' | 'destroy'>;
  readonly store: Store;
  /** Commits a boot together with `operations`. */
  readonly boot: (reason: string, operations: readonly Operation[]) => Promise<void>;
  readonly onTrouble: (what: string) => void;
}

/** How often the time that a life has had is written, by which one with the same number is told from it later. */
const keepEveryMs = 60_000;

export class FollowedDomain implements DomainFollower {
  readonly domain: string;
  readonly #options: FollowedDomainOptions;
  #seen: DomainRun | undefined;
  #keptAtMs = 0;
  /** A reboot was told of, and its boot is not kept yet. */
  #isOwed = false;
  #saidUnknown = false;
  /** The life that was seen last must not go on. */
  #isCondemned = false;
  #working: Promise<void> = Promise.resolve();
  #unfollow: () => void = () => {};

  private constructor(options: FollowedDomainOptions, seen: DomainRun | undefined) {
    this.#options = options;
    this.domain = options.domain;
    this.#seen = seen;
  }

  static async open(options: FollowedDomainOptions): Promise<FollowedDomain> {
    const { store, vm, watch } = options;
    const key = domainRunKey(vm.name);
    const entry = await store.get(key);
    const record = entry && decodeRecord(DomainRunRecord, key, entry.value);
    const followed = new FollowedDomain(options, record?.vm === vm.id ? record : undefined);
    followed.#unfollow = watch.follow(followed);
    return followed;
  }

  /** Resolves when the boots that were told of are committed. */
  async close(): Promise<void> {
    this.#unfollow();
    await this.#working;
  }

  /** Has libvirt destroy it, if it is still in the boot that was found last; until that is done, or another boot is found. */
  destroy(): void {
    this.#isCondemned = true;
    this.#options.watch.look();
  }

  onReboot(): void {
    this.#then(() => this.#rebooted());
  }

  async #rebooted(): Promise<void> {
    this.#isOwed = true;
    this.#isCondemned = false;
    await this.#options.boot('rebooted, as libvirt tells', []);
    this.#isOwed = false;
  }

  onLook(found: DomainRun | 'off' | 'unknown'): void {
    if (found === 'unknown' && !this.#saidUnknown)
      this.#options.onTrouble(`libvirt has no domain "${this.domain}" yet; its boots count from when there is one`);
    this.#saidUnknown = found === 'unknown';
    if (typeof found !== 'string') this.#then(() => this.#running(found));
    this.#then(() => this.#destroyed(found));
  }

  async #destroyed(found: DomainRun | 'off' | 'unknown'): Promise<void> {
    if (!this.#isCondemned) return;
    if (typeof found === 'string') this.#isCondemned = false;
    else await this.#options.watch.destroy(found);
  }

  async #running(run: DomainRun): Promise<void> {
    const { vm, store, boot } = this.#options;
    const seen = this.#seen;
    const isNew = seen === undefined || !isSameRun(seen, run);
    const now = performance.now();
    // That of the life before is none any more.
    if (isNew) {
      this.#isOwed = false;
      this.#isCondemned = false;
    } else if (this.#isOwed) await this.#rebooted();
    const keep: Operation = {
      type: 'put',
      key: domainRunKey(vm.name),
      value: encodeRecord({ ...run, vm: vm.id } satisfies z.infer<typeof DomainRunRecord>),
    };
    if (isNew) await boot('started, as libvirt tells', [keep]);
    else if (now - this.#keptAtMs >= keepEveryMs) await store.commit({ operations: [keep] });
    else return;
    this.#seen = run;
    this.#keptAtMs = now;
  }

  #then(work: () => Promise<void>): void {
    this.#working = this.#working.then(work).catch((error: unknown) => {
      this.#options.onTrouble(`what libvirt told of "${this.domain}" was not kept: ${(error as Error).message}`);
    });
  }
}
