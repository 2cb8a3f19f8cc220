/** `porthole up`: the host daemon. Manager and host in one process, kept apart as they are in a cluster. */
import { existsSync, readFileSync, realpathSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { pino } from 'pino';
import { z } from 'zod';
import { type ApiServer, claimSocket, listen, Manager } from '../cluster/index.ts';
import { claimUids, Host, leftOvers, type UidRange } from '../host/index.ts';
import { copyPart, isReadableByAll } from '../parts/index.ts';
import { type AcceleratorFound, findAccelerator, findLauncher } from '../qemu/index.ts';
import {
  createKeyFile,
  type EtcdStoresOptions,
  mustBeWhole,
  openEtcdStores,
  openStores,
  type Stores,
} from '../store/index.ts';
import { StoreClaim } from './store-claim.ts';
import { prepareHostDirectory, startRefusal } from './up-start.ts';

export interface UpOptions {
  readonly stateDirectory: string;
  readonly runDirectory: string;
  /** Key-encryption key of the store; made where there is no store yet. Default: in the state directory. */
  readonly keyFile?: string | undefined;
  /** The stores are in an etcd, and `url` says where; else in the state directory. */
  readonly etcd?: { readonly url: string; readonly options: Omit<EtcdStoresOptions, 'keyFile'> } | undefined;
  readonly tcp?:
    | {
        readonly host: string;
        readonly port: number;
        readonly tls?: { readonly certFile: string; readonly keyFile: string } | undefined;
        readonly names: readonly string[];
      }
    | undefined;
  /** Members may use the API's socket, as operators. */
  readonly socketGid?: number | undefined;
  /** Members may connect to the devices of VMs that others start. */
  readonly attachGid?: number | undefined;
  /** Metadata servers of VMs on tap devices are reached by HTTPS too. */
  readonly metadataTls?: { readonly certFile: string; readonly keyFile: string } | undefined;
  /** Of the libvirt whose domains attached VMs may name; `qemu:///system` unless given. */
  readonly libvirtUri?: string | undefined;
  /** VMs run as users of their own, whose uids start here, or where this machine has room; undefined: all as this user. */
  readonly uidBase?: number | 'free' | undefined;
  readonly auditDays: number;
  readonly auditBytes: number;
  /** Bytes a second that what one VM's guest writes may come to in the store; undefined: as fast as it can. */
  readonly guestWriteRate?: number | undefined;
  /** Replaces device processes and a keeper of another version that it finds. Default: it does. */
  readonly renews?: boolean;
  readonly version: string;
  readonly recipes: Readonly<Record<string, readonly [string, ...string[]]>>;
  readonly onEvent: (event: UpEvent) => void;
}

/** What people or programs are told while it runs. `--json` prints one a line. */
export type UpEvent =
  | {
      readonly event: 'up';
      readonly socket: string;
      readonly url: string | undefined;
      readonly state: string;
      /** Of an etcd; undefined: the store is in `state`. */
      readonly store: string | undefined;
      readonly accelerator: string;
      /** Why it is not KVM. */
      readonly acceleratorReason: string;
      readonly units: 'systemd' | 'session';
      readonly ownUsers: boolean;
      readonly vms: number;
    }
  | { readonly event: 'trouble'; readonly vm?: string; readonly what: string }
  | { readonly event: 'down' };

/** uids of VMs that a host gives out at most. */
const uidCount = 50_000;
export const apiSocketName = 'api.sock';

/** What `up` started. `release` leaves the VMs running. */
export class Up implements AsyncDisposable {
  readonly #options: UpOptions;
  #stores: Stores | undefined;
  #claim: StoreClaim | undefined;
  #host: Host | undefined;
  #manager: Manager | undefined;
  #api: ApiServer | undefined;
  #isUp = false;
  readonly #lost = Promise.withResolvers<string>();
  #releasing: Promise<void> | undefined;

  private constructor(options: UpOptions) {
    this.#options = options;
  }

  /** Resolves when the API answers. StoreError, ListenError, Error with words for people: nothing is left running. */
  static async start(options: UpOptions): Promise<Up> {
    const up = new Up(options);
    try {
      await up.#start();
      return up;
    } catch (error) {
      await up.release();
      throw options.etcd !== undefined
        ? error
        : startRefusal(error, { stateDirectory: resolve(options.stateDirectory), keyFile: options.keyFile });
    }
  }

  get host(): Host {
    return this.#host!;
  }

  /** Resolves, with why, when another daemon may have the store: this one must be released. */
  get lost(): Promise<string> {
    return this.#lost.promise;
  }

  get stores(): Stores {
    return this.#stores!;
  }

  get url(): string | undefined {
    return this.#api?.url;
  }

  release(): Promise<void> {
    this.#releasing ??= this.#release();
    return this.#releasing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }

  async #start(): Promise<void> {
    const { uidBase, attachGid, metadataTls, version, onEvent, tcp, socketGid, recipes } = this.#options;
    const stateDirectory = resolve(this.#options.stateDirectory);
    const runDirectory = resolve(this.#options.runDirectory);
    prepareHostDirectory(stateDirectory, '--state');
    prepareHostDirectory(runDirectory, '--run');
    const ownUsers = uidBase !== undefined;
    if (ownUsers) for (const directory of [stateDirectory, runDirectory]) mustBeReachable(directory);
    // Before VMs are touched: their sockets are in the run directory.
    await claimSocket(join(runDirectory, apiSocketName));
    const [launcher, accelerator] = await Promise.all([findLauncher(), acceleratorOf(runDirectory, version)]);
    const onTrouble = (vm: string | undefined, what: string): void =>
      onEvent({ event: 'trouble', ...(vm !== undefined && { vm }), what });
    this.#stores = await this.#openStores(stateDirectory);
    for (const { vm, what } of await leftOvers(this.#stores.region, runDirectory)) onTrouble(vm, what);
    const uids = ownUsers ? this.#claimUids(uidBase === 'free' ? undefined : uidBase) : undefined;
    this.#host = await Host.open({
      region: this.#stores.region,
      stateDirectory,
      runDirectory,
      launcher,
      accelerator,
      imageGid: uids && uids.first + uids.count,
      sandboxUid: uids && uids.first + uids.count + 1,
      deviceRoot:
        ownUsers && !isReadableByAll('device') ? copyPart('device', join(stateDirectory, 'program')) : undefined,
      attachGid,
      metadataTls: metadataTls && readTls(metadataTls),
      libvirtUri: this.#options.libvirtUri,
      guestWriteRate: this.#options.guestWriteRate,
      version,
      renews: this.#options.renews ?? true,
      audit: { keepDays: this.#options.auditDays, mostBytes: this.#options.auditBytes },
      recipes,
      onTrouble,
    });
    const log = pino({ level: 'warn' }, { write: (line) => onTrouble(undefined, line.trim()) });
    this.#manager = await Manager.open({
      region: this.#stores.region,
      global: this.#stores.global,
      host: this.#host,
      log,
      ...(this.#options.etcd === undefined && {
        upkeep: { stores: this.#stores, outgoingFile: join(stateDirectory, 'store', 'outgoing.backup') },
      }),
      ...(uids && { uids }),
    });
    const socket = join(runDirectory, apiSocketName);
    this.#api = await listen({
      manager: this.#manager,
      version,
      socketPath: socket,
      ...(socketGid !== undefined && { socketGroup: { gid: socketGid, role: 'operator' } }),
      ...(tcp && {
        tcp: {
          host: tcp.host,
          port: tcp.port,
          names: tcp.names,
          ...(tcp.tls && { tls: readTls(tcp.tls) }),
        },
      }),
    });
    const { vms } = await this.#host.status();
    this.#isUp = true;
    onEvent({
      event: 'up',
      socket,
      url: this.#api.url,
      state: stateDirectory,
      store: this.#options.etcd?.url,
      accelerator: accelerator.accelerator,
      acceleratorReason: accelerator.reason,
      units: launcher.kind,
      ownUsers,
      vms: vms.length,
    });
  }

  /** For VMs; behind them are the group of images, and the user who converts them. */
  #claimUids(first: number | undefined): UidRange {
    const stateDirectory = realpathSync(this.#options.stateDirectory);
    const { first: from } = claimUids({ first, count: uidCount + 2, stateDirectory });
    return { first: from, count: uidCount };
  }

  async #openStores(stateDirectory: string): Promise<Stores> {
    const { etcd } = this.#options;
    if (etcd === undefined)
      return openStores({ directory: join(stateDirectory, 'store'), keyFile: this.#keyFile(stateDirectory) });
    this.#stores = await openEtcdStores({ ...etcd.options, keyFile: this.#keyPath(stateDirectory) });
    await mustBeWhole(this.#stores);
    this.#claim = await StoreClaim.take(this.#stores.region, {
      idFile: join(stateDirectory, 'daemon-id'),
      onLost: this.#lost.resolve,
    });
    return this.#stores;
  }

  #keyPath(stateDirectory: string): string {
    return resolve(this.#options.keyFile ?? join(stateDirectory, 'key'));
  }

  #keyFile(stateDirectory: string): string {
    const keyFile = this.#keyPath(stateDirectory);
    if (!existsSync(keyFile) && !existsSync(join(stateDirectory, 'store'))) createKeyFile(keyFile);
    return keyFile;
  }

  /** In the order in which each uses the next. */
  async #release(): Promise<void> {
    await this.#api?.close();
    await this.#manager?.close();
    await this.#host?.release();
    await this.#claim?.[Symbol.asyncDispose]();
    await this.#stores?.close();
    if (this.#isUp) this.#options.onEvent({ event: 'down' });
  }
}

const readTls = ({ certFile, keyFile }: { readonly certFile: string; readonly keyFile: string }) => ({
  cert: readFileSync(certFile, 'utf8'),
  key: readFileSync(keyFile, 'utf8'),
});

const acceleratorRecord = z.object({
  accelerator: z.enum(['kvm', 'tcg']),
  reason: z.string(),
  groups: z.array(z.int().nonnegative()),
  version: z.string(),
});

/**
 * Found out by booting a guest, which takes a second or more, and remembered until the machine starts anew (and the run
 * directory is empty): a daemon that is started again is waited for.
 */
const acceleratorOf = async (runDirectory: string, version: string): Promise<AcceleratorFound> => {
  const file = join(runDirectory, 'accelerator.json');
  if (existsSync(file)) {
    const known = acceleratorRecord.safeParse(JSON.parse(readFileSync(file, 'utf8')));
    if (known.success && known.data.version === version) return known.data;
  }
  const found = await findAccelerator();
  writeFileSync(file, JSON.stringify({ ...found, version }), { mode: 0o600 });
  return found;
};

/** VMs run as users of their own. */
const mustBeReachable = (directory: string): void => {
  for (let at = directory; at !== dirname(at); at = dirname(at)) {
    if ((statSync(at).mode & 0o001) !== 0) continue;
    throw new Error(
      `VMs run as users of their own, who cannot get to "${directory}": "${at}" may not be searched by all; give a directory elsewhere, or run: chmod o+x '${at}'`,
    );
  }
};
