/**
 * The host: the VMs of one machine. It acts on `vm/` records as they stand, and on what managers ask of it (`HostPort`).
 * Device processes, watchers and QEMUs live on when it is released or dies, and the next one goes on with them.
 */
import { statfsSync } from 'node:fs';
import { availableParallelism, freemem, hostname, totalmem } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { HostNetwork } from '../network/index.ts';
import { buildOf } from '../parts/index.ts';
import { LogLimits } from '../qemu/index.ts';
import {
  type AttachedMachine,
  type Attachment,
  type Boot,
  type ChangeOptions,
  type ConsolePort,
  type DeviceVersion,
  decodeRecord,
  epochOf,
  type GuestInside,
  type HostPort,
  type HostStatus,
  isSameStay,
  type ShowOptions,
  type Statistics,
  type TreePort,
  VmRecord,
  type VmRef,
} from '../records/index.ts';
import { keyText, prefixRange, StoreError } from '../store/index.ts';
import { attachedMetadata, attachWords } from './attachment.ts';
import { AuditStore } from './audit-store.ts';
import { VmConsolePort } from './console-port.ts';
import { DomainWatch } from './domain-watch.ts';
import { forgetFirstTree, loadFirstTree } from './first-tree.ts';
import { insideOf } from './guest-inside.ts';
import { HostAudit } from './host-audit.ts';
import { HostRefusal } from './host-error.ts';
import type { HostOptions, HostParts } from './host-parts.ts';
import { HostedVm } from './hosted-vm.ts';
import { ImageCache } from './image-cache.ts';
import { KeeperUnit } from './keeper-unit.ts';
import { LeftVms } from './left-vms.ts';
import { MetadataCounts } from './metadata-totals.ts';
import { Renewals } from './renewals.ts';
import { SpecTexts } from './spec-texts.ts';
import { checkedSpec, specChecker, VmTreePort } from './tree-port.ts';
import { TreeStore } from './tree-store.ts';
import { VmTree } from './vm-tree.ts';
import { WriteRate } from './write-rate.ts';

const vmPrefix = 'vm/';
const beginAnewAfterMs = 500;
const openAnewAgainMs = 5_000;
const probeMs = 1_000;
/** A keeper of another version is replaced once every VM is served, if that comes about within minutes. */
const keeperLookMs = 1_000;
const keeperLooks = 300;
/** A device process that is being replaced is waited for when the daemon stops, or its guest would wait for the next one. */
const replacedWithinMs = 5_000;

export class Host implements HostPort, AsyncDisposable {
  readonly #options: HostOptions;
  readonly #parts: HostParts;
  readonly #audit: AuditStore;
  readonly audit: HostPort['audit'];
  readonly followAudit: HostPort['followAudit'];
  readonly checkAudit: HostPort['checkAudit'];
  readonly #images: ImageCache;
  readonly #domains: DomainWatch;
  readonly #keeper: KeeperUnit;
  readonly #network: HostNetwork;
  readonly #left: LeftVms | undefined;
  readonly #renewals: Renewals;
  readonly #vms = new Map<string, HostedVm>();
  readonly #texts = new SpecTexts();
  readonly #consoles = new Map<string, VmConsolePort>();
  readonly #stop = new AbortController();
  readonly #startedAtMs = Date.now();
  readonly #warnings = new Map<string, string>();
  readonly #probe: NodeJS.Timeout;
  readonly #logLimits: LogLimits;
  readonly #metadataCounts = new MetadataCounts();
  #cutOffSinceMs: number | undefined;
  #following: Promise<void> = Promise.resolve();
  #replacing: Promise<void> = Promise.resolve();
  /** Records are taken one after the other. */
  #taking: Promise<void> = Promise.resolve();
  /** VMs that could not be taken up. `again`: the store may let them be opened later. */
  readonly #untaken = new Map<string, { readonly reason: string; readonly again: boolean }>();
  #retrying = false;
  /** Every record has been looked at. */
  #isOpen = false;

  private constructor(options: HostOptions) {
    this.#options = options;
    const { stateDirectory, imageGid: gid, imageSource } = options;
    this.#images = new ImageCache({ directory: join(stateDirectory, 'images'), gid }, imageSource);
    this.#audit = new AuditStore({
      directory: join(stateDirectory, 'audit'),
      ...options.audit,
      wallMs: Date.now,
      onHealth: (writable, reason) => this.#auditHealth(writable, reason),
    });
    const asked = new HostAudit(this.#audit, { drain: () => this.#drainRings(), ended: this.#stop.signal });
    ({ audit: this.audit, followAudit: this.followAudit, checkAudit: this.checkAudit } = asked);
    this.#domains = new DomainWatch({
      uri: options.libvirtUri ?? 'qemu:///system',
      onTrouble: (what) => options.onTrouble(undefined, what),
    });
    this.#keeper = new KeeperUnit({
      launcher: options.launcher,
      adminPath: join(options.runDirectory, 'keeper.sock'),
      logFile: join(stateDirectory, 'keeper.log'),
      onTrouble: (what) => options.onTrouble(undefined, what),
    });
    const { runDirectory, launcher, bgp } = options;
    this.#network = new HostNetwork({
      runDirectory,
      launcher,
      bgp,
      onTrouble: (what) => options.onTrouble(undefined, what),
    });
    this.#left = options.name === undefined ? undefined : new LeftVms(options.region, options.name, options);
    this.#logLimits = new LogLimits({
      files: () => [join(stateDirectory, 'keeper.log'), ...[...this.#vms.values()].map((vm) => vm.devicePaths.log)],
      onTrouble: (what) => options.onTrouble(undefined, what),
    });
    this.#renewals = new Renewals({
      renew: async (name) => {
        await this.#alone(async () => {
          const served = this.#vms.get(name)?.served;
          if (served?.serving?.isOutdated === true) await served.replace();
        });
      },
      isServed: (name) => this.#vms.get(name)?.isServedOrDown ?? true,
      onTrouble: (vm, what) => options.onTrouble(vm, what),
    });
    this.#parts = {
      ...options,
      domains: this.#domains,
      keeper: this.#keeper,
      network: this.#network,
      deviceBuild: buildOf('device'),
      onOutdated: (vm) => {
        if (options.renews) this.#renewals.add(vm);
      },
      store: options.region,
      audit: this.#audit,
      images: this.#images,
      onTrouble: (vm, what) => options.onTrouble(vm, what),
    };
    this.#probe = setInterval(() => {
      if (!this.#audit.writable) this.#audit.probe();
      if (this.#untaken.size > 0 && !this.#retrying) void this.#retakeAll();
    }, probeMs).unref();
  }

  /** Resolves when every VM that there is has been taken up: device processes are connected as they come. StoreError. */
  static async open(options: HostOptions): Promise<Host> {
    const host = new Host(options);
    try {
      await host.#keeper.start();
      await host.#left?.removeAll();
      const from = await host.#takeAll();
      if (host.#untaken.size === 0) await host.#network.keepOnly(new Set([...host.#vms.values()].map(({ id }) => id)));
      host.#isOpen = true;
      host.#dropImages();
      host.#following = host.#follow(from);
      if (options.renews) void host.#renewKeeper();
      return host;
    } catch (error) {
      await host.release();
      throw error;
    }
  }

  /** Lets go of everything: what runs lives on. */
  async release(): Promise<void> {
    this.#stop.abort();
    clearInterval(this.#probe);
    this.#logLimits[Symbol.dispose]();
    const late = pause(replacedWithinMs, undefined, { ref: false });
    await Promise.all([this.#following, Promise.race([this.#renewals.close(), late])]);
    await this.#taking;
    for (const console of this.#consoles.values()) console.close();
    // What runs for a VM that was not taken up may have all it needs there.
    const isIdle = this.#isOpen && this.#untaken.size === 0 && this.#keeper.isIdle;
    await Promise.all([...this.#vms.values()].map((vm) => vm.release()));
    await Promise.all([this.#images.close(), this.#network.release()]);
    await this.#domains.close();
    await (isIdle ? this.#keeper.stop() : this.#keeper.release());
    this.#audit[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }

  /** Since when (`performance.now`) nothing of the cluster is heard here: what VMs read grows old. Undefined: it is heard. */
  cutOff(sinceMs: number | undefined): void {
    this.#cutOffSinceMs = sinceMs;
    for (const vm of this.#vms.values()) vm.cutOff(sinceMs);
  }

  // --- VMs ---

  /** Takes every record as it is now; returns the revision to watch from. */
  async #takeAll(): Promise<number> {
    const { region } = this.#options;
    const seen = new Set<string>();
    const range = prefixRange(vmPrefix);
    let revision: number | undefined;
    for (let start = range.start, more = true; more; ) {
      const page = await region.range({ ...range, start }, revision === undefined ? {} : { revision });
      ({ revision } = page);
      for (const { key, value } of page.entries) {
        const name = keyText(key).slice(vmPrefix.length);
        seen.add(name);
        await this.#take(name, value);
      }
      more = page.next !== undefined;
      if (page.next !== undefined) start = page.next;
    }
    for (const name of [...this.#vms.keys()]) if (!seen.has(name)) await this.#queue(() => this.#forget(name));
    return (revision ?? 0) + 1;
  }

  async #follow(first: number): Promise<void> {
    const { region, onTrouble } = this.#options;
    const { signal } = this.#stop;
    for (let from = first; !signal.aborted; ) {
      try {
        for await (const { events } of region.watch(prefixRange(vmPrefix), { from, signal }))
          for (const event of events) {
            const name = keyText(event.type === 'put' ? event.entry.key : event.key).slice(vmPrefix.length);
            if (event.type === 'put') await this.#take(name, event.entry.value);
            else await this.#queue(() => this.#forget(name));
          }
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof StoreError && error.code === 'STORE_COMPACTED'))
          onTrouble(undefined, `following the records of VMs failed, beginning anew: ${messageOf(error)}`);
      }
      try {
        await pause(beginAnewAfterMs, undefined, { signal });
        from = await this.#takeAll();
      } catch (error) {
        if (!signal.aborted) onTrouble(undefined, `reading the records of VMs failed: ${messageOf(error)}`);
      }
    }
  }

  #take(name: string, value: Uint8Array): Promise<void> {
    return this.#queue(() => this.#takeNow(name, value));
  }

  /** One VM is taken up or let go at a time. */
  #queue(work: () => Promise<void>): Promise<void> {
    const done = this.#taking.then(work);
    this.#taking = done.catch(() => {});
    return done;
  }

  async #takeNow(name: string, value: Uint8Array): Promise<void> {
    if (this.#stop.signal.aborted) return;
    try {
      const record = decodeRecord(VmRecord, vmPrefix + name, value);
      const known = this.#vms.get(name);
      if (known !== undefined && isSameStay(known.record, record)) return known.take(record);
      if (known !== undefined || epochOf(record) > 1) await this.#forget(name);
      const vm = await this.#open(record);
      this.#vms.set(name, vm);
      if (this.#cutOffSinceMs !== undefined) vm.cutOff(this.#cutOffSinceMs);
      this.#metadataCounts.add(vm);
      this.#warnings.delete(name);
      this.#untaken.delete(name);
    } catch (error) {
      const reason = messageOf(error);
      await this.#tellUntaken(name, value, reason);
      this.#warnings.set(name, `VM ${name} cannot be taken up: ${reason}`);
      if (this.#untaken.get(name)?.reason !== reason) this.#options.onTrouble(name, `it cannot be taken up: ${reason}`);
      this.#untaken.set(name, { reason, again: error instanceof StoreError });
    }
  }

  /** Who asked for it is told why nothing comes of it; a deletion goes on without the tree. */
  async #tellUntaken(name: string, value: Uint8Array, reason: string): Promise<void> {
    try {
      await HostedVm.tellFailed(this.#options.region, decodeRecord(VmRecord, vmPrefix + name, value), reason);
    } catch {
      // A store without room says so itself, and the warning stands.
    }
  }

  /** A store that has no room now may have some later: what runs is not left alone until then. */
  async #retakeAll(): Promise<void> {
    this.#retrying = true;
    try {
      for (const [name, { again }] of [...this.#untaken]) {
        if (!again) continue;
        const entry = await this.#options.region.get(vmPrefix + name);
        if (this.#stop.signal.aborted) return;
        if (entry === undefined) this.#untaken.delete(name);
        else await this.#take(name, entry.value);
      }
    } catch {
      // The store is asked again in a moment.
    } finally {
      this.#retrying = false;
    }
  }

  async #open(record: VmRecord): Promise<HostedVm> {
    try {
      return await HostedVm.open(this.#parts, record, await this.#openTree(record));
    } catch (error) {
      if (record.desired !== 'deleted') throw error;
      // What runs for it is ended and its name is given back, whatever keeps its tree from being read.
      const { epoch } = this.#options.region;
      const audit = (): boolean => false;
      const nothing = new VmTree({ vm: record.name, epoch, audit, kept: { persist: async () => {} } });
      await nothing.load(checkedSpec(await this.#texts.readSpec('porthole: 1')).spec);
      return HostedVm.open(this.#parts, record, nothing);
    }
  }

  async #openTree(record: VmRecord): Promise<VmTree> {
    const { region, guestWriteRate: bytesPerSecond } = this.#options;
    const kept = await TreeStore.open(region, record.id);
    const { restored } = kept;
    const rate = bytesPerSecond === undefined ? undefined : new WriteRate({ bytesPerSecond });
    const persist = rate?.paced(kept.persist, () => kept.writtenBytes) ?? kept.persist;
    const tree = new VmTree({
      vm: record.name,
      epoch: region.epoch,
      audit: (records) => {
        const { bootId } = this.#vms.get(record.name)?.status ?? {};
        return this.#audit.append(records, { bootId, account: record.account });
      },
      kept: {
        persist: async (commits) => {
          try {
            await persist(commits);
          } catch (error) {
            if (!(error instanceof StoreError)) this.#openAnew(record.name, error);
            throw error;
          }
        },
        ...(restored && { restored }),
        history: kept.history,
        keepHistory: (history) => kept.keepHistory(history),
      },
      rate,
    });
    if (restored === undefined) await loadFirstTree(region, tree, this.#texts);
    await forgetFirstTree(region, record.name).catch((error: unknown) => {
      this.#options.onTrouble(record.name, `the spec that it was created with stays in the store: ${messageOf(error)}`);
    });
    return tree;
  }

  /** Its tree can't be written any more by us: what the store has is taken up again. */
  #openAnew(name: string, why: unknown): void {
    this.#options.onTrouble(name, `its tree is opened anew: ${messageOf(why)}`);
    const vm = this.#vms.get(name);
    this.#queue(async () => {
      if (vm === undefined || this.#vms.get(name) !== vm || this.#stop.signal.aborted) return;
      const entry = await this.#options.region.get(vmPrefix + name);
      await this.#forget(name);
      if (entry !== undefined) await this.#takeNow(name, entry.value);
    }).catch((error: unknown) => {
      this.#options.onTrouble(name, `its tree could not be opened anew, trying again: ${messageOf(error)}`);
      setTimeout(() => this.#openAnew(name, why), openAnewAgainMs).unref();
    });
  }

  /** One after the other: a device process leaves all to the keeper when it is replaced, which must not be so meanwhile. */
  #alone<T>(replace: () => Promise<T>): Promise<T> {
    const replaced = this.#replacing.then(replace);
    this.#replacing = replaced.then(
      () => undefined,
      () => undefined,
    );
    return replaced;
  }

  /** Replaces a keeper of another version, after the device processes. */
  async #renewKeeper(): Promise<void> {
    for (let looks = 0; this.#keeper.isOutdated && looks < keeperLooks; looks++) {
      await pause(keeperLookMs, undefined, { signal: this.#stop.signal, ref: false }).catch(() => {});
      await this.#renewals.idle;
      await this.#alone(async () => {
        if (this.#stop.signal.aborted || this.#renewals.givenUp !== undefined) return;
        // What a device process that is ending has left must find its successor.
        if (![...this.#vms.values()].every((vm) => vm.isServedOrDown)) return;
        await this.#keeper.replace().catch((error: unknown) => {
          looks = keeperLooks;
          this.#options.onTrouble(undefined, `the keeper of another version stays: ${messageOf(error)}`);
        });
      });
    }
  }

  async #forget(name: string): Promise<void> {
    const isLeft = await this.#left?.has(name);
    const vm = this.#vms.get(name);
    this.#renewals.remove(name);
    for (const known of [this.#vms, this.#untaken, this.#warnings]) known.delete(name);
    this.#consoles.get(name)?.end(noVm(name));
    this.#consoles.delete(name);
    if (vm !== undefined) {
      vm.tree.history.end(noVm(name));
      await (isLeft ? vm.leave() : vm.release());
      this.#metadataCounts.retire(vm);
      this.#dropImages();
    }
    if (isLeft) await this.#left?.remove(name);
  }

  /** Those that no VM has any more. */
  #dropImages(): void {
    if (!this.#isOpen || this.#untaken.size > 0) return;
    const used = [...this.#vms.values()].flatMap(({ record }) => (record.image ? [record.image.digest] : []));
    this.#images.keepOnly(new Set(used));
  }

  #vm({ id, name }: VmRef): HostedVm {
    const vm = this.#vms.get(name);
    if (vm === undefined || vm.id !== id || vm.status.status === 'deleted') throw noVm(name);
    return vm;
  }

  // --- HostPort ---

  tree(ref: VmRef): TreePort {
    return new VmTreePort(() => this.#vm(ref).tree, this.#texts);
  }

  console(ref: VmRef): ConsolePort {
    const vm = this.#vm(ref);
    if (vm.record.kind === 'attached')
      throw new HostRefusal('HOST_UNSUPPORTED', `VM "${ref.name}" is started by others, who have its console`);
    let port = this.#consoles.get(ref.name);
    if (port === undefined) {
      const machine = () => this.#vms.get(ref.name)?.machine;
      const isRunning = (): boolean => machine()?.state.status === 'running';
      const hasWatcher = (): boolean => machine()?.hasWatcher === true;
      port = new VmConsolePort({ paths: vm.paths, isRunning, hasWatcher });
      this.#consoles.set(ref.name, port);
    }
    return port;
  }

  readonly checkSpec = specChecker(this.#texts);

  async attachment(ref: VmRef, machine: AttachedMachine): Promise<Attachment> {
    const vm = this.#vm(ref);
    if (vm.record.kind !== 'attached')
      throw new HostRefusal('HOST_WRONG_STATE', `VM "${ref.name}" is started by this host, with its device`);
    const { vhostUser, ninep, vsock, vsockFront, ninepOfOthers, metadata } = vm.devicePaths;
    const wish = {
      ...machine,
      domain: vm.record.libvirtDomain ?? vm.name,
      accelerator: this.#options.accelerator.accelerator,
    };
    const paths = {
      name: vm.name,
      vhostUser,
      ...(vm.record.ninep && { ninep }),
      ...(vm.record.vsock && { vsock: { front: vsockFront, host: vsock, ofOthers: ninepOfOthers } }),
      ...(vm.record.metadataServer && { metadata: attachedMetadata(metadata, vm.record.metadataServer.ways) }),
    };
    return attachWords(paths, wish);
  }

  async boot(ref: VmRef, { once }: ChangeOptions = {}): Promise<Boot> {
    const vm = this.#vm(ref);
    if (vm.record.kind !== 'attached')
      throw new HostRefusal('HOST_WRONG_STATE', `the boots of VM "${ref.name}" are this host's own`);
    return vm.boot(once);
  }

  async statistics(ref: VmRef): Promise<Statistics> {
    return this.#vm(ref).statistics();
  }

  async inside(ref: VmRef, { by }: ShowOptions): Promise<GuestInside> {
    const { tree } = this.#vm(ref);
    const inside = insideOf(tree.replica.snapshot, Date.now());
    if (by !== undefined) tree.recordShown(inside.nodes, 'read', by);
    return inside.read();
  }

  async renewDevice(ref: VmRef): Promise<DeviceVersion> {
    const { served } = this.#vm(ref);
    try {
      await this.#alone(() => served.replace());
    } catch (error) {
      if (error instanceof HostRefusal) throw error;
      const words = `renewing what serves VM "${ref.name}" failed: ${messageOf(error)}`;
      throw new HostRefusal('HOST_UNAVAILABLE', words, { cause: error });
    }
    return { version: served.serving?.build ?? this.#parts.deviceBuild, outdated: served.serving?.isOutdated ?? false };
  }

  async status(): Promise<HostStatus> {
    const { stateDirectory, accelerator, version, name = hostname() } = this.#options;
    const disk = statfsSync(stateDirectory);
    return {
      name,
      version,
      startedAtMs: this.#startedAtMs,
      accelerator: accelerator.accelerator,
      cpus: availableParallelism(),
      memoryBytes: totalmem(),
      freeMemoryBytes: freemem(),
      diskBytes: disk.blocks * disk.bsize,
      freeDiskBytes: disk.bavail * disk.bsize,
      warnings: [...this.#warnings.values(), this.#domains.trouble, this.#renewals.givenUp ?? ''].filter(Boolean),
      deviceVersion: this.#parts.deviceBuild,
      keeper: { version: this.#keeper.build, outdated: this.#keeper.isOutdated },
      metadataServers: this.#metadataCounts.totals(),
      vms: [...this.#vms.values()].map((vm) => ({
        name: vm.name,
        deviceVersion: vm.served.serving?.build,
        replicas: vm.tree.isServed ? 1 : 0,
        outdated: vm.served.serving?.isOutdated ?? false,
      })),
    };
  }

  /** Process ids, for tests and for people who look with `ps`. */
  processes(ref: VmRef): { readonly device: number | undefined; readonly qemu: number | undefined } {
    const vm = this.#vm(ref);
    return { device: vm.served.devicePid, qemu: vm.machine?.qemuPid };
  }

  #drainRings(): void {
    for (const vm of this.#vms.values()) vm.served.drain();
  }

  #auditHealth(writable: boolean, reason: string): void {
    const what = `the audit log cannot be written (${reason}): what must be recorded is refused until it can`;
    if (writable) this.#warnings.delete('audit log');
    else this.#warnings.set('audit log', what);
    this.#options.onTrouble(undefined, writable ? 'the audit log can be written again' : what);
    for (const vm of this.#vms.values()) vm.auditHealth(writable);
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const noVm = (name: string): HostRefusal => new HostRefusal('HOST_NO_VM', `this host has no VM "${name}"`);
