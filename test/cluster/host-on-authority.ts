/**
 * A host for tests of the API: the host's own trees, specs and policies, and a stand-in for what lies at the edge: no
 * process is started, the console is a buffer, and how a VM fares is what the test says.
 */

import { createHash, randomBytes } from 'node:crypto';
import { Readable } from 'node:stream';
import { insideOf } from '../../src/host/guest-inside.ts';
import { HostRefusal } from '../../src/host/host-error.ts';
import { parseSpec } from '../../src/host/spec-file.ts';
import { VmTreePort } from '../../src/host/tree-port.ts';
import { VmTree } from '../../src/host/vm-tree.ts';
import type {
  AttachedMachine,
  AuditEvent,
  AuditFilter,
  AuditProblem,
  BlobOptions,
  Boot,
  ChangeOptions,
  ConsolePiece,
  ConsolePort,
  GuestInside,
  HostPort,
  ImageDigest,
  ImageFacts,
  ImagePort,
  ImageRef,
  ImageRequest,
  IncomingUpload,
  ProgressOptions,
  TreePort,
  UploadPiece,
  VmRef,
} from '../../src/records/index.ts';
import { encodeRecord, VmRecord, type VmStatusRecord } from '../../src/records/index.ts';
import { keyText, prefixRange, type Store } from '../../src/store/index.ts';
import { type Authority, defaultQuota, type PolicySpec } from '../../src/tree/index.ts';

const noPolicy: PolicySpec = { rules: [], users: {}, groups: {}, quota: defaultQuota };
const epoch = 1;

/** Values that arrive one by one, for as many readers as there are. */
class Feed<T> {
  readonly items: T[] = [];
  #changed = Promise.withResolvers<void>();

  push(item: T): void {
    this.items.push(item);
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  async *from(index: number, signal: AbortSignal | undefined): AsyncGenerator<T> {
    const aborted = Promise.withResolvers<never>();
    aborted.promise.catch(() => {});
    const abort = (): void => aborted.reject(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      for (let i = index; ; ) {
        signal?.throwIfAborted();
        if (i < this.items.length) yield this.items[i++]!;
        else await Promise.race([this.#changed.promise, aborted.promise]);
      }
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }
}

/** The host's own tree, kept by nobody, and what a test may do to it. */
export class TestTree extends VmTreePort {
  readonly authority: Authority;
  /** Replicas that are connected and have not applied what was committed. */
  readonly lagging = new Set<string>();
  /** Commits that the host remembers. */
  remembered = Number.POSITIVE_INFINITY;
  /** Awaited before an edit is decided; a test may hold it. */
  beforeEdit: () => Promise<void> = async () => {};
  /** Awaited after an edit was committed and before it is answered. */
  afterEdit: () => Promise<void> = async () => {};

  constructor(vm: string) {
    const tree = new VmTree({ vm, epoch, audit: () => true, kept: {} });
    super(() => tree);
    this.authority = tree.authority;
    this.authority.load({ entries: [], policy: noPolicy });
  }

  override async edit(...args: Parameters<TreePort['edit']>): ReturnType<TreePort['edit']> {
    await this.beforeEdit();
    const edited = await super.edit(...args);
    await this.afterEdit();
    return edited;
  }

  override async watch(...[path, options]: Parameters<TreePort['watch']>): ReturnType<TreePort['watch']> {
    const oldest = Math.max(1, this.authority.snapshot.revision - this.remembered + 1);
    if (options.from !== undefined && options.from < oldest)
      throw new HostRefusal('HOST_COMPACTED', `revisions before ${oldest} are forgotten`, { oldestRevision: oldest });
    return super.watch(path, options);
  }

  override async applied(): Promise<readonly string[]> {
    return [...this.lagging];
  }
}

class TestConsole implements ConsolePort {
  isRunning = true;
  readonly typed: Uint8Array[] = [];
  /** Awaited after something was typed and before that is answered. */
  afterWrite: () => Promise<void> = async () => {};
  readonly #pieces = new Feed<ConsolePiece>();
  #end = 0;

  print(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.#pieces.push({ offset: this.#end, bytes });
    this.#end += bytes.length;
  }

  get #bytes(): Uint8Array {
    return Buffer.concat(this.#pieces.items.map(({ bytes }) => bytes));
  }

  async log({ offset, tailBytes, mostBytes }: Parameters<ConsolePort['log']>[0]) {
    const start = offset ?? (tailBytes === undefined ? 0 : Math.max(0, this.#end - tailBytes));
    return { start: 0, offset: start, end: this.#end, bytes: this.#bytes.subarray(start, start + mostBytes) };
  }

  async stream({ offset, signal }: Parameters<ConsolePort['stream']>[0]) {
    const first = offset ?? this.#end;
    const feed = this.#pieces.from(0, signal);
    const pieces = (async function* () {
      for await (const piece of feed) {
        const skip = Math.max(0, first - piece.offset);
        if (skip < piece.bytes.length) yield { offset: piece.offset + skip, bytes: piece.bytes.subarray(skip) };
      }
    })();
    return { offset: first, pieces };
  }

  async write(bytes: Uint8Array) {
    if (!this.isRunning) throw new HostRefusal('HOST_WRONG_STATE', 'the VM does not run; start it first');
    this.typed.push(bytes);
    this.print(Buffer.from(bytes).toString());
    await this.afterWrite();
  }
}

const mostUploaded = 8 * 1024 * 1024;

interface TestVm {
  readonly id: string;
  readonly tree: TestTree;
  readonly console: TestConsole;
  boots: number;
  device: { readonly version: string; readonly outdated: boolean };
  /** Why its device process can't be replaced. */
  unrenewable: string | undefined;
}

export class TestHost implements HostPort, ImagePort {
  readonly vms = new Map<string, TestVm>();
  readonly audits = new Feed<AuditEvent>();
  readonly auditProblems: AuditProblem[] = [];
  /** Digests by NAME/VERSION. */
  readonly images = new Map<string, string>();
  /** By digest. */
  readonly blobs = new Map<string, Buffer>();
  /** Uploads that were opened and not disposed of; and what came. */
  readonly coming = new Set<string>();
  readonly uploads = new Map<string, Buffer>();
  /** Of those that come in pieces, what they are to have. */
  readonly #sizes = new Map<string, number>();
  /** The tree of a VM where it is not the stand-in's own. */
  portOf: ((vm: VmRef) => TreePort | undefined) | undefined;
  /** Thrown by every call of the API to a VM. */
  broken: Error | undefined;
  addImageWith: (request: ImageRequest, options: ProgressOptions) => Promise<ImageFacts> = async () => ({
    digest: `sha256:${'0'.repeat(64)}`,
    sizeBytes: 1000,
    virtualSizeBytes: 4096,
  });

  #vm({ id, name }: VmRef): TestVm {
    if (this.broken) throw this.broken;
    const vm = this.vms.get(name);
    if (vm?.id !== id) throw new HostRefusal('HOST_NO_VM', `this host has no VM "${name}"`);
    return vm;
  }

  /** Its log has it from now on; the first is record 1. */
  recorded(record: AuditEvent['record']): void {
    const n = this.audits.items.length + 1;
    this.audits.push({ id: String(n), atMs: n, record });
  }

  make({ id, name }: VmRef): TestVm {
    const vm: TestVm = {
      id,
      tree: new TestTree(name),
      console: new TestConsole(),
      boots: 0,
      device: { version: '0.0.9+0123456789ab', outdated: true },
      unrenewable: undefined,
    };
    this.vms.set(name, vm);
    return vm;
  }

  tree(vm: VmRef): TreePort {
    const port = this.portOf?.(vm);
    if (port !== undefined) return port;
    // Every call looks anew, as the contract has it.
    return new Proxy({} as TreePort, {
      get: (_, method) =>
        method === 'then'
          ? undefined
          : async (...args: unknown[]) => {
              const { tree } = this.#vm(vm);
              const call = tree[method as keyof TreePort] as (...all: unknown[]) => unknown;
              return Reflect.apply(call, tree, args);
            },
    });
  }

  console(vm: VmRef): ConsolePort {
    return this.#vm(vm).console;
  }

  async checkSpec(text: string) {
    return parseSpec(text, 'spec', 'refused').problems;
  }

  async attachment({ name }: VmRef, machine: AttachedMachine) {
    return {
      socketPath: `/run/porthole/vms/${name}/fs.sock`,
      tag: 'metadata',
      qemu: ['-device', 'vhost-user-fs-pci,chardev=metadata,tag=metadata'],
      cloudHypervisor: ['--fs', 'tag=metadata'],
      libvirtXml: '<filesystem/>',
      libvirtDomain: `<domain>${JSON.stringify(machine)}</domain>\n`,
      mount: 'mount -t virtiofs metadata /run/metadata',
    };
  }

  async boot(vm: VmRef, _options: ChangeOptions = {}): Promise<Boot> {
    const found = this.#vm(vm);
    found.boots++;
    return { bootId: `boot-${found.boots}`, number: found.boots };
  }

  async renewDevice(vm: VmRef) {
    const found = this.#vm(vm);
    if (found.unrenewable !== undefined) throw new HostRefusal('HOST_WRONG_STATE', found.unrenewable);
    found.device = { version: '0.1.0+0123456789ab', outdated: false };
    return found.device;
  }

  async statistics(vm: VmRef) {
    this.#vm(vm);
    return { atMs: Date.now(), values: { cpu_seconds_total: 1.5 } };
  }

  async inside(vm: VmRef): Promise<GuestInside> {
    return insideOf(this.#vm(vm).tree.authority.snapshot, Date.now()).read();
  }

  async audit({ limit, after, newestFirst, fromMs = 0, ...filter }: Parameters<HostPort['audit']>[0]) {
    const matching = this.audits.items.filter((event) => event.record.timeMs >= fromMs && matches(event, filter));
    if (newestFirst === true) matching.reverse();
    const from = after === undefined ? 0 : matching.findIndex(({ id }) => id === String(after.sequence)) + 1;
    const events = matching.slice(from, from + limit);
    const last = events.at(-1);
    const isEnd = last === undefined || last === matching.at(-1);
    return { events, next: isEnd ? undefined : { atMs: last.atMs, sequence: Number(last.id) } };
  }

  async checkAudit() {
    const last = { sequence: this.audits.items.length, chain: 'a'.repeat(64) };
    return { records: last.sequence, problems: this.auditProblems, last, isEnd: true };
  }

  async followAudit(filter: AuditFilter, { after, signal }: Parameters<HostPort['followAudit']>[1]) {
    const from =
      after === undefined ? this.audits.items.length : this.audits.items.findIndex(({ id }) => id === after) + 1;
    if (after !== undefined && from === 0) throw new HostRefusal('HOST_COMPACTED', 'that record is forgotten');
    const feed = this.audits.from(from, signal);
    return (async function* () {
      for await (const event of feed) if (matches(event, filter)) yield event;
    })();
  }

  async openUpload(_account: string, sizeBytes: number): Promise<IncomingUpload> {
    if (sizeBytes > mostUploaded) throw new HostRefusal('HOST_TOO_LARGE', `${sizeBytes} bytes are too many`);
    const id = `up-${randomBytes(16).toString('hex')}`;
    this.coming.add(id);
    return {
      receive: async (chunks) => {
        const pieces: Uint8Array[] = [];
        for await (const chunk of chunks) pieces.push(chunk);
        const bytes = Buffer.concat(pieces);
        if (bytes.length !== sizeBytes) throw new HostRefusal('HOST_INVALID', 'other bytes came than were told');
        this.uploads.set(id, bytes);
        const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
        return { id, sizeBytes, digest, expiresAtMs: Date.now() + 600_000 };
      },
      [Symbol.asyncDispose]: async () => void this.coming.delete(id),
    };
  }

  async resumeUpload({ account, id, sizeBytes, offset }: UploadPiece, chunks: AsyncIterable<Uint8Array>) {
    const pieces = [this.uploads.get(id) ?? Buffer.alloc(0)];
    if (pieces[0]!.length !== offset)
      throw new HostRefusal('HOST_WRONG_STATE', `${pieces[0]!.length} bytes of the file are there`);
    if (sizeBytes > mostUploaded) throw new HostRefusal('HOST_TOO_LARGE', `${sizeBytes} bytes are too many`);
    this.#sizes.set(id, sizeBytes);
    try {
      for await (const chunk of chunks) pieces.push(Buffer.from(chunk));
    } finally {
      this.uploads.set(id, Buffer.concat(pieces));
    }
    return this.findUpload(account, id);
  }

  async findUpload(_account: string, id: string) {
    const bytes = this.uploads.get(id);
    if (bytes === undefined) throw new HostRefusal('HOST_NOT_FOUND', 'that file never came');
    const there = { id, expiresAtMs: Date.now() + 600_000 };
    if (bytes.length < this.#sizes.get(id)!) return { ...there, receivedBytes: bytes.length };
    const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
    return { ...there, sizeBytes: bytes.length, digest };
  }

  async addImage(request: ImageRequest, options: ProgressOptions) {
    const facts = await this.addImageWith(request, options);
    this.images.set(`${request.name}/${request.version}`, facts.digest);
    return facts;
  }

  async findImage({ name, version }: ImageRef) {
    return this.images.get(`${name}/${version}`);
  }

  async removeImage({ name, version, digest }: ImageDigest) {
    const key = `${name}/${version}`;
    if (this.images.get(key) === digest) this.images.delete(key);
  }

  async copyImage({ name, version, digest }: ImageDigest) {
    this.images.set(`${name}/${version}`, digest);
  }

  async adoptImage(): Promise<ImageFacts | undefined> {
    return undefined;
  }

  async blob(_: ImageDigest, digest: string, { offset }: BlobOptions) {
    const bytes = this.blobs.get(digest);
    if (bytes === undefined) throw new HostRefusal('HOST_NOT_FOUND', 'this host keeps no such bytes');
    return { sizeBytes: bytes.length, bytes: Readable.from([bytes.subarray(offset)]) };
  }

  async status() {
    if (this.broken) throw this.broken;
    return {
      name: 'host-1',
      version: '0.1.0',
      startedAtMs: 0,
      accelerator: 'tcg' as const,
      cpus: 2,
      memoryBytes: 8e9,
      freeMemoryBytes: 4e9,
      diskBytes: 1e11,
      freeDiskBytes: 5e10,
      warnings: [],
      deviceVersion: '0.1.0+0123456789ab',
      metadataServers: { requests: 5, rejected: { 'token-taken': 2 } },
      keeper: { version: '0.1.0+ba9876543210', outdated: false },
      vms: [...this.vms].map(([name, { device }]) => ({
        name,
        deviceVersion: device.version,
        replicas: 1,
        outdated: device.outdated,
      })),
    };
  }

  /** What a host does with what is wished for, without doing it: follows `vm/` and reports at once that all went well. */
  async obey(region: Store, signal: AbortSignal): Promise<void> {
    const { entries, revision } = await region.range(prefixRange('vm/'));
    for (const entry of entries)
      await this.#bringAbout(region, VmRecord.parse(JSON.parse(new TextDecoder().decode(entry.value))));
    try {
      for await (const { events } of region.watch(prefixRange('vm/'), { from: revision + 1, signal })) {
        for (const event of events) {
          if (event.type === 'delete') continue;
          await this.#bringAbout(region, VmRecord.parse(JSON.parse(new TextDecoder().decode(event.entry.value))));
        }
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  async #bringAbout(region: Store, record: VmRecord): Promise<void> {
    const { id, name, desired, generation } = record;
    let vm = this.vms.get(name);
    if (vm?.id !== id) {
      vm = this.make(record);
      const seed = await region.get(`seed/${name}`);
      if (seed) await vm.tree.import(new TextDecoder().decode(seed.value));
    }
    if (desired === 'deleted') this.vms.delete(name);
    if (desired === 'running') vm.boots++;
    const status: VmStatusRecord = {
      id,
      status: desired,
      reason: '',
      sinceMs: Date.now(),
      generation,
      outcome: 'done',
      bootNumber: vm.boots,
      ...(vm.boots > 0 && { bootId: `boot-${vm.boots}` }),
      addresses: [],
    };
    await region.commit({ operations: [{ type: 'put', key: `vmstatus/${name}`, value: encodeRecord(status) }] });
  }
}

const matches = ({ record }: AuditEvent, { vm, path, uid, operation, verdict }: AuditFilter): boolean =>
  (vm === undefined || record.vm === vm) &&
  (path === undefined || record.path === path || record.path.startsWith(`${path}/`)) &&
  (uid === undefined || record.uid === uid) &&
  (operation === undefined || record.operation === operation) &&
  (verdict === undefined || record.verdict === verdict);

/** All keys of a store, for what must be gone. */
export const keysOf = async (store: Store): Promise<string[]> =>
  (await store.range({ start: '\0' })).entries.map(({ key }) => keyText(key));
