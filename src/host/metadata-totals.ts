/** What the metadata servers of a host have answered and refused since its daemon started, those of VMs that are gone included. */
import type { MetadataTotals } from '../records/index.ts';

/** Of a server, as `MetadataServer.counters` names them. */
type Counters = Readonly<Record<string, number>>;

const rejected = 'rejected.';

export class MetadataCounts {
  readonly #gone = new Map<string, number>();

  /** A server's last. */
  retire(counters: Counters): void {
    for (const [name, value] of Object.entries(counters)) this.#gone.set(name, (this.#gone.get(name) ?? 0) + value);
  }

  totals(servers: Iterable<Counters>): MetadataTotals {
    const sum = new Map(this.#gone);
    for (const counters of servers)
      for (const [name, value] of Object.entries(counters)) sum.set(name, (sum.get(name) ?? 0) + value);
    const reasons = [...sum].filter(([name]) => name.startsWith(rejected));
    return {
      requests: sum.get('requests') ?? 0,
      rejected: Object.fromEntries(reasons.map(([name, value]) => [name.slice(rejected.length), value])),
    };
  }
}
