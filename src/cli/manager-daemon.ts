/** `porthole manager`: the API of a region, whose VMs run on hosts that connect to it. */
import { realpathSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pino } from 'pino';
import { type ApiServer, claimSocket, listen, Manager } from '../cluster/index.ts';
import { DiskServer } from '../disks/index.ts';
import { claimUids, specChecker } from '../host/index.ts';
import { ImageLibrary, type Recipes } from '../images/index.ts';
import { findLauncher, makeSearchable } from '../qemu/index.ts';
import type { Stores } from '../store/index.ts';
import { addressText, UplinkServer } from '../uplink/index.ts';
import {
  type ApiAddress,
  openDaemonStores,
  placeOfImages,
  type StoresLocation,
  siteOf,
  toTcpOptions,
  upkeepOf,
} from './manager-parts.ts';
import { mustBeReachable } from './this-machine.ts';
import { apiSocketName } from './up.ts';
import { prepareDirectories, startRefusal } from './up-start.ts';

export interface ManagerDaemonOptions extends StoresLocation {
  readonly stateDirectory: string;
  readonly runDirectory: string;
  readonly region: string;
  /** Where hosts connect. */
  readonly hosts: { readonly host: string; readonly port: number };
  /** See `porthole manager --host-lease`. */
  readonly hostLeaseSeconds: number;
  /** The region's network disks, where they are on this machine. */
  readonly disks?: { readonly directory: string; readonly address: string } | undefined;
  readonly tcp?: ApiAddress | undefined;
  readonly socketGid?: number | undefined;
  readonly version: string;
  readonly recipes: Recipes;
  /** Where the region's images are, in place of the state directory. */
  readonly images?: string | undefined;
  readonly onEvent: (event: ManagerEvent) => void;
}

export type ManagerEvent =
  | {
      readonly event: 'up';
      readonly region: string;
      readonly socket: string;
      readonly url: string | undefined;
      /** ADDRESS:PORT for hosts. */
      readonly hosts: string;
      readonly state: string;
      /** Of an etcd; undefined: the store is in `state`. */
      readonly store: string | undefined;
    }
  | { readonly event: 'trouble'; readonly what: string }
  | { readonly event: 'down' };

/** What hosts' clocks may differ by, of a lease's time; hosts keep as much off on their side. */
const marginPart = 0.1;

export class ManagerDaemon implements AsyncDisposable {
  readonly #options: ManagerDaemonOptions;
  #stores: Stores | undefined;
  #images: ImageLibrary | undefined;
  #uplink: UplinkServer | undefined;
  #manager: Manager | undefined;
  #api: ApiServer | undefined;
  #disks: DiskServer | undefined;
  #releasing: Promise<void> | undefined;

  private constructor(options: ManagerDaemonOptions) {
    this.#options = options;
  }

  /** Resolves when the API answers. Error with words for people: nothing is left running. */
  static async start(options: ManagerDaemonOptions): Promise<ManagerDaemon> {
    const daemon = new ManagerDaemon(options);
    try {
      await daemon.#start();
      return daemon;
    } catch (error) {
      await daemon.release();
      throw startRefusal(error, { ...options, stateDirectory: resolve(options.stateDirectory) });
    }
  }

  async #start(): Promise<void> {
    const { region: regionName, hosts, hostLeaseSeconds, tcp, socketGid, version, onEvent } = this.#options;
    const { stateDirectory, runDirectory } = prepareDirectories(this.#options);
    const socket = join(runDirectory, apiSocketName);
    await claimSocket(socket);
    const onTrouble = (what: string): void => onEvent({ event: 'trouble', what });
    this.#stores = await openDaemonStores(stateDirectory, this.#options);
    const { region, global } = this.#stores;
    const images = new ImageLibrary({
      ...placeOfImages(stateDirectory, this.#options.images),
      sandboxUid: sandboxUidOf(stateDirectory),
      recipes: this.#options.recipes,
    });
    this.#images = images;
    this.#uplink = await UplinkServer.open({
      region,
      regionName,
      images,
      address: hosts,
      checkSpec: specChecker(),
      hostLeaseSeconds,
      version,
      onTrouble,
    });
    const { hosts: fleet, enrolment } = this.#uplink;
    this.#disks = await this.#openDisks(onTrouble);
    this.#manager = await Manager.open({
      disks: this.#disks,
      region,
      global,
      regionName,
      host: fleet,
      connected: () => fleet.connected(),
      images,
      ownHost: false,
      fencingMarginMs: hostLeaseSeconds * 1000 * marginPart,
      enrolment,
      log: pino({ level: 'warn' }, { write: (line) => onTrouble(line.trim()) }),
      ...upkeepOf(this.#stores, stateDirectory, this.#options),
    });
    this.#api = await listen({
      manager: this.#manager,
      version,
      socketPath: socket,
      ...(socketGid !== undefined && { socketGroup: { gid: socketGid, role: 'operator' } }),
      tcp: tcp && toTcpOptions(tcp),
      site: tcp && siteOf(),
    });
    onEvent({
      event: 'up',
      region: regionName,
      socket,
      url: this.#api.url,
      hosts: addressText({ ...hosts, port: this.#uplink.port }),
      state: stateDirectory,
      store: this.#options.etcd?.url,
    });
  }

  async #openDisks(onTrouble: (what: string) => void): Promise<DiskServer | undefined> {
    const { disks } = this.#options;
    if (disks === undefined) return undefined;
    const directory = resolve(disks.directory);
    makeSearchable(directory);
    const launcher = await findLauncher();
    // None but root can give files away.
    const uid =
      process.getuid?.() === 0
        ? claimUids({ count: 1, first: undefined, stateDirectory: realpathSync(directory) }).first
        : undefined;
    return new DiskServer({ directory, address: disks.address, launcher, uid, onTrouble });
  }

  release(): Promise<void> {
    this.#releasing ??= this.#release();
    return this.#releasing;
  }

  /** In the order in which each uses the next. */
  async #release(): Promise<void> {
    await this.#api?.close();
    await this.#manager?.close();
    this.#disks?.[Symbol.dispose]();
    await this.#uplink?.close();
    await this.#images?.[Symbol.asyncDispose]();
    await this.#stores?.close();
    if (this.#api !== undefined) this.#options.onEvent({ event: 'down' });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }
}

/** The user that reads what strangers uploaded; undefined where this one can't become another. Error with words for people. */
const sandboxUidOf = (stateDirectory: string): number | undefined => {
  if (process.getuid?.() !== 0) return undefined;
  mustBeReachable(stateDirectory);
  return claimUids({ first: undefined, count: 1, stateDirectory: realpathSync(stateDirectory) }).first;
};
