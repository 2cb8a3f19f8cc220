/** The audit log of a host, as managers ask for it. */
import type { AuditEvent, AuditPage, AuditQuery } from '../records/index.ts';
import type { AuditFilter, KeptRecord } from './audit-scan.ts';
import { AuditCompactedError, type AuditStore } from './audit-store.ts';
import { HostRefusal } from './host-error.ts';

/** Of the log, that one query looks through. */
const pageBytes = 16 * 1024 * 1024;

/** HOST_INVALID for a cursor that is none. */
export const auditPage = async (
  store: AuditStore,
  query: AuditQuery,
  { signal }: { readonly signal?: AbortSignal | undefined },
): Promise<AuditPage> => {
  const { limit, newestFirst = false, cursor, ...filter } = query;
  const after = cursor === undefined ? undefined : sequenceOf(cursor);
  const { records, next } = await store.page(filter, { after, newestFirst, limit, mostBytes: pageBytes, signal });
  return { events: records.map(toEvent), next: next === undefined ? undefined : String(next) };
};

/** HOST_INVALID, HOST_COMPACTED; the latter in the iteration too. */
export const auditFrom = (
  store: AuditStore,
  filter: AuditFilter,
  after: string | undefined,
  signal: AbortSignal,
): AsyncIterable<AuditEvent> => {
  const from = after === undefined ? store.sequence : sequenceOf(after);
  if (from + 1 < store.oldestSequence) throw compacted(store.oldestSequence);
  return follow(store, filter, from, signal);
};

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

const toEvent = ({ sequence, record, bootId }: KeptRecord): AuditEvent => ({
  id: String(sequence),
  record: { ...record, ...(bootId !== undefined && { bootId }) },
});
