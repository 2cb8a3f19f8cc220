/** All hosts of a region as one `HostPort`: what is about a VM is asked of the host that has it. */
import { randomBytes } from 'node:crypto';
import {
  type AuditEvent,
  type AuditFilter,
  type AuditFollowOptions,
  type CallOptions,
  decodeRecord,
  type FileProblem,
  type HostPort,
  type HostStatus,
  type ImageFacts,
  type ImageFile,
  type ImageRef,
  type ImageRequest,
  type IncomingUpload,
  ownHost,
  type ProgressOptions,
  type Upload,
  VmRecord,
  type VmRef,
} from '../records/index.ts';
import type { Store } from '../store/index.ts';
import { broadcast } from './broadcast.ts';
import type { Caller } from './calls.ts';
import type { HostCalls } from './host-calls.ts';
import { RemoteHost } from './remote-host.ts';
import { RemoteRefusal } from './uplink-error.ts';
import type { VmFeed } from './vm-feed.ts';

export interface FleetOptions {
  readonly region: Store;
  readonly feed: Pick<VmFeed, 'hostOf'>;
  /** Hosts that are connected to this manager. */
  readonly callers: ReadonlyMap<string, Caller<HostCalls>>;
  readonly checkSpec: (text: string) => Promise<readonly FileProblem[]>;
  /** Of the whole. */
  readonly name: string;
  readonly version: string;
}

export const noHostConnected = 'no host is connected to this manager';
/** Uploads that are known by the ids that each host gave them. */
const mostUploads = 1_024;

export class Fleet extends RemoteHost {
  readonly #options: FleetOptions;
  readonly #startedAtMs = Date.now();
  readonly #uploads = new Map<string, ReadonlyMap<string, string>>();

  constructor(options: FleetOptions) {
    super((vm) => (vm === undefined ? this.#only() : this.#hostOf(vm)));
    this.#options = options;
  }

  override checkSpec(text: string): Promise<readonly FileProblem[]> {
    return this.#options.checkSpec(text);
  }

  override async followAudit(filter: AuditFilter, options: AuditFollowOptions): Promise<AsyncIterable<AuditEvent>> {
    const { vm } = filter;
    const caller = vm === undefined ? this.#only() : await this.#hostOf({ id: '', name: vm });
    return new RemoteHost(() => caller).followAudit(filter, options);
  }

  /** Those that are connected, one by one. */
  connected(): Map<string, HostPort> {
    return new Map([...this.#options.callers].map(([name, caller]) => [name, new RemoteHost(() => caller)]));
  }

  /** Bytes go to every host that is connected; one that comes later has not got the image. */
  override async openUpload(sizeBytes: number, options: CallOptions = {}): Promise<IncomingUpload> {
    await using opened = new AsyncDisposableStack();
    const hosts = this.#all();
    const uploads: { readonly name: string; readonly incoming: IncomingUpload }[] = [];
    for (const { name, host } of hosts)
      uploads.push({ name, incoming: opened.use(await host.openUpload(sizeBytes, options)) });
    const rest = opened.move();
    return {
      receive: async (chunks) => {
        const copies = broadcast(chunks, uploads.length);
        const received = await Promise.all(uploads.map(({ incoming }, i) => incoming.receive(copies[i]!, options)));
        return this.#joined(received.map((upload, i) => [uploads[i]!.name, upload]));
      },
      [Symbol.asyncDispose]: () => rest[Symbol.asyncDispose](),
    };
  }

  #joined(received: readonly (readonly [string, Upload])[]): Upload {
    const [[, first]] = received as [readonly [string, Upload]];
    const id = randomBytes(16).toString('hex');
    this.#uploads.set(id, new Map(received.map(([name, upload]) => [name, upload.id])));
    if (this.#uploads.size > mostUploads) this.#uploads.delete(this.#uploads.keys().next().value!);
    return { ...first, id, expiresAtMs: Math.min(...received.map(([, { expiresAtMs }]) => expiresAtMs)) };
  }

  override async addImage(request: ImageRequest, options: ProgressOptions): Promise<ImageFacts> {
    const facts = await Promise.all(
      this.#all().map(({ name, host }, i) =>
        host.addImage(this.#for(name, request), i === 0 ? options : { ...options, progress: () => {} }),
      ),
    );
    const [first] = facts;
    if (facts.some(({ digest }) => digest !== first!.digest))
      throw new RemoteRefusal(
        'HOST_INVALID',
        'hosts made different images of it: make it on one machine, and upload that',
      );
    return first!;
  }

  /** With the files as this host knows them. */
  #for(name: string, request: ImageRequest): ImageRequest {
    const { source } = request;
    const known = (file: ImageFile): ImageFile => {
      if (file.from === 'host')
        throw new RemoteRefusal('HOST_UNSUPPORTED', 'a file of a manager is not one of its hosts: upload it');
      const id = this.#uploads.get(file.id)?.get(name);
      if (id !== undefined) return { ...file, id };
      throw new RemoteRefusal('HOST_INVALID', 'that upload is not there, or not any more; send the file again');
    };
    if (source.kind === 'disk') return { ...request, source: { ...source, disk: known(source.disk) } };
    if (source.kind === 'recipe') return request;
    const { kernel, initrd } = source;
    return { ...request, source: { ...source, kernel: known(kernel), initrd: initrd && known(initrd) } };
  }

  override async removeImage(image: ImageRef, options?: CallOptions): Promise<void> {
    await Promise.all(this.#all().map(({ host }) => host.removeImage(image, options)));
  }

  /** The sums of those that are connected. */
  override async status(options?: CallOptions): Promise<HostStatus> {
    const { name, version } = this.#options;
    const all = await Promise.all([...this.connected().values()].map((host) => host.status(options)));
    const sum = (of: (status: HostStatus) => number): number => all.reduce((total, status) => total + of(status), 0);
    const rejected = new Map<string, number>();
    for (const { metadataServers } of all)
      for (const [reason, count] of Object.entries(metadataServers.rejected))
        rejected.set(reason, (rejected.get(reason) ?? 0) + count);
    const [first] = all;
    return {
      name,
      version,
      startedAtMs: this.#startedAtMs,
      accelerator: all.length > 0 && all.every(({ accelerator }) => accelerator === 'kvm') ? 'kvm' : 'tcg',
      cpus: sum(({ cpus }) => cpus),
      memoryBytes: sum(({ memoryBytes }) => memoryBytes),
      freeMemoryBytes: sum(({ freeMemoryBytes }) => freeMemoryBytes),
      diskBytes: sum(({ diskBytes }) => diskBytes),
      freeDiskBytes: sum(({ freeDiskBytes }) => freeDiskBytes),
      hosts: all.length,
      warnings:
        all.length === 0
          ? [noHostConnected]
          : all.flatMap((status) => status.warnings.map((warning) => `host ${status.name}: ${warning}`)),
      deviceVersion: first?.deviceVersion ?? version,
      keeper: { version: first?.keeper.version ?? version, outdated: all.some(({ keeper }) => keeper.outdated) },
      metadataServers: {
        requests: sum(({ metadataServers }) => metadataServers.requests),
        rejected: Object.fromEntries(rejected),
      },
      vms: all.flatMap(({ vms }) => vms),
    };
  }

  async #hostOf({ name }: VmRef): Promise<Caller<HostCalls>> {
    const { feed, callers } = this.#options;
    const known = callers.get(feed.hostOf(name) ?? '');
    if (known !== undefined) return known;
    const entry = await this.#options.region.get(`vm/${name}`);
    if (entry === undefined) throw new RemoteRefusal('HOST_NO_VM', `there is no VM "${name}"`);
    const host = decodeRecord(VmRecord, `vm/${name}`, entry.value).host ?? ownHost;
    const caller = callers.get(host);
    if (caller !== undefined) return caller;
    throw new RemoteRefusal(
      'HOST_UNAVAILABLE',
      `the host "${host}", which has VM "${name}", is not connected; try again`,
    );
  }

  /** What is not about a VM, and no host is named, is asked of the one host that there is. */
  #only(): Caller<HostCalls> {
    const { callers } = this.#options;
    const [caller] = callers.values();
    if (caller === undefined) throw noHost();
    if (callers.size === 1) return caller;
    throw new RemoteRefusal('HOST_UNSUPPORTED', `there are ${callers.size} hosts, and this is asked of one: name a VM`);
  }

  #all(): { readonly name: string; readonly host: HostPort }[] {
    const all = [...this.connected()].map(([name, host]) => ({ name, host }));
    if (all.length === 0) throw noHost();
    return all;
  }
}

const noHost = (): RemoteRefusal =>
  new RemoteRefusal('HOST_UNAVAILABLE', `${noHostConnected}; start one: "porthole host --help" says how`);
