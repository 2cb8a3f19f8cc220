/** `porthole serve`: one spec file, one tree, one device process, any number of ways in. */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import type { LinkConfig, LinkOptions, LinkTarget } from '../device/index.ts';
import { type FacadeName, type MetadataAddress, type TokenEvent, tokenStoreInMemory } from '../imds/index.ts';
import { Audit } from './audit.ts';
import { DeviceProcess } from './device-process.ts';
import { type Counters, type DeviceEvent, DeviceSession, targetsOf } from './device-session.ts';
import { KeeperProcess } from './keeper-process.ts';
import { METADATA_HOLDER, MetadataWay, parseAddress } from './metadata-way.ts';
import {
  cleanUp,
  groupId,
  prepareMount,
  prepareNinep,
  prepareSocket,
  prepareVsock,
  ServeError,
} from './serve-targets.ts';
import { ServedTree, type ServedTreeOptions } from './served-tree.ts';
import { loadSpecOrThrow } from './spec-file.ts';
import type { SpecError, SpecProblem } from './spec-problem.ts';
import { State } from './state.ts';

/** What to serve, and by which ways in. */
export interface ServeOptions {
  readonly file: string;
  /** Paths of sockets for vhost-user front ends. */
  readonly vhostUser: readonly string[];
  /** Paths of vsock devices for a VM; the front end's socket is beside each, `<path>.vhost-user`. */
  readonly vsock?: readonly string[];
  /** The guest's CID on these. Default 3. */
  readonly guestCid?: number;
  /** Group by name or number that may connect to the sockets. Default: only the owner may. */
  readonly socketGroup?: string;
  /** Where to listen for 9P clients: paths of sockets, `tcp:ADDRESS[:PORT]`, `vsock:PORT`. */
  readonly ninep?: readonly string[];
  /** Who may connect to 9P over TCP beside this machine: addresses and prefixes. */
  readonly ninepAllow?: readonly string[];
  /** Directories of this machine to mount on. */
  readonly mounts: readonly string[];
  /** Addresses of the metadata server. */
  readonly http?: HttpOptions | undefined;
  readonly stateDirectory?: string;
  /** File for the audit log, or '-'. */
  readonly audit?: string;
  readonly writeStdout: (text: string) => boolean;
  readonly onEvent: (event: ServeEvent) => void;
  readonly device?: Partial<LinkOptions>;
  /** Another device process than that of this checkout. */
  readonly deviceCommand?: readonly [string, ...string[]];
  /** False: a front end is lost with the device process. Default: a keeper is started for them. */
  readonly keeper?: boolean;
  /** How long a reload waits for the device process before it is told as not applied. Default 2,000. */
  readonly applyWithinMs?: number;
}

export interface HttpOptions {
  /** As `parseAddress` takes them. */
  readonly addresses: readonly string[];
  /** PEM files. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  readonly allowImdsV1?: boolean | undefined;
  /** Default: all. */
  readonly facades?: readonly FacadeName[] | undefined;
}

/** What people or programs are told while serving. `--json` prints one a line. */
export type ServeEvent =
  | {
      readonly event: 'loaded';
      readonly vm: string;
      readonly file: string;
      readonly revision: number;
      readonly nodes: number;
    }
  | { readonly event: 'warning'; readonly problem: SpecProblem }
  | DeviceEvent
  /** The metadata server can be asked there. */
  | { readonly event: 'http'; readonly address: string }
  | TokenEvent
  /** `applied`: whoever opens a file from now on sees it. False when the device process did not say so in time. */
  | { readonly event: 'reloaded'; readonly revision: number; readonly changes: number; readonly applied: boolean }
  | { readonly event: 'rejected'; readonly error: SpecError | Error }
  /** After `rejected`: the file says again what is served. */
  | { readonly event: 'mended'; readonly revision: number }
  | { readonly event: 'device-ended'; readonly reason: string; readonly restartInMs: number }
  | { readonly event: 'stopped' };

/** How long agents have to apply a reloaded tree before it is told that they have not. */
const APPLY_WITHIN_MS = 2_000;

/** Waits before a device process that ended is started again; the last one repeats. */
const restartsMs = { withKeeper: [0, 100, 500, 2_000, 10_000], without: [200, 1_000, 5_000, 30_000] } as const;
/** A device process that lived this long starts the waits anew. */
const healthyMs = { withKeeper: 1_000, without: 60_000 } as const;

/**
 * Starts serving; resolves when every target is ready. SpecError, StoreError, ServeError: nothing is left behind.
 * The caller stops it.
 */
export const serve = async (options: ServeOptions): Promise<Server> => {
  // Before anything is made on the disk.
  const loaded = loadSpecOrThrow(options.file);
  const gid = options.socketGroup === undefined ? undefined : groupId(options.socketGroup);
  const vhostUser = await Promise.all(options.vhostUser.map((path) => prepareSocket(path, gid)));
  const { vsock: vsockPaths = [], guestCid = 3, ninepAllow = [] } = options;
  const vsock = await Promise.all(vsockPaths.map((path) => prepareVsock(path, guestCid, gid)));
  const ninep = await Promise.all((options.ninep ?? []).map((where) => prepareNinep(where, gid, ninepAllow)));
  const mounts = options.mounts.map(prepareMount);
  const { addresses } = { addresses: [], ...options.http };
  const http = await Promise.all(addresses.map((address) => prepareAddress(parseAddress(address), gid)));
  const sockets = [...vhostUser, ...ninep, ...vsock, ...vsock.map(({ host }) => host)];
  const twice = [...sockets, ...mounts].map(({ path }) => path).find((path, i, all) => all.indexOf(path) !== i);
  if (twice !== undefined) throw new ServeError(`"${twice}" is given twice; give it once`);
  const vm = basename(options.file).replace(/\.ya?ml$/, '');
  const server = new Server(options, loaded, http, {
    type: 'config',
    vm,
    vhostUser,
    mounts,
    ...(ninep.length > 0 && { ninep }),
    ...(vsock.length > 0 && { vsock }),
    options: { spinMicros: 50, allowUnsealedMemory: false, ...options.device },
  });
  try {
    await server.start();
    return server;
  } catch (error) {
    await server.stop();
    throw error;
  }
};

/** What `serve` started. */
export class Server implements AsyncDisposable {
  readonly #options: ServeOptions;
  readonly #config: Omit<LinkConfig, 'auditRing'>;
  readonly #targets: readonly LinkTarget[];
  readonly #tree: ServedTree;
  readonly #audit: Audit;
  readonly #state: State | undefined;
  readonly #ended = Promise.withResolvers<void>();
  /** Whether the spec file was wrong when it was last read. */
  #rejected = false;
  readonly #http: readonly MetadataAddress[];
  #metadata: MetadataWay | undefined;
  #device: DeviceProcess | undefined;
  #keeper: KeeperProcess | undefined;
  readonly #session: DeviceSession;
  #restart: NodeJS.Timeout | undefined;
  #restarts = 0;
  #startedMs = 0;
  /** Targets that have not said ready or failed since the device process started, by path; and who waits for that. */
  readonly #awaited = new Map<string, PromiseWithResolvers<void>>();
  /** Paths of targets that a device process of ours has served. */
  readonly #made = new Set<string>();
  #hasWarnedOfOnce = false;
  #stopping: Promise<void> | undefined;
  #kills = new AbortController();

  constructor(
    options: ServeOptions,
    loaded: ServedTreeOptions['loaded'],
    http: readonly MetadataAddress[],
    config: LinkConfig,
  ) {
    this.#options = options;
    this.#http = http;
    this.#config = config;
    this.#targets = targetsOf(config);
    const onTrouble = (what: string): void => this.#emit({ event: 'trouble', what });
    this.#audit = new Audit({
      vm: config.vm,
      target: options.audit,
      writeStdout: options.writeStdout,
      onTrouble,
      onLie: (reason) => {
        if (this.#device === undefined)
          onTrouble(`the audit ring of a device process that ended has nonsense: ${reason}`);
        else this.#device.lied(`its audit ring: ${reason}`);
      },
    });
    try {
      const { stateDirectory } = options;
      this.#state = stateDirectory === undefined ? undefined : new State(stateDirectory);
      this.#audit.openRing(stateDirectory);
      this.#tree = new ServedTree({
        vm: config.vm,
        file: options.file,
        loaded,
        state: this.#state,
        audit: this.#audit.record,
        wallMs: Date.now,
      });
      this.#session = new DeviceSession({
        authority: this.#tree.authority,
        config: () => ({ ...config, auditRing: this.#audit.ringPath }),
        onEvent: (event) => this.#deviceTold(event),
        onAuditWaiting: () => this.#audit.doorbell(),
        onTokenUsed: (hash) => this.#metadata?.tokenUsed(hash),
        otherHolders: () => (this.#http.length > 0 ? [METADATA_HOLDER] : []),
        isSucceeded: () => this.#keeper !== undefined && this.#stopping === undefined,
      });
    } catch (error) {
      this.#state?.close();
      this.#audit[Symbol.dispose]();
      throw error;
    }
  }

  get tree(): ServedTree {
    return this.#tree;
  }

  /** Process id of the device process, while there is one. */
  get devicePid(): number | undefined {
    return this.#device?.pid;
  }

  /** Process id of the keeper. */
  get keeperPid(): number | undefined {
    return this.#keeper?.pid;
  }

  /** Has the device process leave everything to a successor: it is replaced under running VMs. */
  replaceDevice(): void {
    if (this.#keeper !== undefined) this.#device?.send({ type: 'handOver' });
  }

  /** Resolves when it has stopped. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /**
   * Resolves with true once the device process has applied the commit: whoever opens a file from then on sees it. With false
   * when it did not say so in time.
   */
  applied(revision: number, withinMs?: number): Promise<boolean> {
    return this.#session.applied(revision, withinMs);
  }

  /** Counters of the device process, summed over its ways in; undefined when there is none, or it does not answer in time. */
  statistics(withinMs?: number): Promise<Counters | undefined> {
    return this.#session.statistics(withinMs);
  }

  async start(): Promise<void> {
    const { snapshot } = this.#tree.authority;
    const { vm } = this.#config;
    this.#emit({ event: 'loaded', vm, file: this.#tree.file, revision: snapshot.revision, nodes: snapshot.nodes.size });
    for (const problem of this.#tree.warnings) this.#emit({ event: 'warning', problem });
    this.#warnOfOnce();
    this.#tree.watch({
      onReload: ({ revision, changes, changed, warnings }) => {
        for (const problem of warnings) this.#emit({ event: 'warning', problem });
        this.#warnOfOnce();
        if (changed) this.#tellReload(revision, changes);
        else if (this.#rejected) this.#emit({ event: 'mended', revision });
        this.#rejected = false;
      },
      onRejected: (error) => {
        this.#rejected = true;
        this.#emit({ event: 'rejected', error });
      },
    });
    for (const { path } of this.#targets) this.#awaited.set(path, Promise.withResolvers());
    const ready = [...this.#awaited.values()].map(({ promise }) => promise);
    const { vhostUser, vsock = [] } = this.#config;
    if (vhostUser.length + vsock.length > 0 && this.#options.keeper !== false)
      this.#keeper = await KeeperProcess.start({
        onEnd: () => this.#emit({ event: 'trouble', what: 'the keeper ended; it is started again' }),
      });
    await this.#startMetadata();
    if (this.#targets.length > 0) this.#startDevice();
    await Promise.all(ready);
  }

  async #startMetadata(): Promise<void> {
    if (this.#http.length === 0) return;
    const { tls, allowImdsV1, facades } = { ...this.#options.http };
    this.#metadata = await MetadataWay.start({
      vm: this.#config.vm,
      authority: this.#tree.authority,
      audit: this.#audit.record,
      // Nobody tells of boots: each start of this is one.
      store: tokenStoreInMemory(),
      boot: randomUUID(),
      tls: tls && { cert: readPem(tls.cert), key: readPem(tls.key) },
      allowImdsV1,
      facades,
      onToken: (event) => {
        this.#emit(event);
        return true;
      },
      onVerifier: (hash) => this.#session.bootToken(hash),
      onTrouble: (what) => this.#emit({ event: 'trouble', what }),
    });
    for (const address of this.#http) {
      const port = await this.#metadata.listen(address);
      const scheme = tls === undefined ? 'http' : 'https';
      const host =
        'host' in address && address.host.includes(':') ? `[${address.host}]` : 'host' in address && address.host;
      this.#emit({
        event: 'http',
        address: 'unix' in address ? `unix:${address.unix}` : `${scheme}://${host}:${port}`,
      });
    }
  }

  /** Which values were read is known in memory alone where there is no state directory. */
  #warnOfOnce(): void {
    if (this.#hasWarnedOfOnce || this.#state !== undefined || !this.#tree.authority.replica.policy.hasOnce) return;
    this.#hasWarnedOfOnce = true;
    const what = 'a rule says "once", and there is no --state: after a restart its values can be read once more';
    this.#emit({ event: 'trouble', what });
  }

  /** Ends the device process, which unmounts and removes its sockets, and closes everything. Any number of times. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  /** Opens the audit log by its name again, where it was moved away (SIGHUP). */
  reopenAudit(): void {
    if (this.#stopping === undefined) this.#audit.reopen();
  }

  /** A stop that is under way kills instead of waiting. */
  force(): void {
    this.#kills.abort();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(): Promise<void> {
    clearTimeout(this.#restart);
    await this.#metadata?.[Symbol.asyncDispose]();
    await this.#device?.stop(this.#kills.signal);
    await this.#keeper?.[Symbol.asyncDispose]();
    this.#session.close();
    cleanUp(this.#targets, this.#made);
    this.#tree[Symbol.dispose]();
    this.#state?.close();
    this.#audit[Symbol.dispose]();
    this.#emit({ event: 'stopped' });
    this.#ended.resolve();
  }

  #startDevice(): void {
    this.#startedMs = performance.now();
    const { deviceCommand } = this.#options;
    this.#restarts++;
    this.#audit.renew();
    this.#device = new DeviceProcess({
      ...(deviceCommand && { command: deviceCommand }),
      keeper: this.#keeper?.socket,
      onMessage: (message, send) => this.#session.take(message, send),
      onEnd: (reason) => this.#onDeviceEnd(reason),
    });
  }

  #deviceTold(event: DeviceEvent): void {
    if (event.event === 'ready') this.#made.add(event.target.path);
    const awaited = 'target' in event && event.event !== 'target' ? this.#awaited.get(event.target.path) : undefined;
    if (awaited === undefined) return this.#emit(event);
    this.#awaited.delete((event as { readonly target: LinkTarget }).target.path);
    if (event.event === 'failed')
      return awaited.reject(new ServeError(`serving on "${event.target.path}" failed: ${event.reason}`));
    this.#emit(event);
    awaited.resolve();
  }

  #tellReload(revision: number, changes: number): void {
    const { applyWithinMs } = this.#options;
    const metadata = this.#metadata?.server.applied(revision, applyWithinMs ?? APPLY_WITHIN_MS);
    const device = this.#targets.length > 0 ? this.#session.applied(revision, applyWithinMs) : undefined;
    void Promise.all([device, metadata])
      .then((all) => all.every((applied) => applied !== false))
      .then((applied) => this.#emit({ event: 'reloaded', revision, changes, applied }));
  }

  #onDeviceEnd(reason: string | undefined): void {
    this.#session.disconnect();
    this.#device = undefined;
    this.#audit.drain();
    if (this.#stopping !== undefined) return;
    const why = reason ?? 'it ended without being told to';
    if (this.#awaited.size > 0) {
      for (const awaited of this.#awaited.values())
        awaited.reject(new ServeError(`the device process could not start: ${why}`));
      this.#awaited.clear();
      if (this.#restarts === 1) return;
    }
    const how = this.#keeper === undefined ? 'without' : 'withKeeper';
    if (performance.now() - this.#startedMs > healthyMs[how]) this.#restarts = 1;
    const waits = restartsMs[how];
    const restartInMs = waits[Math.min(this.#restarts - 1, waits.length - 1)]!;
    this.#emit({ event: 'device-ended', reason: why, restartInMs });
    this.#restart = setTimeout(() => {
      // The sockets of front ends wait with the keeper for the next one.
      const ours =
        this.#keeper === undefined ? this.#targets : this.#targets.filter(({ kind }) => kind !== 'vhost-user');
      cleanUp(ours, this.#made);
      try {
        this.#startDevice();
      } catch (error) {
        this.#onDeviceEnd(`starting it failed: ${error instanceof Error ? error.message : String(error)}`);
      }
    }, restartInMs);
  }

  #emit(event: ServeEvent): void {
    this.#options.onEvent(event);
  }
}

const prepareAddress = async (address: MetadataAddress, gid: number | undefined): Promise<MetadataAddress> => {
  if (!('unix' in address)) return address;
  const { path, mode } = await prepareSocket(address.unix, gid);
  return { unix: path, mode, ...(gid !== undefined && { gid }), privileged: address.privileged === true };
};

const readPem = (file: string): string => {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new ServeError(`reading "${file}" for TLS failed: ${(error as Error).message}`);
  }
};
