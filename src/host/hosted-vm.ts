/** One VM of this host: its tree, what serves it, and its machine; brings about what its record asks for. */
import { setTimeout as pause } from 'node:timers/promises';
import { isDown, killMachine, newVm, Vm, type VmPaths, type VmRuntime, type VmSaved, vmPaths } from '../qemu/index.ts';
import {
  type Boot,
  encodeRecord,
  graceSecondsOf,
  type MetadataServerRecord,
  type Once,
  type Statistics,
  type VmRecord,
  type VmStatusRecord,
} from '../records/index.ts';
import type { Store } from '../store/index.ts';
import { Boots, type NewBoot } from './boots.ts';
import { type DevicePaths, devicePaths } from './device-paths.ts';
import { domainRunKey, FollowedDomain } from './followed-domain.ts';
import type { HostParts } from './host-parts.ts';
import { removeFiles } from './left-vms.ts';
import { type MachineRecord, machineKey } from './machine-record.ts';
import { metadataHolders } from './metadata-way.ts';
import { networkDiskOf } from './network-disk.ts';
import { RecordWriter } from './record-writer.ts';
import { tokenKey } from './token-keeper.ts';
import { leaseOf, machineOf, makeDisk } from './vm-machine.ts';
import { tokenAudit, tokenIncident, tokenOf, VmMetadata } from './vm-metadata.ts';
import { VmNetwork } from './vm-network.ts';
import { type ServingFacts, VmServed } from './vm-served.ts';
import { statusEdits, valuesOf } from './vm-statistics.ts';
import { outcomeOf, readStatus, statusKey, statusOf } from './vm-status.ts';
import type { VmTree } from './vm-tree.ts';

const consoleLogBytes = 1024 * 1024;
const replayBytes = 64 * 1024;
const qemuLogBytes = 256 * 1024;
const startWithinMs = 120_000;
/** How often `/instance/status` is written. */
const statusEveryMs = 10_000;
/** A store that does not answer keeps nobody from stopping the daemon; what it was given is asked for again. */
const settleWithinMs = 5_000;
const deleteAgainFirstMs = 1_000;
const deleteAgainMostMs = 60_000;

export class HostedVm {
  readonly name: string;
  readonly id: string;
  readonly tree: VmTree;
  readonly paths: VmPaths;
  readonly devicePaths: DevicePaths;
  readonly #parts: HostParts;
  readonly #served: VmServed;
  readonly #statusWriter: RecordWriter<VmStatusRecord>;
  readonly #machineWriter: RecordWriter<MachineRecord>;
  readonly #boots: Boots;
  readonly #network: VmNetwork;
  /** Of a VM that wants one, unless it could not be made; then a boot tries again. */
  #metadata: VmMetadata | undefined;
  #opening: Promise<void> | undefined;
  #record: VmRecord;
  #machine: Vm | undefined;
  #runtime: VmRuntime | undefined;
  #status: VmStatusRecord;
  /** The last generation of the record that the machine was told of; kept with its state, so that none is lost between. */
  #taken = 0;
  #domain: FollowedDomain | undefined;
  #deleting: Promise<void> | undefined;
  #over = false;
  readonly #released = new AbortController();
  /** Of an attached VM: its device can be connected to. */
  #isServed = false;
  readonly #statusTimer: NodeJS.Timeout;
  #showing = false;

  private constructor(parts: HostParts, record: VmRecord, tree: VmTree, status: VmStatusRecord | undefined) {
    this.#parts = parts;
    this.#record = record;
    this.name = record.name;
    this.id = record.id;
    this.tree = tree;
    this.paths = vmPaths(parts.stateDirectory, parts.runDirectory, record.name);
    this.devicePaths = devicePaths(parts.stateDirectory, parts.runDirectory, record.name);
    const onTrouble = (what: string): void => parts.onTrouble(record.name, what);
    this.#statusWriter = new RecordWriter(parts.store, statusKey(record.name), onTrouble);
    this.#machineWriter = new RecordWriter(parts.store, machineKey(record.name), onTrouble);
    this.#status = status ?? statusOf(record, 'creating');
    this.#boots = new Boots(parts.store, record.name, this.#status.bootNumber);
    this.#network = new VmNetwork({ network: parts.network, record, tree, onTrouble });
    const isAttached = record.kind === 'attached';
    this.#served = new VmServed({
      vm: record.name,
      tree,
      paths: this.devicePaths,
      owner: { uid: record.uid, gid: isAttached ? parts.attachGid : undefined },
      launcher: parts.launcher,
      audit: parts.audit,
      recordsOf: () => ({ bootId: this.#status.bootId, account: record.account }),
      otherHolders: () => (record.metadataServer === undefined ? [] : metadataHolders(this.#status.bootId)),
      keeper: parts.keeper,
      isAttached,
      ninep: record.ninep ?? false,
      vsock: record.vsock ?? false,
      build: parts.deviceBuild,
      root: parts.deviceRoot,
      onServing: (facts) => this.#servedBy(facts),
      onEvent: (event) => {
        if (event.event === 'trouble') onTrouble(event.what);
        if (event.event === 'failed') onTrouble(`its device cannot be served: ${event.reason}`);
        if (event.event === 'target' && event.what === 'broken') onTrouble(`its device: ${event.detail}`);
      },
      onTokenUsed: (hash) => this.#metadata?.tokenUsed(hash),
    });
    this.#statusTimer = setInterval(() => void this.#showStatus(), statusEveryMs).unref();
  }

  /** Goes on with what an earlier daemon left, or begins. The caller gives it the record again whenever that changes. */
  static async open(parts: HostParts, record: VmRecord, tree: VmTree): Promise<HostedVm> {
    const { store } = parts;
    const status = await readStatus(store, record);
    const vm = new HostedVm(parts, record, tree, status);
    const lastBoot = await vm.#boots.last();
    if (lastBoot !== undefined && lastBoot.number > vm.#status.bootNumber)
      vm.#tell({ bootId: lastBoot.bootId, bootNumber: lastBoot.number });
    await vm.#openMetadata().catch((error: unknown) => vm.#tellMetadata(error));
    const entry = await store.get(machineKey(record.name));
    const machine = entry && (JSON.parse(new TextDecoder().decode(entry.value)) as MachineRecord);
    await vm.#begin(machine?.id === record.id ? machine : undefined);
    return vm;
  }

  /** Tells of a VM that can't be taken up; what was known of it stays. */
  static async tellFailed(store: Store, record: VmRecord, reason: string): Promise<void> {
    const key = statusKey(record.name);
    const known = await readStatus(store, record);
    const { generation } = record;
    const status = { ...(known ?? statusOf(record, 'failed')), reason, generation, outcome: 'failed' } as const;
    if (known?.reason === reason && known.generation === generation && known.outcome === 'failed') return;
    await store.commit({ operations: [{ type: 'put', key, value: encodeRecord(status) }] });
  }

  get record(): VmRecord {
    return this.#record;
  }

  get status(): VmStatusRecord {
    return this.#status;
  }

  get machine(): Vm | undefined {
    return this.#machine;
  }

  get served(): VmServed {
    return this.#served;
  }

  /** Of its metadata server, while it has one. */
  get metadataCounters(): Readonly<Record<string, number>> {
    return this.#metadata?.counters() ?? {};
  }

  /** The audit log can, or cannot, be written. */
  auditHealth(writable: boolean): void {
    this.#served.auditHealth(writable);
    if (writable) this.#metadata?.auditAgain();
  }

  /** Nobody waits for a device process. */
  get isServedOrDown(): boolean {
    return !this.#served.isWanted || this.#served.serving !== undefined;
  }

  async #begin(saved: MachineRecord | undefined): Promise<void> {
    if (this.#record.kind === 'attached') {
      void this.#serve();
      const { libvirtDomain: domain } = this.#record;
      if (domain !== undefined) {
        const { domains: watch, store, onTrouble } = this.#parts;
        this.#domain = await FollowedDomain.open({
          vm: this,
          domain,
          watch,
          store,
          boot: async (reason, operations) => {
            await this.#boot({ bootId: crypto.randomUUID(), reason, operations });
          },
          onTrouble: (what) => onTrouble(this.name, what),
        });
      }
    } else {
      const options = this.#machineOptions();
      if (saved === undefined) {
        // It came from another host, where it had stopped by itself.
        if (this.#status.status === 'stopped' && this.#status.generation === this.#record.generation)
          this.#taken = this.#record.generation;
        this.#machine = new Vm(options, newVm(Date.now()));
        this.#machine.create();
      } else {
        this.#runtime = saved.runtime;
        this.#taken = saved.generation ?? this.#status.generation;
        // Reads go on while we look for the machine.
        if (isDown(saved.state)) this.#tell({ deviceVersion: undefined, deviceOutdated: undefined });
        else {
          void this.#serve();
          this.#network.attachRunning();
          this.#metadata?.beReached().catch((error: unknown) => this.#tellMetadata(error));
        }
        this.#machine = Vm.adopt(options, { runtime: saved.runtime, state: saved.state } satisfies VmSaved);
      }
    }
    // An operator has started it anew, and its boot is not kept yet: what is known is of the boot before.
    const isStartedAnew = saved?.state.status === 'starting' && saved.runtime?.qemu === undefined;
    if (!isStartedAnew) this.#endCompromised();
    this.take(this.#record);
  }

  /** Since when (`performance.now`) nothing of the cluster is heard here; undefined: it is heard. */
  cutOff(sinceMs: number | undefined): void {
    this.tree.replica.cutOffSinceMs = sinceMs;
    this.#served.cutOff(sinceMs);
  }

  /** Brings about what the record asks for, once for each generation. */
  take(record: VmRecord): void {
    if (this.#over) return;
    this.#record = record;
    if (record.desired === 'deleted') {
      this.#deleting ??= this.#delete();
      return;
    }
    if (record.generation !== this.#status.generation)
      this.#tell({ generation: record.generation, outcome: 'underway' });
    const machine = this.#machine;
    if (machine === undefined) {
      if (this.#isServed) this.#tell({ outcome: 'done' });
      return;
    }
    if (record.generation !== this.#taken) {
      this.#taken = record.generation;
      const graceMs = graceSecondsOf(record) * 1000;
      if (record.rebootGeneration === record.generation) machine.reboot(graceMs);
      else if (record.desired === 'running') machine.start();
      else machine.stop(graceMs);
      void this.#saveMachine();
    }
    this.#settle();
  }

  /** The machine lives on without us. What its guest has asked for until now is kept and answered first. */
  async release(): Promise<void> {
    this.#over = true;
    this.#released.abort();
    clearInterval(this.#statusTimer);
    await this.#domain?.close();
    await this.#machine?.release();
    this.#served.hush();
    await this.#metadata?.[Symbol.asyncDispose]();
    await this.#settled();
    await this.#served.release();
    await this.tree.leaveHistory().catch((error: unknown) => {
      this.#parts.onTrouble(this.name, `who follows its tree must read it anew: ${(error as Error).message}`);
    });
    this.#statusWriter.close();
    this.#machineWriter.close();
  }

  async #settled(): Promise<void> {
    const late = pause(settleWithinMs, undefined, { ref: false });
    await Promise.race([this.tree.authority.settled(), late]);
  }

  /** Tells of a boot of a machine that others started. */
  boot(once: Once | undefined): Promise<Boot> {
    return this.#boot({ bootId: crypto.randomUUID(), reason: 'told of by the API', once });
  }

  async #boot(boot: NewBoot): Promise<Boot> {
    await this.#openMetadata().catch((error: unknown) => this.#tellMetadata(error));
    const metadata = this.#metadata;
    const operations = [...(boot.operations ?? []), ...(metadata === undefined ? [] : [metadata.ofBoot(boot.bootId)])];
    const { bootId, number } = await this.#boots.commit({ ...boot, operations });
    // A boot that was told of before may not be the last one.
    if (number > this.#status.bootNumber) {
      this.#tell({ bootId, bootNumber: number });
      const begun = metadata?.boot(bootId);
      // The token of before is worth nothing any more, and what was known of it says nothing of this boot.
      if (this.#record.kind === 'attached' && this.#isServed) this.#beServed();
      await begun;
    }
    return { bootId, number };
  }

  // --- its metadata server ---

  #openMetadata(): Promise<void> {
    const { metadataServer: wish } = this.#record;
    if (wish === undefined || this.#metadata !== undefined) return Promise.resolve();
    this.#opening ??= this.#newMetadata(wish).finally(() => (this.#opening = undefined));
    return this.#opening;
  }

  async #newMetadata(wish: MetadataServerRecord): Promise<void> {
    const { kind, uid, account } = this.#record;
    const { store, audit, attachGid, onTrouble } = this.#parts;
    const { name, id, tree } = this;
    const bootOf = (): string | undefined => this.#status.bootId;
    this.#metadata = await VmMetadata.open({
      vm: { name, id },
      tree,
      store,
      wish,
      tap: this.#network.tap,
      tls: this.#parts.metadataTls,
      paths: this.devicePaths,
      owner: { uid, gid: kind === 'attached' ? attachGid : undefined },
      audit: (record) => audit.append([record], { bootId: bootOf(), account }),
      boot: bootOf(),
      onToken: (event) => audit.append([tokenAudit(name, event)], { bootId: event.boot, account }),
      onTokenState: (state) => {
        this.#tell({ token: tokenOf(state) });
        if (state.compromised === true) this.#endCompromised();
      },
      onVerifier: (hash) => this.#served.bootToken(hash),
      onTrouble: (what) => onTrouble(name, what),
    });
    tree.metadataServedBy((revision, withinMs) => this.#metadata!.applied(revision, withinMs));
  }

  #tellMetadata(error: unknown): void {
    this.#parts.onTrouble(this.name, `its metadata server cannot be reached, until its next boot: ${messageOf(error)}`);
  }

  /** Also where a daemon was killed between keeping that and ending the machine. */
  #endCompromised(): void {
    if (this.#over || this.#metadata?.tokenState?.compromised !== true) return;
    if (this.#record.kind === 'managed') this.#machine?.compromise(tokenIncident);
    else {
      this.#tell({ status: 'compromised', reason: tokenIncident, sinceMs: Date.now() });
      this.#domain?.destroy();
    }
  }

  async statistics(): Promise<Statistics> {
    const machine = this.#machine;
    const pid = machine?.qemuPid;
    const values = await valuesOf({
      qemu: pid === undefined ? undefined : { pid, qmp: machine?.qmp, tap: this.#network.tap },
      counters: await this.#served.counters(),
      metadata: this.metadataCounters,
      denialsTotal: this.#served.denialsTotal,
      bootNumber: this.#status.bootNumber,
    });
    return { atMs: Date.now(), values };
  }

  /** Shows the guest how it is doing. */
  async #showStatus(): Promise<void> {
    if (this.#over || this.#showing || !this.tree.isServed) return;
    this.#showing = true;
    try {
      const { values } = await this.statistics();
      const { snapshot } = this.tree.replica;
      const edits = [...statusEdits(values, snapshot), ...this.#network.edits(snapshot)];
      if (edits.length > 0 && !this.#over) await this.tree.edit(edits, []);
    } catch (error) {
      this.#parts.onTrouble(this.name, `/instance/status could not be written: ${(error as Error).message}`);
    } finally {
      this.#showing = false;
    }
  }

  #servedBy(facts: ServingFacts | undefined): void {
    if (this.#over) return;
    // Another takes its place soon, most often.
    if (facts === undefined) return;
    this.#tell({ deviceVersion: facts.build, deviceOutdated: facts.isOutdated });
    if (this.#record.kind === 'attached') this.#beServed();
    if (facts.isOutdated && facts.isAdopted && facts.isSucceeded) this.#parts.onOutdated(this.name);
  }

  // --- an attached VM ---

  async #serve(): Promise<void> {
    try {
      await this.#served.start();
      if (this.#record.kind === 'attached') this.#beServed();
    } catch (error) {
      if (this.#over || this.#deleting !== undefined) return;
      const reason = error instanceof Error ? error.message : String(error);
      if (this.#record.kind === 'attached') this.#tell({ status: 'failed', reason, outcome: 'failed' });
      else this.#parts.onTrouble(this.name, reason);
    }
  }

  /** Also one that was not served in time, and told as failed. */
  #beServed(): void {
    this.#isServed = true;
    this.#tell({ outcome: 'done' });
    // Others run it: it stays so until they start it anew.
    if (this.#metadata?.tokenState?.compromised === true) this.#endCompromised();
    else this.#tell({ status: 'running', reason: '' });
  }

  // --- a machine of ours ---

  #machineOptions(): ConstructorParameters<typeof Vm>[0] {
    const { launcher, images, accelerator, imageGid } = this.#parts;
    const { uid } = this.#record;
    const groups = uid === undefined || imageGid === undefined ? undefined : [imageGid, ...accelerator.groups];
    return {
      name: this.name,
      paths: this.paths,
      launcher,
      uid,
      gid: uid,
      groups,
      consoleLogBytes,
      replayBytes,
      logBytes: qemuLogBytes,
      startWithinMs,
      onTrouble: (what) => this.#parts.onTrouble(this.name, what),
      policy: { restart: restartOf[this.#record.restart], guestReboot: 'boot' },
      create: (signal) =>
        makeDisk({ record: this.#record, paths: this.paths, images }, { uid, gid: uid, groups }, signal),
      machine: async (signal) => {
        await this.#served.start(signal);
        // No guest is connected between two boots.
        await this.#served.refresh();
        await this.#network.attach();
        await this.#openMetadata();
        signal.throwIfAborted();
        await this.#metadata?.beReached();
        const image = await images.of(this.#record, signal);
        const lease = await leaseOf(this.#record, this.#parts.lease, signal);
        const place = { store: this.#parts.store, paths: this.paths };
        return machineOf({
          lease,
          networkDisk: await networkDiskOf(this.#record, place, signal),
          record: this.#record,
          image,
          paths: this.paths,
          accelerator: accelerator.accelerator,
          vhostUserSocket: this.devicePaths.vhostUser,
          ninepSocket: this.devicePaths.ninep,
          vsockSocket: this.devicePaths.vsockFront,
          tap: this.#network.tap,
          metadataSockets: this.devicePaths.metadata,
        });
      },
      commitBoot: async (bootId) => {
        await this.#boot({ bootId, reason: this.#machine?.state.reason || 'started' });
      },
      saveRuntime: async (runtime) => {
        this.#runtime = runtime;
        await this.#saveMachine();
      },
      onState: () => {
        void this.#saveMachine();
        this.#settle();
      },
    };
  }

  #saveMachine(): Promise<void> {
    const machine = this.#machine;
    if (machine === undefined) return Promise.resolve();
    return this.#machineWriter.write({
      id: this.id,
      runtime: this.#runtime,
      state: machine.state,
      generation: this.#taken,
    });
  }

  /** Tells how the machine is, and whether that is what was asked for. */
  #settle(): void {
    const machine = this.#machine;
    if (machine === undefined || this.#over) return;
    const { status, reason, sinceMs, wakeAtMs } = machine.state;
    this.#tell({ status, reason, sinceMs, outcome: outcomeOf(machine.state, this.#record, this.#status) });
    // One that is about to be started again keeps its device process.
    if (!isDown(machine.state) || wakeAtMs !== undefined) return;
    this.#tell({ deviceVersion: undefined, deviceOutdated: undefined });
    this.#network.detachDown();
    this.#served.stop().catch((error: unknown) => {
      this.#parts.onTrouble(this.name, `its device process could not be ended: ${(error as Error).message}`);
    });
  }

  /** Until it is done: what runs must not be left, nor the name taken for ever. */
  async #delete(): Promise<void> {
    const { signal } = this.#released;
    for (let waitMs = deleteAgainFirstMs; ; waitMs = Math.min(deleteAgainMostMs, waitMs * 2)) {
      try {
        return await this.#deleteNow();
      } catch (error) {
        const reason = `deleting it failed, trying again: ${error instanceof Error ? error.message : String(error)}`;
        if (this.#status.reason !== reason) this.#parts.onTrouble(this.name, reason);
        this.#tell({ status: 'stopping', reason, sinceMs: Date.now() });
      }
      try {
        await pause(waitMs, undefined, { signal, ref: false });
      } catch {
        return;
      }
    }
  }

  /** It is another host's: all that is here of it ends and goes, and nothing more is told of it. */
  async leave(): Promise<void> {
    this.#released.abort();
    this.#statusWriter.close();
    this.#machineWriter.close();
    killMachine(this.paths);
    await this.#removeAll();
  }

  async #removeAll(): Promise<void> {
    await this.#domain?.close();
    const machine = this.#machine;
    if (machine !== undefined) {
      machine.stop(0);
      machine.cancelCreate();
      await machine.until(isDown);
    }
    this.#over = true;
    clearInterval(this.#statusTimer);
    await machine?.release();
    await this.#metadata?.[Symbol.asyncDispose]();
    await this.#served.stop();
    await this.#served.release();
    await this.#network.detach();
    this.#machineWriter.close();
    removeFiles(this.#parts, this.name, this.#record.uid);
  }

  async #deleteNow(): Promise<void> {
    await this.#removeAll();
    const { store } = this.#parts;
    await store.commit({
      operations: [machineKey, domainRunKey, tokenKey].map((key) => ({ type: 'delete', key: key(this.name) })),
    });
    const { generation } = this.#record;
    this.#status = { ...this.#status, status: 'deleted', reason: '', sinceMs: Date.now(), generation, outcome: 'done' };
    await this.#statusWriter.write(this.#status);
    this.#statusWriter.close();
  }

  #tell(change: Partial<VmStatusRecord>): void {
    const before = this.#status;
    const after = { ...before, ...change };
    if (JSON.stringify(after) === JSON.stringify(before)) return;
    this.#status = after;
    void this.#statusWriter.write(after);
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const restartOf = { always: 'always', 'on-failure': 'on-failure', never: 'no' } as const;
