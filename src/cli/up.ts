/** `porthole up`: the host daemon. Manager and host in one process, kept apart as they are in a cluster. */
import { join, resolve } from 'node:path';
import { pino } from 'pino';
import { type ApiServer, claimSocket, listen, Manager } from '../cluster/index.ts';
import type { Host } from '../host/index.ts';
import { ImageLibrary, type Recipes } from '../images/index.ts';
import type { Stores } from '../store/index.ts';
import {
  type ApiAddress,
  openDaemonStores,
  placeOfImages,
  type StoresLocation,
  siteOf,
  toTcpOptions,
  upkeepOf,
} from './manager-parts.ts';
import { StoreClaim } from './store-claim.ts';
import { type MachineFacts, type MachineOptions, prepareMachine } from './this-machine.ts';
import { prepareDirectories, startRefusal } from './up-start.ts';

export interface UpOptions extends Omit<MachineOptions, 'onTrouble'>, StoresLocation {
  readonly tcp?: ApiAddress | undefined;
  /** Members may use the API's socket, as operators. */
  readonly socketGid?: number | undefined;
  readonly recipes: Recipes;
  /** Where the region's images are, in place of the state directory. */
  readonly images?: string | undefined;
  readonly onEvent: (event: UpEvent) => void;
}

/** What people or programs are told while it runs. `--json` prints one a line. */
export type UpEvent =
  | ({
      readonly event: 'up';
      readonly socket: string;
      readonly url: string | undefined;
      readonly state: string;
      /** Of an etcd; undefined: the store is in `state`. */
      readonly store: string | undefined;
      readonly vms: number;
    } & MachineFacts)
  | { readonly event: 'trouble'; readonly vm?: string; readonly what: string }
  | { readonly event: 'down' };

export const apiSocketName = 'api.sock';

/** What `up` started. `release` leaves the VMs running. */
export class Up implements AsyncDisposable {
  readonly #options: UpOptions;
  #stores: Stores | undefined;
  #claim: StoreClaim | undefined;
  #images: ImageLibrary | undefined;
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
      throw startRefusal(error, { ...options, stateDirectory: resolve(options.stateDirectory) });
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
    const { version, onEvent, tcp, socketGid, etcd } = this.#options;
    const { stateDirectory, runDirectory } = prepareDirectories(this.#options);
    // Before VMs are touched: their sockets are in the run directory.
    await claimSocket(join(runDirectory, apiSocketName));
    const onTrouble = (vm: string | undefined, what: string): void =>
      onEvent({ event: 'trouble', ...(vm !== undefined && { vm }), what });
    const machine = await prepareMachine({ ...this.#options, stateDirectory, runDirectory, onTrouble });
    this.#stores = await openDaemonStores(stateDirectory, this.#options);
    const { region, global } = this.#stores;
    if (etcd !== undefined)
      this.#claim = await StoreClaim.take(region, {
        idFile: join(stateDirectory, 'daemon-id'),
        onLost: this.#lost.resolve,
      });
    const uids = machine.claim();
    const images = new ImageLibrary({
      ...placeOfImages(stateDirectory, this.#options.images),
      ...machine.imageUsers,
      recipes: this.#options.recipes,
      before: join(stateDirectory, 'images'),
    });
    this.#images = images;
    this.#host = await machine.open(region, {
      blob: ({ image }, digest, options) => images.blob(image!, digest, options),
      pathOf: (digest) => images.pathOf(digest),
    });
    const log = pino({ level: 'warn' }, { write: (line) => onTrouble(undefined, line.trim()) });
    this.#manager = await Manager.open({
      region,
      global,
      host: this.#host,
      images,
      log,
      ...upkeepOf(this.#stores, stateDirectory, this.#options),
      ...(uids && { uids }),
    });
    const socket = join(runDirectory, apiSocketName);
    this.#api = await listen({
      manager: this.#manager,
      version,
      socketPath: socket,
      ...(socketGid !== undefined && { socketGroup: { gid: socketGid, role: 'operator' } }),
      tcp: tcp && toTcpOptions(tcp),
      site: tcp && siteOf(),
    });
    const { vms } = await this.#host.status();
    this.#isUp = true;
    onEvent({
      event: 'up',
      socket,
      url: this.#api.url,
      state: stateDirectory,
      store: etcd?.url,
      ...machine.facts,
      vms: vms.length,
    });
  }

  /** In the order in which each uses the next. */
  async #release(): Promise<void> {
    await this.#api?.close();
    await this.#manager?.close();
    await this.#host?.release();
    await this.#images?.[Symbol.asyncDispose]();
    await this.#claim?.[Symbol.asyncDispose]();
    await this.#stores?.close();
    if (this.#isUp) this.#options.onEvent({ event: 'down' });
  }
}
