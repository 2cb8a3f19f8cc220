/** `porthole host`: this machine runs VMs for a region, whose managers it connects to. */
import { existsSync, statfsSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { type Host, HostLease, type ImageSource } from '../host/index.ts';
import { bootClockMs, machineBootId } from '../qemu/index.ts';
import type { Resources } from '../records/index.ts';
import { type DirectoryLock, lockDirectory } from '../store/index.ts';
import { type Address, enrol, type HostFacts, type Identity, readIdentity, Uplink } from '../uplink/index.ts';
import {
  type HostIdentity,
  type Machine,
  type MachineFacts,
  type MachineOptions,
  prepareMachine,
} from './this-machine.ts';
import { prepareDirectories } from './up-start.ts';

export interface HostDaemonOptions extends Omit<MachineOptions, 'onTrouble'> {
  readonly managers: readonly Address[];
  readonly region: string;
  readonly name: string;
  /** Asked for when the host is not enrolled yet. */
  readonly joinKey: () => Promise<string>;
  /** What VMs may take of it. */
  readonly capacity: Resources;
  readonly onEvent: (event: HostEvent) => void;
  readonly signal: AbortSignal;
}

export type HostEvent =
  | { readonly event: 'enrolled'; readonly region: string; readonly host: string }
  | { readonly event: 'connected'; readonly manager: string }
  | { readonly event: 'cut off'; readonly why: string }
  | ({
      readonly event: 'up';
      readonly region: string;
      readonly host: string;
      readonly state: string;
      readonly vms: number;
    } & MachineFacts)
  | { readonly event: 'trouble'; readonly vm?: string; readonly what: string }
  | { readonly event: 'down' };

const mebibyte = 1024 * 1024;
/** vCPUs that are given out for each processor, unless said otherwise. */
const vcpusPerProcessor = 4;
/** What the machine itself needs. */
const ownMemoryMiB = 512;

/** What is given to VMs where nothing else is said. */
export const defaultCapacity = (stateDirectory: string): Resources => {
  const state = resolve(stateDirectory);
  const { blocks, bsize } = statfsSync(existsSync(state) ? state : '/');
  return {
    vcpus: availableParallelism() * vcpusPerProcessor,
    memoryMiB: Math.max(0, Math.floor(totalmem() / mebibyte) - ownMemoryMiB),
    diskBytes: blocks * bsize,
  };
};

export class HostDaemon implements AsyncDisposable {
  readonly #options: HostDaemonOptions;
  #lock: DirectoryLock | undefined;
  #uplink: Uplink | undefined;
  #host: Host | undefined;
  #isUp = false;
  readonly #ended = Promise.withResolvers<string>();
  #releasing: Promise<void> | undefined;

  private constructor(options: HostDaemonOptions) {
    this.#options = options;
  }

  /**
   * Resolves when its VMs are taken up: not before a manager was reached. Error with words for people, the signal's reason:
   * nothing is left running but VMs.
   */
  static async start(options: HostDaemonOptions): Promise<HostDaemon> {
    const daemon = new HostDaemon(options);
    try {
      await daemon.#start();
      return daemon;
    } catch (error) {
      await daemon.release();
      throw error;
    }
  }

  /** Why it can't go on, when that is so: it is to be started again. */
  get ended(): Promise<string> {
    return this.#ended.promise;
  }

  async #start(): Promise<void> {
    const { managers, capacity, version, onEvent, signal } = this.#options;
    const { stateDirectory, runDirectory } = prepareDirectories(this.#options);
    const directory = join(stateDirectory, 'uplink');
    this.#lock = lockDirectory(directory);
    const onTrouble = (vm: string | undefined, what: string): void =>
      onEvent({ event: 'trouble', ...(vm !== undefined && { vm }), what });
    const machine = await prepareMachine({ ...this.#options, stateDirectory, runDirectory, onTrouble });
    const uids = machine.claim();
    const facts: HostFacts = { version, capacity, ...(uids && { uids: { ...uids } }) };
    const identity = await this.#identity(directory, facts);
    const { host, region } = identity;
    const lease = new HostLease(join(runDirectory, 'lease'));
    this.#uplink = await Uplink.open(
      {
        lease: { machine: machineBootId(), nowMs: bootClockMs, onLease: (granted) => lease.granted(granted) },
        managers,
        identity,
        directory,
        facts,
        onConnection: (is) => {
          this.#host?.cutOff(this.#uplink?.store.lostAtMs);
          onEvent('manager' in is ? { event: 'connected', ...is } : { event: 'cut off', why: is.lost });
        },
        onEnd: (why) => this.#ended.resolve(why),
        onTrouble: (what) => onTrouble(undefined, what),
      },
      signal,
    );
    this.#host = await this.#opened(machine, this.#uplink, { name: host, lease });
    this.#host.cutOff(this.#uplink.store.lostAtMs);
    this.#uplink.serve(this.#host);
    const { vms } = await this.#host.status();
    this.#isUp = true;
    onEvent({ event: 'up', region, host, state: stateDirectory, ...machine.facts, vms: vms.length });
  }

  /** Waits for a manager as often as it has to. The signal's reason. */
  async #opened(machine: Machine, uplink: Uplink, as: HostIdentity): Promise<Host> {
    const { signal } = this.#options;
    const { store } = uplink;
    const close = (): void => void store.close();
    signal.addEventListener('abort', close, { once: true });
    try {
      signal.throwIfAborted();
      const blob: ImageSource['blob'] = ({ name }, digest, options) => uplink.imageBlob(name, digest, options);
      return await machine.open(store, { blob }, as);
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    } finally {
      signal.removeEventListener('abort', close);
    }
  }

  async #identity(directory: string, facts: HostFacts): Promise<Identity> {
    const { managers, region, name, joinKey, onEvent, signal } = this.#options;
    const known = readIdentity(directory);
    if (known !== undefined) {
      if (known.region === region && known.host === name) return known;
      throw new Error(
        `this machine is the host "${known.host}" of region "${known.region}" already; to enrol it as another, give another --state directory`,
      );
    }
    const identity = await enrol({ managers, region, host: name, joinKey: await joinKey(), facts, directory, signal });
    onEvent({ event: 'enrolled', region, host: name });
    return identity;
  }

  release(): Promise<void> {
    this.#releasing ??= this.#release();
    return this.#releasing;
  }

  /** In the order in which each uses the next. */
  async #release(): Promise<void> {
    await this.#host?.release();
    await this.#uplink?.close();
    this.#lock?.[Symbol.dispose]();
    if (this.#isUp) this.#options.onEvent({ event: 'down' });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }
}
