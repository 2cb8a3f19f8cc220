/** VMs as what is wished for: records in the region's store. Nothing here acts on a process. */

import type { z } from 'zod';
import type { VmRef } from '../records/index.ts';
import {
  type ImageRecord,
  type IndexedRecord,
  type MetadataServerRecord,
  type Network,
  type OperationRecord,
  VmRecord,
  type VmStatus,
  VmStatusRecord,
  type VmType,
  vmStatuses,
  vmTypes,
} from '../records/index.ts';
import { type Condition, type Entry, keyText, type Operation, prefixRange } from '../store/index.ts';
import { readCursor, writeCursor } from './cursor.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import type { Images } from './images.ts';
import { entriesOf, getRecord, type Kept, type Kit, kept, put } from './kit.ts';
import type { Operations } from './operations.ts';
import { outboxEntry } from './outbox.ts';
import { ApiError, isHostError } from './problem.ts';

export interface VmWish {
  readonly name: string;
  readonly kind: VmRecord['kind'];
  readonly type: VmType | undefined;
  readonly image: { readonly name: string; readonly version: string | undefined } | undefined;
  readonly diskBytes: number | undefined;
  readonly network: z.infer<typeof Network>;
  readonly labels: Readonly<Record<string, string>>;
  readonly restart: VmRecord['restart'];
  readonly start: boolean;
  readonly stopGraceSeconds: number;
  readonly ninep?: boolean;
  readonly vsock?: boolean;
  readonly metadataServer?: MetadataServerRecord | undefined;
  readonly libvirtDomain?: string | undefined;
  /** The first tree, as the text of a spec that was checked. */
  readonly spec: string | undefined;
}

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

/** uids that are given out, one to a VM. */
export interface UidRange {
  readonly first: number;
  readonly count: number;
}

const prefix = 'vm/';
export const vmKey = (name: string): string => `${prefix}${name}`;
export const statusKey = (name: string): string => `vmstatus/${name}`;
export const indexedKey = (name: string): string => `indexed/${name}`;
export const seedKey = (name: string): string => `seed/${name}`;
export const uidKey = (uid: number): string => `uid/${String(uid).padStart(10, '0')}`;
const useKey = (image: { name: string; version: string }, vm: string): string =>
  `imageuse/${image.name}/${image.version}/${vm}`;
export const useKeyOf = ({ image, name }: VmRecord): string | undefined => image && useKey(image, name);

const refsKept = 4_096;
/** Tries of a transaction whose conditions were overtaken. */
const tries = 8;
/** Keys that a filtered list looks at before it answers with a short page. */
const scanMost = 5_000;

/** As callers see it: a VM of which nothing has been reported is being made, and one that is gone is going. */
export const statusOf = ({ status }: Vm): VmStatus => {
  if (status === undefined) return 'creating';
  return status.status === 'deleted' ? 'stopping' : status.status;
};

export class Vms {
  readonly #kit: Kit;
  readonly #operations: Operations;
  readonly #images: Images;
  readonly #uids: UidRange | undefined;
  /** VMs that were asked for lately, in order. */
  readonly #refs = new Map<string, VmRef & { readonly account: string }>();

  constructor(kit: Kit, parts: { operations: Operations; images: Images; uids: UidRange | undefined }) {
    this.#kit = kit;
    this.#operations = parts.operations;
    this.#images = parts.images;
    this.#uids = parts.uids;
  }

  indexKey({ account, type, id }: VmRecord, status: VmStatus): string {
    return `index/vm/${account}/${this.#kit.regionName}/${type}/${status}/${id}`;
  }

  /** NAME_TAKEN, NOT_FOUND (image), BAD_REQUEST (a disk smaller than it), FULL (no uid is left). */
  async create(
    account: string,
    wish: VmWish,
    commit: CommitOnce,
    answer: (vm: Vm, operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    for (let i = 0; i < tries; i++) {
      if ((await this.#kit.region.get(vmKey(wish.name))) !== undefined) throw nameTaken(wish.name);
      const image = wish.image && (await this.#images.forUse(account, wish.image));
      if (image !== undefined) checkDisk(image.record, wish.diskBytes);
      const uid = await this.#freeUid();
      const record: VmRecord = {
        id: `i-${this.#kit.randomBytes(9).toString('hex').slice(1)}`,
        name: wish.name,
        account,
        kind: wish.kind,
        type: wish.type ?? 'attached',
        ...(wish.type === undefined ? { vcpus: 0, memoryMiB: 0 } : vmTypes[wish.type]),
        ...(image && {
          image: { name: image.record.name, version: image.record.version, digest: image.record.digest },
        }),
        ...(wish.diskBytes !== undefined && { diskBytes: wish.diskBytes }),
        network: wish.network,
        labels: { ...wish.labels },
        restart: wish.restart,
        desired: wish.start ? 'running' : 'stopped',
        generation: 1,
        rebootGeneration: 0,
        stopGraceSeconds: wish.stopGraceSeconds,
        ...(wish.ninep && { ninep: true }),
        ...(wish.vsock && { vsock: true }),
        ...(wish.metadataServer && { metadataServer: wish.metadataServer }),
        ...(wish.libvirtDomain !== undefined && { libvirtDomain: wish.libvirtDomain }),
        ...(uid !== undefined && { uid }),
        createdAtMs: this.#kit.wallMs(),
      };
      const { operation, operations } = this.#operations.begin({
        account,
        kind: 'vm.create',
        target: { name: record.name, id: record.id },
        generation: 1,
      });
      const index = this.indexKey(record, 'creating');
      const use = useKeyOf(record);
      const done = await commit(
        {
          conditions: [
            { key: vmKey(record.name), exists: false },
            ...(uid === undefined ? [] : [{ key: uidKey(uid), exists: false }]),
            ...(image ? [image.condition] : []),
          ],
          operations: [
            put(vmKey(record.name), record),
            put(indexedKey(record.name), { id: record.id, key: index } satisfies IndexedRecord),
            ...operations,
            ...(uid === undefined ? [] : [put(uidKey(uid), { vm: record.name })]),
            ...(use === undefined ? [] : [put(use, { vm: record.name })]),
            ...(wish.spec === undefined
              ? []
              : [{ type: 'put', key: seedKey(record.name), value: new TextEncoder().encode(wish.spec) } as const]),
            outboxEntry(this.#kit, [{ type: 'put', key: index, value: JSON.stringify({ name: record.name }) }]),
          ],
        },
        answer({ record, status: undefined }, operation),
      );
      if (done) return answer({ record, status: undefined }, operation);
    }
    throw overtaken(wish.name);
  }

  /** VM_NOT_FOUND. */
  async find(account: string, name: string): Promise<Kept<VmRecord>> {
    const found = await getRecord(this.#kit.region, VmRecord, vmKey(name));
    if (found === undefined || found.record.account !== account)
      throw new ApiError('VM_NOT_FOUND', `there is no VM "${name}"`);
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
   * that is being deleted.
   */
  async request(
    account: string,
    name: string,
    change: {
      readonly kind: 'vm.start' | 'vm.stop' | 'vm.reboot' | 'vm.delete';
      readonly graceSeconds?: number | undefined;
    },
    commit: CommitOnce,
    answer: (vm: Vm, operation: OperationRecord) => Answer,
    also: (
      operation: OperationRecord,
    ) => Promise<{ conditions: Condition[]; operations: readonly Operation[] }> = async () => ({
      conditions: [],
      operations: [],
    }),
  ): Promise<Answer> {
    for (let i = 0; i < tries; i++) {
      const { record: before, key, modRevision } = await this.find(account, name);
      if (before.desired === 'deleted' && change.kind !== 'vm.delete')
        throw new ApiError('WRONG_STATE', `the VM "${name}" is being deleted`);
      if (before.kind === 'attached' && change.kind !== 'vm.delete')
        throw new ApiError('WRONG_STATE', `the VM "${name}" is attached: start and stop it where it was started`);
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
    const bound = JSON.stringify([account, filters.status, filters.labels, filters.type, filters.namePrefix]);
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
        const { record } = kept(VmRecord, entry);
        const status = statuses.get(record.name);
        const vm: Vm = { record, status: status?.id === record.id ? status : undefined };
        if (record.account === account && matches(vm, filters)) vms.push(vm);
      }
      if (page.next === undefined) return { vms, next: undefined };
      next = page.next;
    }
  }

  /** From the global store's index: what it has not been told yet is not in it. */
  async counts(account: string): Promise<Count[]> {
    const { global, regionName: region } = this.#kit;
    const wanted = [...Object.keys(vmTypes), 'attached'].flatMap((type) =>
      vmStatuses.map((status) => ({ region, type, status })),
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
    const found = await getRecord(this.#kit.region, VmStatusRecord, statusKey(name));
    return found?.record.id === id ? found.record : undefined;
  }

  async #statuses(entries: readonly Entry[], revision: number): Promise<Map<string, VmStatusRecord>> {
    const statuses = new Map<string, VmStatusRecord>();
    if (entries.length === 0) return statuses;
    const names = entries.map(({ key }) => keyText(key).slice(prefix.length));
    let start: string | Uint8Array = statusKey(names[0]!);
    const end = `${statusKey(names.at(-1)!)}\0`;
    for (;;) {
      const page = await this.#kit.region.range({ start, end }, { revision });
      for (const entry of page.entries) {
        const { record, key } = kept(VmStatusRecord, entry);
        statuses.set(key.slice('vmstatus/'.length), record);
      }
      if (page.next === undefined) return statuses;
      start = page.next;
    }
  }

  async #freeUid(): Promise<number | undefined> {
    const range = this.#uids;
    if (range === undefined) return undefined;
    const { entries } = await entriesOf(this.#kit.region, 'uid/');
    const taken = new Set(entries.map(({ key }) => Number(keyText(key).slice('uid/'.length))));
    for (let uid = range.first; uid < range.first + range.count; uid++) if (!taken.has(uid)) return uid;
    throw new ApiError('FULL', `all ${range.count} uids of this host are given to VMs; delete one, or widen the range`);
  }
}

const matches = (vm: Vm, { status, labels, type }: VmFilters): boolean =>
  (status === undefined || statusOf(vm) === status) &&
  (type === undefined || vm.record.type === type) &&
  labels.every((label) => {
    const [key, ...value] = label.split('=');
    if (!Object.hasOwn(vm.record.labels, key!)) return false;
    return value.length === 0 || vm.record.labels[key!] === value.join('=');
  });

/** The host would refuse it while it makes the disk. A kernel, which is no disk, has one size and not two. */
const checkDisk = (
  { name, version, sizeBytes, virtualSizeBytes }: ImageRecord,
  diskBytes: number | undefined,
): void => {
  if (diskBytes === undefined || sizeBytes === virtualSizeBytes || diskBytes >= virtualSizeBytes) return;
  throw new ApiError(
    'BAD_REQUEST',
    `a disk of ${diskBytes} bytes is too small for the image "${name}" version "${version}": give at least ${virtualSizeBytes}, or none`,
  );
};

const nameTaken = (name: string): ApiError =>
  new ApiError('NAME_TAKEN', `there is a VM "${name}" already; choose another name, or delete that one first`);

const overtaken = (name: string): ApiError =>
  new ApiError('CONFLICT', `the VM "${name}" is being changed by others all the time; try again`, {
    retryAfterSeconds: 1,
  });
