/** VMs as what is wished for: records in the region's store. Nothing here acts on a process. */

import { Buffer } from 'node:buffer';
import type { z } from 'zod';
import type { VmRef } from '../records/index.ts';
import {
  type AccountRecord,
  defaultAccount,
  type ImageRecord,
  type IndexedRecord,
  type MetadataServerRecord,
  type Network,
  type OperationRecord,
  storageKey,
  VmRecord,
  type VmStatus,
  VmStatusRecord,
  type VmType,
  vmNamePattern,
  vmStatuses,
  vmTypes,
} from '../records/index.ts';
import { type Condition, type Entry, keyText, type Operation, prefixRange } from '../store/index.ts';
import type { Accounts } from './accounts.ts';
import type { Addresses } from './addresses.ts';
import { readCursor, writeCursor } from './cursor.ts';
import type { Hosts } from './hosts.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { mayTouch, type VmScope } from './identity.ts';
import type { Images } from './images.ts';
import { getRecord, type Kept, type Kit, knownOf, pagesOf, put } from './kit.ts';
import type { Operations } from './operations.ts';
import { outboxEntry } from './outbox.ts';
import { hasLabel, type Placement } from './placement.ts';
import { ApiError, isHostError } from './problem.ts';
import type { Regions } from './regions.ts';
import { freeSlot, unlimitedSlot } from './slots.ts';

export interface VmWish {
  readonly name: string;
  readonly kind: VmRecord['kind'];
  readonly type: VmType | undefined;
  readonly image: { readonly name: string; readonly version: string | undefined } | undefined;
  readonly diskBytes: number | undefined;
  readonly disk?: VmRecord['disk'];
  readonly network: z.infer<typeof Network>;
  readonly labels: Readonly<Record<string, string>>;
  readonly restart: VmRecord['restart'];
  readonly restartWhere?: VmRecord['restartWhere'];
  readonly stateless?: boolean | undefined;
  readonly start: boolean;
  readonly stopGraceSeconds: number;
  readonly ninep?: boolean;
  readonly vsock?: boolean;
  readonly metadataServer?: MetadataServerRecord | undefined;
  readonly libvirtDomain?: string | undefined;
  readonly placement: Placement;
  /** The first tree, as the text of a spec that was checked. */
  readonly spec: string | undefined;
}

/** What else is in the transaction of a request. */
export interface Also {
  readonly conditions: readonly Condition[];
  readonly operations: readonly Operation[];
}

const nothingElse: Also = { conditions: [], operations: [] };

export interface Vm {
  readonly record: VmRecord;
  /** Undefined until the host has reported. */
  readonly status: VmStatusRecord | undefined;
}

export interface VmFilters {
  readonly status: VmStatus | undefined;
  /** `KEY=VALUE` or `KEY`, all of which must hold. */
  readonly labels: readonly string[];
  readonly type: string | undefined;
  readonly namePrefix: string;
  /** Those that a key for certain VMs is for; undefined: all. */
  readonly only: VmScope | undefined;
}

export interface VmPage {
  readonly vms: readonly Vm[];
  readonly next: string | undefined;
}

export interface Count {
  readonly region: string;
  readonly type: string;
  readonly status: VmStatus;
  readonly count: number;
}

const prefix = 'vm/';
export const vmKey = (name: string): string => `${prefix}${name}`;
export const statusKey = (name: string): string => `vmstatus/${name}`;

/**
 * What the host of a VM reports: undefined where nobody understands it, as a host that was taken over may have written it, and
 * what makes no sense today makes none the next time.
 */
export const reported = async (
  kit: Kit,
  name: string,
): Promise<{ readonly entry: Entry | undefined; readonly status: Kept<VmStatusRecord> | undefined }> => {
  const entry = await kit.region.get(statusKey(name));
  const [status] = knownOf(kit, VmStatusRecord, entry ? [entry] : []);
  return { entry, status };
};
export const indexedKey = (name: string): string => `indexed/${name}`;
export const seedKey = (name: string): string => `seed/${name}`;
const useKey = (image: { name: string; version: string }, vm: string): string =>
  `imageuse/${image.name}/${image.version}/${vm}`;
export const useKeyOf = ({ image, name }: VmRecord): string | undefined => image && useKey(image, name);

/** Of a transaction's 1 MiB. */
const specBytesMost = 900_000;

const refsKept = 4_096;
/** Tries of a transaction whose conditions were overtaken. */
const tries = 8;
/** Keys that a filtered list looks at before it answers with a short page. */
const scanMost = 5_000;

/** As callers see it: a VM of which nothing has been reported is being made, and one that is gone is going. */
export const statusOf = ({ record, status }: Vm): VmStatus => {
  if (record.lost !== undefined && (status === undefined || mayRun(status))) return 'lost';
  if (status === undefined) return 'creating';
  return status.status === 'deleted' ? 'stopping' : status.status;
};

const runningStatuses: ReadonlySet<string> = new Set(['creating', 'starting', 'running', 'stopping']);

/** As far as its host has told. */
export const mayRun = ({ status }: Pick<VmStatusRecord, 'status'>): boolean => runningStatuses.has(status);

export class Vms {
  readonly #kit: Kit;
  readonly #operations: Operations;
  readonly #images: Images;
  readonly #hosts: Hosts;
  readonly #accounts: Accounts;
  readonly #addresses: Addresses;
  readonly #regions: Regions;
  /** VMs that were asked for lately, in order. */
  readonly #refs = new Map<string, VmRef & { readonly account: string }>();

  constructor(
    kit: Kit,
    parts: {
      operations: Operations;
      images: Images;
      hosts: Hosts;
      accounts: Accounts;
      addresses: Addresses;
      regions: Regions;
    },
  ) {
    this.#kit = kit;
    this.#operations = parts.operations;
    this.#images = parts.images;
    this.#hosts = parts.hosts;
    this.#accounts = parts.accounts;
    this.#addresses = parts.addresses;
    this.#regions = parts.regions;
  }

  indexKey({ account, type, id }: VmRecord, status: VmStatus): string {
    return `index/vm/${account}/${this.#kit.regionName}/${type}/${status}/${id}`;
  }

  /**
   * NAME_TAKEN, NOT_FOUND (image), BAD_REQUEST (a name, a disk smaller than the image), TOO_LARGE (the spec), NO_HOST, QUOTA_EXCEEDED, FULL (no uid, no
   * address is left), WRONG_STATE (an account that is being deleted, a region without addresses).
   */
  async create(
    account: string,
    wish: VmWish,
    commit: CommitOnce,
    answer: (vm: Vm, operation: OperationRecord) => Answer,
    also: (operation: OperationRecord) => Also = () => nothingElse,
  ): Promise<Answer> {
    const { name, labels, placement, spec } = wish;
    checkName(name);
    checkSpecSize(spec);
    let wanted = wish.image;
    const look = async () => {
      await this.#checkFree(name);
      const owner = await this.#accounts.forUse(account);
      networkFor(owner.record, wish);
      return { owner, image: wanted && (await this.#images.forUse(account, wanted)) };
    };
    let looked: Awaited<ReturnType<typeof look>> | undefined = await look();
    const first = looked.image?.record;
    // However often it is tried, this version.
    wanted = first;
    if (first !== undefined) checkDisk(first, wish);
    if (wish.disk === 'network') await this.#checkStorage();
    const id = `i-${this.#kit.randomBytes(9).toString('hex').slice(1)}`;
    const size = wish.type === undefined ? { vcpus: 0, memoryMiB: 0 } : vmTypes[wish.type];
    const diskBytes = wish.disk === 'network' ? 0 : (wish.diskBytes ?? first?.virtualSizeBytes ?? 0);
    const takes = { ...size, diskBytes };
    let answered: Answer | undefined;
    const need = { takes, placement, mayGoElsewhere: wish.restartWhere === 'elsewhere' };
    await this.#hosts.place({ account, id, name, labels }, need, async (seat) => {
      const { owner, image } = looked ?? (await look());
      // Who is overtaken looks anew.
      looked = undefined;
      const type = wish.type ?? 'attached';
      const slot = await freeSlot(this.#kit, owner.record, type, id);
      const given = await this.#addresses.take(wish.network, name);
      const record: VmRecord = {
        id,
        name,
        account,
        kind: wish.kind,
        type,
        ...size,
        ...(image && {
          image: { name: image.record.name, version: image.record.version, digest: image.record.digest },
        }),
        ...(wish.diskBytes !== undefined && { diskBytes: wish.diskBytes }),
        ...(wish.disk === 'network' && { disk: wish.disk }),
        network: networkFor(owner.record, wish),
        ...(given && { addresses: given.addresses }),
        labels: { ...labels },
        restart: wish.restart,
        desired: wish.start ? 'running' : 'stopped',
        generation: 1,
        rebootGeneration: 0,
        stopGraceSeconds: wish.stopGraceSeconds,
        ...(wish.ninep && { ninep: true }),
        ...(wish.vsock && { vsock: true }),
        ...(wish.metadataServer && { metadataServer: wish.metadataServer }),
        ...(wish.libvirtDomain !== undefined && { libvirtDomain: wish.libvirtDomain }),
        ...(seat.uid !== undefined && { uid: seat.uid }),
        host: seat.host,
        takes,
        placement: {
          strategy: placement.strategy,
          hostLabels: [...placement.hostLabels],
          ...(placement.apart !== undefined && { apart: placement.apart }),
        },
        ...(wish.restartWhere === 'elsewhere' && { restartWhere: wish.restartWhere }),
        ...(wish.stateless && { stateless: true }),
        holds: [...seat.holds, slot],
        createdAtMs: this.#kit.wallMs(),
      };
      const { operation, operations } = this.#operations.begin({
        account,
        kind: 'vm.create',
        target: { name, id },
        generation: 1,
      });
      const index = this.indexKey(record, 'creating');
      const use = useKeyOf(record);
      const more = also(operation);
      const told = answer({ record, status: undefined }, operation);
      const done = await commit(
        {
          conditions: [
            { key: vmKey(name), exists: false },
            { key: slot, exists: false },
            owner.condition,
            ...seat.conditions,
            ...(given?.conditions ?? []),
            ...(image ? [image.condition] : []),
            ...more.conditions,
          ],
          operations: [
            put(vmKey(name), record),
            put(indexedKey(name), { id, key: index } satisfies IndexedRecord),
            put(slot, { vm: name }),
            ...operations,
            ...seat.operations,
            ...(given?.operations ?? []),
            ...(use === undefined ? [] : [put(use, { vm: name })]),
            ...(spec === undefined
              ? []
              : [{ type: 'put', key: seedKey(name), value: new TextEncoder().encode(spec) } as const]),
            outboxEntry(this.#kit, [{ type: 'put', key: index, value: JSON.stringify({ name }) }]),
            ...more.operations,
          ],
        },
        told,
      );
      if (done) answered = told;
      return done;
    });
    return answered!;
  }

  async #checkStorage(): Promise<void> {
    if ((await this.#kit.region.get(storageKey)) !== undefined) return;
    throw new ApiError(
      'BAD_REQUEST',
      `the region "${this.#kit.regionName}" has no network disks: start one of its managers with --disks`,
    );
  }

  async #checkFree(name: string): Promise<void> {
    if ((await this.#kit.region.get(vmKey(name))) !== undefined) throw nameTaken(name);
  }

  /** Gives VMs of before there were hosts, quotas and slots to this host: those that name none. */
  async adopt(host: string): Promise<void> {
    for await (const { entries } of pagesOf(this.#kit.region, prefix))
      for (const { key, record } of knownOf(this.#kit, VmRecord, entries)) {
        if (record.host !== undefined) continue;
        while (!(await this.#adoptOne(key, host)));
      }
  }

  /** False: it was changed meanwhile. */
  async #adoptOne(key: string, host: string): Promise<boolean> {
    const found = await getRecord(this.#kit.region, VmRecord, key);
    if (found === undefined || found.record.host !== undefined) return true;
    const { account, type, id, vcpus, memoryMiB, diskBytes } = found.record;
    const slot = unlimitedSlot(account, type, id);
    const takes = { vcpus, memoryMiB, diskBytes: diskBytes ?? 0 };
    return this.#hosts.assign(host, found.record, takes, async ({ conditions, operations }) => {
      const record: VmRecord = { ...found.record, host, takes, holds: [slot] };
      const outcome = await this.#kit.region.commit({
        conditions: [{ key, modRevision: found.modRevision }, ...conditions],
        operations: [put(key, record), put(slot, { vm: record.name }), ...operations],
      });
      return outcome.committed;
    });
  }

  /** VM_NOT_FOUND. */
  async find(account: string, name: string): Promise<Kept<VmRecord>> {
    const found = await getRecord(this.#kit.region, VmRecord, vmKey(name));
    if (found === undefined || found.record.account !== account) throw noVm(name);
    return found;
  }

  #remember({ id, name, account }: VmRecord): VmRef {
    const vm = { id, name, account };
    this.#refs.delete(name);
    this.#refs.set(name, vm);
    if (this.#refs.size > refsKept) this.#refs.delete(this.#refs.keys().next().value!);
    return vm;
  }

  /**
   * Asks the host of a VM, without a look into the store where the VM is known from before: the host knows by the id whether
   * it still has that one. VM_NOT_FOUND; UNAVAILABLE while the host has not made it.
   */
  async ask<T>(account: string, name: string, use: (vm: VmRef) => Promise<T>): Promise<T> {
    const known = this.#refs.get(name);
    if (known?.account === account) {
      try {
        return await use(known);
      } catch (error) {
        if (!isHostError(error) || error.code !== 'HOST_NO_VM') throw error;
        this.#refs.delete(name);
      }
    }
    const { record } = await this.find(account, name);
    const vm = this.#remember(record);
    try {
      return await use(vm);
    } catch (error) {
      if (!isHostError(error) || error.code !== 'HOST_NO_VM' || record.desired === 'deleted') throw error;
      throw new ApiError('UNAVAILABLE', `the host has not made the VM "${name}" yet; try again in a moment`, {
        retryAfterSeconds: 1,
      });
    }
  }

  async get(account: string, name: string): Promise<Vm> {
    const { record } = await this.find(account, name);
    return { record, status: await this.#status(record) };
  }

  /**
   * Writes what is wished for, and an operation that follows it. WRONG_STATE for an attached VM (others start it) and for one
   * that is being deleted; TOO_MANY_REQUESTS where many wait.
   */
  async request(
    account: string,
    name: string,
    change: {
      readonly kind: 'vm.start' | 'vm.stop' | 'vm.reboot' | 'vm.delete';
      readonly graceSeconds?: number | undefined;
      /** Of the VM that is meant: another with its name is none. */
      readonly id?: string | undefined;
    },
    commit: CommitOnce,
    answer: (vm: Vm, operation: OperationRecord) => Answer,
    also: (operation: OperationRecord) => Promise<Also> = async () => nothingElse,
  ): Promise<Answer> {
    for (let i = 0; i < tries; i++) {
      const { record: before, key, modRevision } = await this.find(account, name);
      if (change.id !== undefined && change.id !== before.id) throw noVm(name);
      if (before.desired === 'deleted' && change.kind !== 'vm.delete')
        throw new ApiError('WRONG_STATE', `the VM "${name}" is being deleted`);
      if (before.kind === 'attached' && change.kind !== 'vm.delete')
        throw new ApiError('WRONG_STATE', `the VM "${name}" is attached: start and stop it where it was started`);
      // To delete it is the way out.
      if (change.kind !== 'vm.delete' || before.desired === 'deleted') await this.#operations.checkRoom(name);
      const generation = before.generation + 1;
      const record: VmRecord = {
        ...before,
        generation,
        desired: change.kind === 'vm.stop' ? 'stopped' : change.kind === 'vm.delete' ? 'deleted' : 'running',
        ...(change.kind === 'vm.reboot' && { rebootGeneration: generation }),
        ...(change.graceSeconds !== undefined && { grace: { generation, seconds: change.graceSeconds } }),
      };
      const { operation, operations } = this.#operations.begin({
        account,
        kind: change.kind,
        target: { name, id: record.id },
        generation,
      });
      const more = await also(operation);
      const vm: Vm = { record, status: await this.#status(record) };
      const done = await commit(
        {
          conditions: [{ key, modRevision }, ...more.conditions],
          operations: [put(key, record), ...operations, ...more.operations],
        },
        answer(vm, operation),
      );
      if (done) return answer(vm, operation);
    }
    throw overtaken(name);
  }

  /** In order of their names. Pages are of the moment of the first. */
  async list(
    account: string,
    filters: VmFilters,
    { limit, cursor }: { readonly limit: number; readonly cursor: string | undefined },
  ): Promise<VmPage> {
    const { region } = this.#kit;
    const bound = JSON.stringify([
      account,
      filters.status,
      filters.labels,
      filters.type,
      filters.namePrefix,
      filters.only,
    ]);
    const from = `${prefix}${filters.namePrefix}`;
    const at = cursor === undefined ? undefined : readCursor(cursor, bound, from, region.epoch);
    const { start, end } = prefixRange(from);
    const vms: Vm[] = [];
    let next: string | Uint8Array = at?.next ?? start;
    let revision = at?.revision;
    for (let scanned = 0; ; ) {
      const page = await region.range({ start: next, end }, { revision, limit: Math.min(1000, limit * 2 + 1) });
      ({ revision } = page);
      const statuses = await this.#statuses(page.entries, revision);
      for (const entry of page.entries) {
        const key = keyText(entry.key);
        if (vms.length === limit || scanned === scanMost)
          return { vms, next: writeCursor({ epoch: region.epoch, revision, next: key }, bound) };
        scanned++;
        for (const { record } of knownOf(this.#kit, VmRecord, [entry])) {
          const status = statuses.get(record.name);
          const vm: Vm = { record, status: status?.id === record.id ? status : undefined };
          if (record.account === account && matches(vm, filters)) vms.push(vm);
        }
      }
      if (page.next === undefined) return { vms, next: undefined };
      next = page.next;
    }
  }

  /** From the global store's index: what it has not been told yet is not in it. */
  async counts(account: string): Promise<Count[]> {
    const { global } = this.#kit;
    const regions = (await this.#regions.list()).map(({ name }) => name);
    const wanted = regions.flatMap((region) =>
      [...Object.keys(vmTypes), 'attached'].flatMap((type) => vmStatuses.map((status) => ({ region, type, status }))),
    );
    const counts = await Promise.all(
      wanted.map(async (of) => {
        const range = prefixRange(`index/vm/${account}/${of.region}/${of.type}/${of.status}/`);
        return { ...of, count: (await global.count(range)).count };
      }),
    );
    return counts.filter(({ count }) => count > 0);
  }

  async #status({ name, id }: VmRecord): Promise<VmStatusRecord | undefined> {
    const { status } = await reported(this.#kit, name);
    return status?.record.id === id ? status.record : undefined;
  }

  async #statuses(entries: readonly Entry[], revision: number): Promise<Map<string, VmStatusRecord>> {
    const statuses = new Map<string, VmStatusRecord>();
    if (entries.length === 0) return statuses;
    const names = entries.map(({ key }) => keyText(key).slice(prefix.length));
    let start: string | Uint8Array = statusKey(names[0]!);
    const end = `${statusKey(names.at(-1)!)}\0`;
    for (;;) {
      const page = await this.#kit.region.range({ start, end }, { revision });
      for (const { record, key } of knownOf(this.#kit, VmStatusRecord, page.entries))
        statuses.set(key.slice('vmstatus/'.length), record);
      if (page.next === undefined) return statuses;
      start = page.next;
    }
  }
}

/** BAD_REQUEST. */
export const checkName = (name: string): void => {
  if (!vmNamePattern.test(name))
    throw new ApiError(
      'BAD_REQUEST',
      `a VM cannot have the name "${name}": it must be a DNS label, a-z, 0-9 and "-", at most 63, no "-" at its ends`,
    );
};

/** What is a host's own, and so of all accounts, is for those that may have it. FORBIDDEN. */
const networkFor = (
  { name, mayUseHostNetworks }: AccountRecord,
  { network, libvirtDomain }: VmWish,
): VmWish['network'] => {
  if (name === defaultAccount || mayUseHostNetworks) return network;
  const refused =
    (network.mode === 'tap' && 'a tap device of the host') ||
    (libvirtDomain !== undefined && 'a libvirt domain of the host') ||
    (network.mode === 'user' &&
      network.forwards.some(({ hostAddress }) => hostAddress !== '127.0.0.1') &&
      'a port at another address of the host than 127.0.0.1');
  if (refused)
    throw new ApiError(
      'FORBIDDEN',
      `VMs of the account "${name}" cannot have ${refused}: it was not made with mayUseHostNetworks`,
    );
  return network.mode === 'user' ? { ...network, isolated: true } : network;
};

/** TOO_LARGE. */
export const checkSpecSize = (spec: string | undefined): void => {
  const bytes = spec === undefined ? 0 : Buffer.byteLength(spec);
  if (bytes > specBytesMost)
    throw new ApiError(
      'TOO_LARGE',
      `a spec of ${bytes} bytes, with what stands for its placeholders, is too large: at most ${specBytesMost} are allowed`,
    );
};

const matches = (vm: Vm, { status, labels, type, only }: VmFilters): boolean =>
  mayTouch({ vms: only }, vm.record.name) &&
  (status === undefined || statusOf(vm) === status) &&
  (type === undefined || vm.record.type === type) &&
  labels.every((label) => hasLabel(vm.record.labels, label));

/** The host would refuse it while it makes the disk. A kernel, which is no disk, has one size and not two. */
const checkDisk = (
  { name, version, sizeBytes, virtualSizeBytes }: ImageRecord,
  { diskBytes, disk }: Pick<VmWish, 'diskBytes' | 'disk'>,
): void => {
  if (disk === 'network' && sizeBytes !== virtualSizeBytes)
    throw new ApiError(
      'BAD_REQUEST',
      `the image "${name}" version "${version}" is a disk, and a network disk begins empty: use an image of a kernel`,
    );
  if (diskBytes === undefined || sizeBytes === virtualSizeBytes || diskBytes >= virtualSizeBytes) return;
  throw new ApiError(
    'BAD_REQUEST',
    `a disk of ${diskBytes} bytes is too small for the image "${name}" version "${version}": give at least ${virtualSizeBytes}, or none`,
  );
};

export const noVm = (name: string): ApiError => new ApiError('VM_NOT_FOUND', `there is no VM "${name}"`);

const nameTaken = (name: string): ApiError =>
  new ApiError('NAME_TAKEN', `there is a VM "${name}" already; choose another name, or delete that one first`);

const overtaken = (name: string): ApiError =>
  new ApiError('CONFLICT', `the VM "${name}" is being changed by others all the time; try again`, {
    retryAfterSeconds: 1,
  });
