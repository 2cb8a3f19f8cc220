/**
 * A host without QEMU: the protocol of `porthole host`, with a certificate over a real connection, its VMs' trees kept as the
 * real one keeps them, and machines that are but written down.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { AuditStore } from '../../src/host/audit-store.ts';
import { loadFirstTree } from '../../src/host/first-tree.ts';
import { HostAudit } from '../../src/host/host-audit.ts';
import { HostRefusal } from '../../src/host/host-error.ts';
import { SpecTexts } from '../../src/host/spec-texts.ts';
import { checkedSpec, VmTreePort } from '../../src/host/tree-port.ts';
import { removeTree, TreeStore } from '../../src/host/tree-store.ts';
import { VmTree } from '../../src/host/vm-tree.ts';
import {
  decodeRecord,
  encodeRecord,
  type HostPort,
  type HostStatus,
  type Resources,
  type TreePort,
  VmRecord,
  type VmRef,
  VmStatusRecord,
} from '../../src/records/index.ts';
import { keyText, prefixRange, type Store, StoreError } from '../../src/store/index.ts';
import { type Address, type Identity, Uplink } from '../../src/uplink/index.ts';

/** What outlives the host's daemon: what runs on the machine, by the VM's id. */
export class Machine {
  readonly id: string = randomUUID();
  readonly running = new Map<string, string>();
  boots = 0;
}

export interface SimulatedHostOptions {
  readonly machine: Machine;
  readonly managers: readonly Address[];
  readonly identity: Identity;
  readonly capacity: Resources;
  /** Where the identity is kept. */
  readonly directory: string;
  /** Where its audit log is; undefined: it keeps none. */
  readonly auditDirectory?: string | undefined;
  readonly onTrouble: (what: string) => void;
}

interface Hosted {
  record: VmRecord;
  tree: Promise<VmTree> | undefined;
  /** One change of it after the other. */
  working: Promise<void>;
}

const vmPrefix = 'vm/';
const againAfterMs = 100;

export class SimulatedHost implements AsyncDisposable {
  readonly name: string;
  readonly machine: Machine;
  readonly #options: SimulatedHostOptions;
  readonly #uplink: Uplink;
  readonly #vms = new Map<string, Hosted>();
  readonly #texts = new SpecTexts();
  readonly #stop = new AbortController();
  readonly #audit: AuditStore | undefined;
  #following: Promise<void> = Promise.resolve();

  private constructor(options: SimulatedHostOptions, uplink: Uplink) {
    this.name = options.identity.host;
    this.machine = options.machine;
    this.#options = options;
    this.#uplink = uplink;
    if (options.auditDirectory !== undefined)
      this.#audit = new AuditStore({
        directory: options.auditDirectory,
        keepDays: 1,
        mostBytes: 2 ** 26,
        wallMs: Date.now,
        onHealth: (_, reason) => options.onTrouble(`the audit: ${reason}`),
      });
  }

  /** Resolves when managers can ask it. The signal's reason. */
  static async start(options: SimulatedHostOptions, signal: AbortSignal): Promise<SimulatedHost> {
    const { managers, identity, directory, onTrouble } = options;
    const uplink = await Uplink.open(
      {
        managers,
        identity,
        directory,
        facts: { version: 'simulated', capacity: options.capacity },
        // Nothing of it starts elsewhere: that it has a lease is enough.
        lease: { machine: options.machine.id, nowMs: () => performance.now(), onLease: () => {} },
        onConnection: () => {},
        onEnd: (why) => onTrouble(`host ${identity.host} ended: ${why}`),
        onTrouble,
      },
      signal,
    );
    const host = new SimulatedHost(options, uplink);
    const opened = Promise.withResolvers<void>();
    host.#following = host.#follow(opened.resolve);
    await Promise.race([opened.promise, host.#following]);
    uplink.serve(host.#port());
    return host;
  }

  /** What of the region's store is its own. */
  get store(): Store {
    return this.#uplink.store;
  }

  /** Its connections end first: what it was at is not told to anybody any more. */
  async kill(): Promise<void> {
    this.#stop.abort();
    await this.#uplink.close();
    await this.#following;
    await Promise.allSettled([...this.#vms.values()].map(({ working }) => working));
    this.#audit?.[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  // --- what is wished for ---

  async #follow(opened: () => void): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        const from = await this.#takeAll();
        opened();
        for await (const { events } of this.store.watch(prefixRange(vmPrefix), { from, signal }))
          for (const event of events) {
            if (event.type === 'put') this.#take(keyText(event.entry.key), event.entry.value);
            else this.#forget(keyText(event.key).slice(vmPrefix.length));
          }
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof StoreError)) this.#options.onTrouble(`host ${this.name}: ${(error as Error).stack}`);
      }
      await pause(againAfterMs, undefined, { signal }).catch(() => {});
    }
  }

  async #takeAll(): Promise<number> {
    const seen = new Set<string>();
    const range = prefixRange(vmPrefix);
    let revision: number | undefined;
    for (let start = range.start, more = true; more; ) {
      const page = await this.store.range({ ...range, start }, { revision });
      ({ revision } = page);
      for (const { key, value } of page.entries) {
        this.#take(keyText(key), value);
        seen.add(keyText(key).slice(vmPrefix.length));
      }
      more = page.next !== undefined;
      if (page.next !== undefined) start = page.next;
    }
    for (const name of this.#vms.keys()) if (!seen.has(name)) this.#forget(name);
    return revision! + 1;
  }

  #take(key: string, value: Uint8Array): void {
    const record = decodeRecord(VmRecord, key, value);
    let hosted = this.#vms.get(record.name);
    if (hosted?.record.id !== record.id) {
      hosted = { record, tree: undefined, working: hosted?.working ?? Promise.resolve() };
      this.#vms.set(record.name, hosted);
    }
    hosted.record = record;
    const of = hosted;
    hosted.working = hosted.working.then(() => this.#untilDone(of, record));
  }

  #forget(name: string): void {
    const hosted = this.#vms.get(name);
    this.#vms.delete(name);
    if (hosted !== undefined) this.machine.running.delete(hosted.record.id);
  }

  /** Unless another wish came meanwhile, or the VM is another's. */
  async #untilDone(hosted: Hosted, record: VmRecord): Promise<void> {
    while (!this.#stop.signal.aborted && hosted.record === record && this.#vms.get(record.name) === hosted) {
      try {
        await this.#bringAbout(hosted, record);
        return;
      } catch (error) {
        if (error instanceof StoreError && error.code === 'STORE_DENIED') return;
        hosted.tree = undefined;
        await pause(againAfterMs, undefined, { signal: this.#stop.signal }).catch(() => {});
      }
    }
  }

  async #bringAbout(hosted: Hosted, { id, name, desired, generation, rebootGeneration }: VmRecord): Promise<void> {
    const key = `vmstatus/${name}`;
    const entry = await this.store.get(key);
    const status = entry && decodeRecord(VmStatusRecord, key, entry.value);
    const before = status?.id === id ? status : undefined;
    if (desired === 'deleted') {
      this.machine.running.delete(id);
      await removeTree(this.store, id);
    } else {
      await this.#treeOf(hosted);
      const { running } = this.machine;
      if (desired === 'stopped' || (rebootGeneration === generation && before?.generation !== generation))
        running.delete(id);
      if (desired === 'running' && !running.has(id)) {
        running.set(id, name);
        this.machine.boots++;
      }
    }
    if (before?.generation === generation && before.status === desired) return;
    const told: VmStatusRecord = {
      id,
      status: desired,
      reason: '',
      sinceMs: Date.now(),
      generation,
      outcome: 'done',
      bootNumber: (before?.bootNumber ?? 0) + Number(desired === 'running'),
      addresses: [],
    };
    await this.store.commit({ operations: [{ type: 'put', key, value: encodeRecord(told) }] });
  }

  // --- trees ---

  #treeOf(hosted: Hosted): Promise<VmTree> {
    hosted.tree ??= this.#openTree(hosted).catch((error: unknown) => {
      hosted.tree = undefined;
      throw error;
    });
    return hosted.tree;
  }

  async #openTree(hosted: Hosted): Promise<VmTree> {
    const { id, name, account } = hosted.record;
    const { persist, restored, history } = await TreeStore.open(this.store, id);
    const tree = new VmTree({
      vm: name,
      epoch: this.store.epoch,
      audit: (records) => this.#audit?.append(records, { account }) ?? true,
      kept: {
        persist: async (commits) => {
          try {
            await persist(commits);
          } catch (error) {
            // What the store has is taken up again.
            if (!(error instanceof StoreError)) hosted.tree = undefined;
            throw error;
          }
        },
        ...(restored && { restored }),
        history,
      },
    });
    if (restored === undefined) await loadFirstTree(this.store, tree, this.#texts);
    return tree;
  }

  async #treeNamed({ id, name }: VmRef): Promise<VmTree> {
    const hosted = this.#vms.get(name);
    if (hosted?.record.id !== id || hosted.record.desired === 'deleted')
      throw new HostRefusal('HOST_NO_VM', `this host has no VM "${name}"`);
    try {
      return await this.#treeOf(hosted);
    } catch (error) {
      if (error instanceof HostRefusal) throw error;
      throw new HostRefusal('HOST_UNAVAILABLE', `the tree of VM "${name}" cannot be opened now; try again`);
    }
  }

  // --- what managers ask ---

  #port(): HostPort {
    const { machine, name } = this;
    const ended = this.#stop.signal;
    const audit = this.#audit && new HostAudit(this.#audit, { drain: () => {}, ended });
    const status = async (): Promise<HostStatus> => ({
      name,
      version: 'simulated',
      startedAtMs: 0,
      accelerator: 'tcg',
      cpus: 1,
      memoryBytes: 0,
      freeMemoryBytes: 0,
      diskBytes: 0,
      freeDiskBytes: 0,
      warnings: [],
      deviceVersion: 'simulated',
      keeper: { version: 'simulated', outdated: false },
      metadataServers: { requests: 0, rejected: {} },
      vms: [...machine.running.values()].map((vm) => ({ name: vm, replicas: 0, outdated: false })),
    });
    const port: Partial<HostPort> = {
      ...audit,
      status,
      tree: (vm) => this.#treePort(vm),
      checkSpec: async (text) => {
        checkedSpec(await this.#texts.readSpec(text));
        return [];
      },
    };
    return new Proxy(port, {
      get: (target, call: keyof HostPort) =>
        target[call] ??
        (() => Promise.reject(new HostRefusal('HOST_UNSUPPORTED', `"${call}": there is no machine behind this host`))),
    }) as HostPort;
  }

  #treePort(vm: VmRef): TreePort {
    return new Proxy({} as TreePort, {
      get:
        (_, call: keyof TreePort) =>
        async (...args: unknown[]): Promise<unknown> => {
          const tree = await this.#treeNamed(vm);
          const port = new VmTreePort(() => tree);
          return Reflect.apply(port[call] as (...all: unknown[]) => unknown, port, args);
        },
    });
  }
}
