/** What the metadata servers of a host have answered and refused since its daemon started, those of VMs that are gone included. */
import type { MetadataTotals } from '../records/index.ts';

interface Server {
  /** As `MetadataServer.counters` names them. */
  readonly metadataCounters: Readonly<Record<string, number>>;
}

const rejected = 'rejected.';

export class MetadataCounts {
  readonly #servers = new Set<Server>();
  readonly #gone = new Map<string, number>();

  add(server: Server): void {
    this.#servers.add(server);
  }

  /** It answers nobody any more. */
  retire(server: Server): void {
    if (this.#servers.delete(server)) count(this.#gone, server);
  }

  totals(): MetadataTotals {
    const sum = new Map(this.#gone);
    for (const server of this.#servers) count(sum, server);
    const reasons = [...sum].filter(([name]) => name.startsWith(rejected));
    return {
      requests: sum.get('requests') ?? 0,
      rejected: Object.fromEntries(reasons.map(([name, value]) => [name.slice(rejected.length), value])),
    };
  }
}

const count = (sum: Map<string, number>, { metadataCounters }: Server): void => {
  for (const [name, value] of Object.entries(metadataCounters)) sum.set(name, (sum.get(name) ?? 0) + value);
};
