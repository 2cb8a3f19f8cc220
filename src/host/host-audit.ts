/** The audit log of a host, as managers ask for it. */
import type {
  AuditCheck,
  AuditEvent,
  AuditFilter,
  AuditFollowOptions,
  AuditLink,
  AuditPage,
  AuditPlace,
  AuditQuery,
  CallOptions,
} from '../records/index.ts';
import type { KeptRecord } from './audit-scan.ts';
import { AuditCompactedError, type AuditStore } from './audit-store.ts';
import { HostRefusal } from './host-error.ts';

/** Of the log, that one query looks through, and one check. */
const pageBytes = 16 * 1024 * 1024;

/** `HostPort`'s calls about the audit. */
export class HostAudit {
  readonly #store: AuditStore;
  readonly #drain: () => void;
  readonly #ended: AbortSignal;

  /** `drain` takes what device processes have recorded and the log has not yet. `ended`: who follows is told no more. */
  constructor(store: AuditStore, { drain, ended }: { readonly drain: () => void; readonly ended: AbortSignal }) {
    this.#store = store;
    this.#drain = drain;
    this.#ended = ended;
  }

  audit = async (query: AuditQuery, { signal }: CallOptions = {}): Promise<AuditPage> => {
    this.#drain();
    const { limit, newestFirst = false, after: place, ...filter } = query;
    const after = place && (await this.#sequenceAt(place, newestFirst, signal));
    const options = { after, newestFirst, limit, mostBytes: pageBytes, signal };
    const { records, next } = await this.#store.page(filter, options);
    return { events: records.map(toEvent), next: next && { sequence: next.sequence, atMs: next.atMs } };
  };

  checkAudit = (after: AuditLink | undefined, { signal }: CallOptions = {}): Promise<AuditCheck> => {
    this.#drain();
    return this.#store.check(after, { mostBytes: pageBytes, signal });
  };

  /** HOST_INVALID, HOST_COMPACTED; the latter in the iteration too. */
  followAudit = async (
    filter: AuditFilter,
    { after, signal = this.#ended }: AuditFollowOptions,
  ): Promise<AsyncIterable<AuditEvent>> => {
    this.#drain();
    const { sequence, oldestSequence } = this.#store;
    const from = after === undefined ? sequence : sequenceOf(after);
    if (from + 1 < oldestSequence) throw compacted(oldestSequence);
    return follow(this.#store, filter, from, signal);
  };

  /** Beyond which record a place is. */
  async #sequenceAt(
    { atMs, sequence }: AuditPlace,
    newestFirst: boolean,
    signal: AbortSignal | undefined,
  ): Promise<number> {
    if (sequence !== undefined) return sequence;
    return newestFirst ? (await this.#store.lastUntil(atMs - 1, signal)) + 1 : this.#store.lastUntil(atMs, signal);
  }
}

async function* follow(
  store: AuditStore,
  filter: AuditFilter,
  from: number,
  signal: AbortSignal,
): AsyncGenerator<AuditEvent> {
  try {
    for await (const kept of store.follow(filter, from, signal)) yield toEvent(kept);
  } catch (error) {
    throw error instanceof AuditCompactedError ? compacted(error.oldestSequence) : error;
  }
}

const compacted = (oldest: number): HostRefusal =>
  new HostRefusal('HOST_COMPACTED', `records before ${oldest} are no longer kept; begin at ${oldest}`, {
    oldestRevision: oldest,
  });

const sequenceOf = (id: string): number => {
  if (!/^\d{1,15}$/.test(id)) throw new HostRefusal('HOST_INVALID', `"${id}" is the id of no audit record`);
  return Number(id);
};

const toEvent = ({ sequence, atMs, record, bootId }: KeptRecord): AuditEvent => ({
  id: String(sequence),
  atMs,
  record: { ...record, ...(bootId !== undefined && { bootId }) },
});
