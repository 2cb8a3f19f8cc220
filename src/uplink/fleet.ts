/** All hosts of a region as one `HostPort`: what is about a VM is asked of the host that has it. */
import {
  type AuditEvent,
  type AuditFilter,
  type AuditFollowOptions,
  type CallOptions,
  decodeRecord,
  type FileProblem,
  type HostPort,
  type HostStatus,
  ownHost,
  VmRecord,
  type VmRef,
} from '../records/index.ts';
import type { Store } from '../store/index.ts';
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
  /** How long a host may take to say how it is; default: 10 s. */
  readonly answerWithinMs?: number | undefined;
}

const answerWithinMsDefault = 10_000;

export const noHostConnected = 'no host is connected to this manager';

export class Fleet extends RemoteHost {
  readonly #options: FleetOptions;
  readonly #startedAtMs = Date.now();

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

  /** The sums of those that are connected and answer in time: one that does not is no trouble of the others. */
  override async status({ signal }: CallOptions = {}): Promise<HostStatus> {
    const { name, version, answerWithinMs = answerWithinMsDefault } = this.#options;
    const late = AbortSignal.timeout(answerWithinMs);
    const silent: string[] = [];
    const asked = [...this.connected()].map(async ([host, port]): Promise<HostStatus[]> => {
      try {
        // Under the name of its certificate, whatever it says.
        return [{ ...(await port.status({ signal: signal ? AbortSignal.any([signal, late]) : late })), name: host }];
      } catch {
        signal?.throwIfAborted();
        silent.push(`host ${host}: it does not answer; its log says more`);
        return [];
      }
    });
    const all = (await Promise.all(asked)).flat();
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
      hosts: asked.length,
      warnings:
        asked.length === 0
          ? [noHostConnected]
          : [
              ...silent,
              ...all.flatMap((status) => status.warnings.map((warning) => `host ${status.name}: ${warning}`)),
            ],
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
}

const noHost = (): RemoteRefusal =>
  new RemoteRefusal('HOST_UNAVAILABLE', `${noHostConnected}; start one: "porthole host --help" says how`);
