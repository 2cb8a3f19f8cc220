/** The tree of one VM and whatever serves it: its device process while one is wanted, and its audit ring. */
import type { LinkConfig } from '../device/index.ts';
import { commandOf, partEnvironment } from '../parts/index.ts';
import { type Launcher, unlessAborted } from '../qemu/index.ts';
import { AuditRingReader } from './audit-ring-reader.ts';
import type { AuditStore, RecordsOf, RingLog } from './audit-store.ts';
import { type DeviceOwner, type DevicePaths, makeDeviceDirectories, ninepPort } from './device-paths.ts';
import { type Counters, type DeviceEvent, DeviceSession } from './device-session.ts';
import { HostRefusal } from './host-error.ts';
import type { KeeperUnit } from './keeper-unit.ts';
import { type DeviceFacts, VmDevice } from './vm-device.ts';
import type { VmTree } from './vm-tree.ts';

export interface VmServedOptions {
  readonly vm: string;
  readonly tree: VmTree;
  readonly paths: DevicePaths;
  readonly owner: DeviceOwner;
  readonly launcher: Launcher;
  readonly audit: AuditStore;
  /** Whose what it records is. */
  readonly recordsOf: () => RecordsOf;
  /** Who changes the tree besides its device process. */
  readonly otherHolders: () => readonly string[];
  /** Holds what outlives device processes. */
  readonly keeper: KeeperUnit;
  /** Whether its machine has a console that speaks 9P. */
  readonly ninep: boolean;
  /** And a vsock device. */
  readonly vsock: boolean;
  /** Others start its machine. */
  readonly isAttached: boolean;
  /** What device processes that we start run. */
  readonly build: string;
  /** Where they find it; undefined: here. */
  readonly root: URL | undefined;
  /** A device process serves, or (undefined) none does any more. */
  readonly onServing: (facts: ServingFacts | undefined) => void;
  readonly onEvent: (event: DeviceEvent) => void;
  /** A 9P client was let in by the token of this hash (`VmServed.bootToken`). */
  readonly onTokenUsed?: (hash: Uint8Array) => void;
}

/** The device process that serves a VM. */
export interface ServingFacts extends DeviceFacts {
  /** One that is started now runs another version. */
  readonly isOutdated: boolean;
}

/** The others are the VM's QEMU, and a relay for each connection to its metadata server: whatever the guest does, this one starts. */
const deviceLimits = { memoryBytes: 512 * 1024 * 1024, processes: 32, othersOfUid: 256, openFiles: 1024 } as const;
/** Each device is a host's with one guest: numbers need not differ. The first that a guest may have. */
const guestCid = 3;
/** How long a boot waits for its device. */
const servingWithinMs = 30_000;
/** How long a planned replacement may take. */
const replacedWithinMs = 30_000;

export class VmServed {
  readonly #options: VmServedOptions;
  readonly #session: DeviceSession;
  readonly #ring: AuditRingReader;
  #device: VmDevice | undefined;
  #changing: Promise<void> = Promise.resolve();
  #denials = 0;
  /** It is being let go of. */
  #isHushed = false;
  #isReleased = false;
  #isWanted = false;

  /** Throws where the ring can't be made. */
  constructor(options: VmServedOptions) {
    this.#options = options;
    const { vm, tree, paths, owner, audit, recordsOf, onEvent } = options;
    makeDeviceDirectories(paths, owner);
    const { uid } = owner;
    this.#ring = new AuditRingReader({
      path: paths.auditRing,
      vm,
      log: this.#counting(audit.ringLog(recordsOf)),
      ...(uid !== undefined && { owner: { uid, gid: uid } }),
      onLie: (reason) => this.#device?.lied(`its audit ring: ${reason}`),
      onTrouble: (what) => onEvent({ event: 'trouble', what }),
    });
    this.#ring.drain();
    this.#session = new DeviceSession({
      authority: tree.authority,
      config: () => this.#config(),
      onEvent,
      onAuditWaiting: () => this.#ring.doorbell(),
      onTokenUsed: (hash) => this.#options.onTokenUsed?.(hash),
      isSucceeded: () => this.#device !== undefined,
      otherHolders: options.otherHolders,
    });
  }

  get devicePid(): number | undefined {
    return this.#device?.pid;
  }

  /** As `DeviceSession.bootToken`. */
  bootToken(hash: Uint8Array | undefined): void {
    this.#session.bootToken(hash);
  }

  /** As `DeviceSession.cutOff`. */
  cutOff(sinceMs: number | undefined): void {
    this.#session.cutOff(sinceMs);
  }

  /** Has a device process, found or started. Resolves when it serves; rejects when it does not in time. */
  async start(signal?: AbortSignal): Promise<void> {
    this.#isWanted = true;
    await this.#changing;
    const { keeper, vm, paths, owner } = this.#options;
    await keeper.open(vm, paths.keeper, owner.uid);
    if (!this.#isWanted) {
      await keeper.close(vm);
      throw new Error('it was stopped before it served');
    }
    // Whoever comes after us has the ring and the device process by now, or soon.
    if (this.#isHushed) throw new Error('it was let go');
    this.#device ??= this.#startDevice();
    this.#options.tree.servedBy(this.#session);
    const late = AbortSignal.timeout(servingWithinMs);
    const over = signal === undefined ? late : AbortSignal.any([signal, late]);
    try {
      await unlessAborted(Promise.all([this.#device.serving, this.#device.ready]), over);
    } catch (error) {
      if (error !== late.reason) throw error;
      throw new Error(`its device process does not serve within ${servingWithinMs / 1000} s`, { cause: error });
    }
  }

  /** Ends the device process for good. */
  stop(): Promise<void> {
    this.#isWanted = false;
    this.#changing = this.#stop(this.#changing);
    return this.#changing;
  }

  async #stop(before: Promise<void>): Promise<void> {
    await before;
    const device = this.#device;
    if (device !== undefined) {
      this.#options.tree.servedBy(undefined);
      await device.stop();
      this.#device = undefined;
    }
    await this.#options.keeper.close(this.#options.vm);
    if (device === undefined) return;
    this.#ring.drain();
    this.#options.tree.authority.holdersAre(this.#options.otherHolders());
  }

  /** There is to be a device process. */
  get isWanted(): boolean {
    return this.#isWanted;
  }

  /** Of the device process that serves now. */
  get serving(): ServingFacts | undefined {
    const facts = this.#device?.facts;
    return facts && { ...facts, isOutdated: facts.build !== this.#options.build };
  }

  /**
   * Has another process take the place of the one that serves now, under a running guest. Resolves when it serves. Rejects
   * when it does not in time (and goes on starting one), and with HOST_WRONG_STATE, where it changed nothing.
   */
  async replace(): Promise<void> {
    const { vm } = this.#options;
    const device = this.#device;
    const facts = device?.facts;
    if (device === undefined || facts === undefined)
      throw new HostRefusal(
        'HOST_WRONG_STATE',
        `nothing serves the directory of VM "${vm}" now, so there is nothing to replace; what is started next is of this version`,
      );
    if (!facts.isSucceeded)
      throw new HostRefusal(
        'HOST_WRONG_STATE',
        `what serves VM "${vm}" (${facts.build}) cannot hand its guest over to this version; stop the VM and start it, which begins a new one`,
      );
    await this.#replace(device);
  }

  /** The same where no guest is connected, so that it does not matter what could be handed over. */
  async refresh(): Promise<void> {
    if (this.#device !== undefined && this.serving?.isOutdated === true) await this.#replace(this.#device);
  }

  async #replace(device: VmDevice): Promise<void> {
    const late = AbortSignal.timeout(replacedWithinMs);
    try {
      await device.replace(late);
    } catch (error) {
      if (!late.aborted) throw error;
      throw new Error(`another device process does not serve within ${replacedWithinMs / 1000} s`, { cause: error });
    }
  }

  counters(): Promise<Counters | undefined> {
    return this.#session.statistics();
  }

  /** The log can be written again or not. */
  auditHealth(writable: boolean): void {
    if (this.#isReleased) return;
    this.#ring.setUnwritable(!writable);
    if (writable) this.#ring.drain();
  }

  /** True when the log has every record that was made. */
  drain(): boolean {
    return this.#isReleased || this.#ring.drain();
  }

  /** What guests ask to have changed from now on is for the next daemon. */
  hush(): void {
    this.#isHushed = true;
    this.#device?.hush();
  }

  /** Lets go: the device process lives on. */
  async release(): Promise<void> {
    this.#isHushed = true;
    await this.#changing;
    if (this.#isReleased) return;
    this.#isReleased = true;
    await this.#device?.release();
    this.#session.close();
    this.#ring.drain();
    this.#ring[Symbol.dispose]();
  }

  /** Denials that were recorded since this daemon started. */
  get denialsTotal(): number {
    return this.#denials;
  }

  #counting(log: RingLog): RingLog {
    return {
      ...log,
      get writable() {
        return log.writable;
      },
      write: (lines) => {
        const written = log.write(lines);
        if (written === lines.length) this.#denials += denialsIn(lines);
        return written;
      },
    };
  }

  #config(): LinkConfig {
    const { vm, paths, owner, isAttached } = this.#options;
    const mode = owner.gid === undefined ? { mode: 0o600 } : { mode: 0o660, gid: owner.gid };
    return {
      type: 'config',
      vm,
      vhostUser: [{ path: paths.vhostUser, ...mode }],
      mounts: [],
      ninep: [
        ...(this.#options.ninep ? [{ path: paths.ninep, ...mode }] : []),
        ...(this.#options.vsock ? [{ path: `vsock:${ninepPort}`, vsockPort: ninepPort }] : []),
        ...(this.#options.vsock && isAttached ? [{ path: paths.ninepOfOthers, ...mode }] : []),
      ],
      vsock: this.#options.vsock
        ? [{ path: paths.vsockFront, ...mode, host: { path: paths.vsock, mode: 0o600 }, guestCid }]
        : [],
      // Cloud Hypervisor does not seal a guest's memory. Taken away, it ends the device process, which is this VM's own.
      options: { spinMicros: 50, allowUnsealedMemory: isAttached },
      auditRing: paths.auditRing,
    };
  }

  #startDevice(): VmDevice {
    const { vm, launcher, paths, owner, root, onEvent } = this.#options;
    const { uid, gid } = owner;
    const device = new VmDevice({
      vm,
      launcher,
      launch: {
        command: [...commandOf('device', root), '--link', paths.link, '--keeper', paths.keeper],
        environment: partEnvironment(root),
        limits: deviceLimits,
        logFile: paths.log,
        ...(uid !== undefined && { uid }),
        ...(gid !== undefined && { groups: [gid] }),
      },
      linkPath: paths.link,
      uid: uid ?? process.getuid!(),
      session: this.#session,
      prepare: () => this.#ring.renew(),
      onServing: () => this.#options.onServing(this.serving),
      onTrouble: (what) => onEvent({ event: 'trouble', what }),
    });
    device.start();
    return device;
  }
}

const denial = Buffer.from('"verdict":"denied"');

const denialsIn = (lines: Uint8Array): number => {
  const text = Buffer.from(lines.buffer, lines.byteOffset, lines.length);
  let count = 0;
  for (let at = text.indexOf(denial); at >= 0; at = text.indexOf(denial, at + denial.length)) count++;
  return count;
};
