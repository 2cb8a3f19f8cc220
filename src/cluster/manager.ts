/** A manager: all that the API does, without the API. Everything lasting is in the stores. */
import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import { type HostPort, type ImagePort, type NetworkDisks, ownHost, type Resources } from '../records/index.ts';
import type { Store } from '../store/index.ts';
import type { Enrolment } from '../uplink/index.ts';
import { Accounts } from './accounts.ts';
import { Addresses } from './addresses.ts';
import { FleetAudit } from './audit.ts';
import { Batches } from './batches.ts';
import { DayLease } from './day-lease.ts';
import { Disks } from './disks.ts';
import { Drains } from './drains.ts';
import { Fencing } from './fencing.ts';
import { tellingGlobal } from './global-store.ts';
import { Hosts } from './hosts.ts';
import { Idempotency } from './idempotency.ts';
import { Images } from './images.ts';
import { Keys } from './keys.ts';
import type { Kit } from './kit.ts';
import { ManagerLease } from './manager-lease.ts';
import { Moves } from './moves.ts';
import { Operations } from './operations.ts';
import { Outbox } from './outbox.ts';
import { Peers } from './peers.ts';
import { Reconciler } from './reconciler.ts';
import { Regions } from './regions.ts';
import { Sessions } from './sessions.ts';
import { Upkeep, type UpkeepOptions } from './upkeep.ts';
import { Vms } from './vms.ts';

/** uids that are given out, one to a VM. */
export interface UidRange {
  readonly first: number;
  readonly count: number;
}

export interface ManagerOptions {
  readonly region: Store;
  readonly global: Store;
  readonly host: HostPort;
  /** The region's. */
  readonly images: ImagePort;
  readonly log: Logger;
  /** Default `local`. */
  readonly regionName?: string | undefined;
  /** The host that is given is in this process, as the one of this name; default: `ownHost`. False: none is. */
  readonly ownHost?: string | false | undefined;
  /** Hosts of the region that can be asked one by one; default: the one in this process. */
  readonly connected?: (() => ReadonlyMap<string, HostPort>) | undefined;
  /** What VMs may take of it; undefined: as much as they like. */
  readonly capacity?: Resources | undefined;
  /** uids to give to its VMs, one each; undefined: everything runs as the daemon's user. */
  readonly uids?: UidRange | undefined;
  /** The stores as a whole, where they are kept on this machine. */
  readonly upkeep?: UpkeepOptions | undefined;
  /** The region's network disks, where they are on this machine. */
  readonly disks?: NetworkDisks | undefined;
  /** How hosts become hosts of the region; undefined where there is only this one. */
  readonly enrolment?: Enrolment | undefined;
  /** How long after its end others go on with what a manager was at. Whole seconds; default: 10. */
  readonly takeoverSeconds?: number | undefined;
  /** From the end of a host's lease until its VMs are started elsewhere; default: 1500. */
  readonly fencingMarginMs?: number | undefined;
  readonly wallMs?: (() => number) | undefined;
}

const takeoverSeconds = 10;
const fencingMarginMs = 1_500;

export class Manager implements AsyncDisposable {
  readonly kit: Kit;
  readonly operations: Operations;
  readonly images: Images;
  readonly accounts: Accounts;
  readonly addresses: Addresses;
  readonly regions: Regions;
  readonly peers: Peers;
  readonly hosts: Hosts;
  readonly audit: FleetAudit;
  readonly vms: Vms;
  readonly batches: Batches;
  readonly keys: Keys;
  readonly sessions: Sessions;
  readonly outbox: Outbox;
  readonly reconciler: Reconciler;
  readonly moves: Moves;
  readonly fencing: Fencing;
  readonly drains: Drains;
  readonly upkeep: Upkeep;
  readonly enrolment: Enrolment | undefined;
  /** Of requests whose effect is in the region's store or on a host, and in the global store. */
  readonly idempotency: Idempotency;
  readonly globalIdempotency: Idempotency;
  readonly #lease: ManagerLease;
  readonly #stop = new AbortController();
  #loops: readonly Promise<void>[] = [];

  private constructor(options: ManagerOptions) {
    const { region, global, host, images, log, regionName, upkeep, wallMs } = options;
    const own = ownHostOf(options);
    this.kit = {
      region,
      global: tellingGlobal(global, region),
      host,
      images,
      connected: options.connected ?? (() => new Map(own === undefined ? [] : [[own, host]])),
      log,
      regionName: regionName ?? 'local',
      wallMs: wallMs ?? Date.now,
      randomBytes,
    };
    const lease = new DayLease(region, this.kit);
    this.#lease = new ManagerLease(region, options.takeoverSeconds ?? takeoverSeconds);
    this.operations = new Operations(this.kit, lease);
    this.outbox = new Outbox(this.kit);
    this.upkeep = new Upkeep(this.kit, this.operations, upkeep);
    this.enrolment = options.enrolment;
    this.accounts = new Accounts(this.kit);
    this.addresses = new Addresses(this.kit);
    this.regions = new Regions(this.kit);
    this.peers = new Peers(this.kit, this.regions);
    this.images = new Images(this.kit, {
      operations: this.operations,
      outbox: this.outbox,
      accounts: this.accounts,
      peers: this.peers,
      lease: this.#lease,
    });
    this.hosts = new Hosts(this.kit, own);
    this.audit = new FleetAudit(this.kit, this.hosts);
    this.vms = new Vms(this.kit, {
      operations: this.operations,
      images: this.images,
      hosts: this.hosts,
      accounts: this.accounts,
      addresses: this.addresses,
      regions: this.regions,
    });
    this.batches = new Batches(this.kit, {
      vms: this.vms,
      operations: this.operations,
      day: lease,
      lease: this.#lease,
    });
    this.keys = new Keys(this.kit, this.outbox);
    this.sessions = new Sessions(this.kit, this.keys);
    this.reconciler = new Reconciler(this.kit, {
      vms: this.vms,
      operations: this.operations,
      hosts: this.hosts,
      addresses: this.addresses,
    });
    this.moves = new Moves(this.kit, this.hosts);
    this.fencing = new Fencing(this.kit, {
      hosts: this.hosts,
      moves: this.moves,
      reconciler: this.reconciler,
      marginMs: options.fencingMarginMs ?? fencingMarginMs,
    });
    this.drains = new Drains(this.kit, { hosts: this.hosts, moves: this.moves, operations: this.operations });
    this.idempotency = new Idempotency(this.kit, region, lease);
    this.globalIdempotency = new Idempotency(this.kit, this.kit.global, new DayLease(this.kit.global, this.kit));
  }

  /** StoreError. The stores, the images and the host stay the caller's, and must outlive it. */
  static async open(options: ManagerOptions): Promise<Manager> {
    const manager = new Manager(options);
    const { signal } = manager.#stop;
    await manager.#settle(options);
    manager.#loops = [
      manager.keys,
      manager.sessions,
      manager.outbox,
      manager.reconciler,
      manager.accounts,
      manager.hosts,
      manager.batches,
      manager.images,
      manager.fencing,
      manager.drains,
      new Disks(manager.kit, options.disks),
    ].map((part) => part.run(signal));
    await Promise.all([manager.keys.ready, manager.images.recover(), manager.upkeep.recover()]);
    return manager;
  }

  /** What is there from the first start on. */
  async #settle(options: ManagerOptions): Promise<void> {
    await Promise.all([this.accounts.ensureDefault(), this.regions.ensureOwn(), this.peers.open()]);
    const name = ownHostOf(options);
    if (name === undefined) return;
    await this.hosts.register({ name, capacity: options.capacity, uids: options.uids && { ...options.uids } });
    await this.vms.adopt(name);
  }

  async close(): Promise<void> {
    await Promise.all([this.images.close(), this.upkeep.close()]);
    this.#stop.abort();
    await Promise.all(this.#loops);
    await this.#lease.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

const ownHostOf = ({ ownHost: name }: ManagerOptions): string | undefined =>
  name === false ? undefined : (name ?? ownHost);
