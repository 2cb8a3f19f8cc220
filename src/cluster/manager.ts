/** A manager: all that the API does, without the API. Everything lasting is in the stores. */
import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import type { HostPort } from '../records/index.ts';
import type { Store } from '../store/index.ts';
import { DayLease } from './day-lease.ts';
import { Idempotency } from './idempotency.ts';
import { Images } from './images.ts';
import { Keys } from './keys.ts';
import type { Kit } from './kit.ts';
import { Operations } from './operations.ts';
import { Outbox } from './outbox.ts';
import { Reconciler } from './reconciler.ts';
import { Upkeep, type UpkeepOptions } from './upkeep.ts';
import { type UidRange, Vms } from './vms.ts';

export interface ManagerOptions {
  readonly region: Store;
  readonly global: Store;
  readonly host: HostPort;
  readonly log: Logger;
  /** Default `local`. */
  readonly regionName?: string | undefined;
  /** uids to give to VMs, one each; undefined: everything runs as the daemon's user. */
  readonly uids?: UidRange | undefined;
  /** The stores as a whole, where they are kept on this machine. */
  readonly upkeep?: UpkeepOptions | undefined;
  readonly wallMs?: (() => number) | undefined;
}

export class Manager implements AsyncDisposable {
  readonly kit: Kit;
  readonly operations: Operations;
  readonly images: Images;
  readonly vms: Vms;
  readonly keys: Keys;
  readonly outbox: Outbox;
  readonly reconciler: Reconciler;
  readonly upkeep: Upkeep;
  /** Of requests whose effect is in the region's store or on a host, and in the global store. */
  readonly idempotency: Idempotency;
  readonly globalIdempotency: Idempotency;
  readonly #stop = new AbortController();
  #loops: readonly Promise<void>[] = [];

  private constructor({ region, global, host, log, regionName, uids, upkeep, wallMs }: ManagerOptions) {
    this.kit = {
      region,
      global,
      host,
      log,
      regionName: regionName ?? 'local',
      wallMs: wallMs ?? Date.now,
      randomBytes,
    };
    const lease = new DayLease(region, this.kit);
    this.operations = new Operations(this.kit, lease);
    this.outbox = new Outbox(this.kit);
    this.images = new Images(this.kit, this.operations, this.outbox);
    this.upkeep = new Upkeep(this.kit, this.operations, upkeep);
    this.vms = new Vms(this.kit, { operations: this.operations, images: this.images, uids });
    this.keys = new Keys(this.kit);
    this.reconciler = new Reconciler(this.kit, { vms: this.vms, operations: this.operations });
    this.idempotency = new Idempotency(this.kit, region, lease);
    this.globalIdempotency = new Idempotency(this.kit, global, new DayLease(global, this.kit));
  }

  /** StoreError. The stores and the host stay the caller's, and must outlive it. */
  static async open(options: ManagerOptions): Promise<Manager> {
    const manager = new Manager(options);
    const { signal } = manager.#stop;
    manager.#loops = [manager.keys.run(signal), manager.outbox.run(signal), manager.reconciler.run(signal)];
    await Promise.all([manager.keys.ready, manager.images.recover(), manager.upkeep.recover()]);
    return manager;
  }

  async close(): Promise<void> {
    await Promise.all([this.images.close(), this.upkeep.close()]);
    this.#stop.abort();
    await Promise.all(this.#loops);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
