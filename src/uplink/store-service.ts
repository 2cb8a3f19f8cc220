/**
 * Answers the calls of one host on a store. Every commit of a host that puts something puts a mark as well, in the same
 * transaction: whoever lost its answer reads in the mark whether it happened. Each also has a condition on the mark, so that
 * one that is still on its way, through a manager that was given up, can't happen after that was read.
 */
import { type Condition, keyBytes, type Operation, type Store } from '../store/index.ts';
import type { Handlers } from './calls.ts';
import { type HostFacts, type StoreCalls, slots } from './store-calls.ts';

export interface StoreServiceOptions {
  /** As the host may see it. */
  readonly store: Store;
  readonly region: string;
  readonly host: string;
  /** Of this start of the manager. */
  readonly manager: string;
  readonly onHello: (facts: HostFacts) => Promise<void>;
  readonly renew: (request: string) => Promise<string>;
  readonly lease: (machine: string, signal: AbortSignal) => Promise<{ readonly id: string; readonly seconds: number }>;
}

export const markPrefix = (host: string): string => `hostmark/${host}/`;
const markKey = (host: string, slot: number): string => markPrefix(host) + slot.toString(16).padStart(2, '0');
const helloTries = 32;

interface Mark {
  readonly id: string;
  readonly revision: number;
}

export const storeHandlers = (options: StoreServiceOptions): Handlers<StoreCalls> => {
  const { store, host, region, manager, onHello, renew, lease } = options;
  return {
    hello: async ({ instance, facts }) => {
      const { marks, revision } = await fence(store, host, instance);
      await onHello(facts);
      return { region, host, manager, epoch: store.epoch, marks, revision };
    },
    commit: async ({ slot, known, id, conditions, operations }, { signal }) => {
      const mark = markKey(host, slot);
      const put: Operation = { type: 'put', key: mark, value: new TextEncoder().encode(id) };
      const outcome = await store.commit(
        {
          conditions: [...(conditions as Condition[]), { key: mark, modRevision: known }],
          operations: [...(operations as Operation[]), ...(operations.some(({ type }) => type === 'put') ? [put] : [])],
        },
        { signal },
      );
      const { revision } = outcome;
      if (outcome.committed) return { result: 'committed' as const, revision };
      if (outcome.unmet.includes(conditions.length)) return { result: 'fenced' as const, revision };
      return { result: 'unmet' as const, revision, unmet: [...outcome.unmet] };
    },
    get: async ({ key, revision }, { signal }) => (await store.get(key, { revision, signal })) ?? null,
    range: async ({ start, end, ...options }, { signal }) => {
      const { revision, entries, next } = await store.range({ start, end }, { ...options, signal });
      return { revision, entries: [...entries], next };
    },
    count: async ({ start, end, ...options }, { signal }) => store.count({ start, end }, { ...options, signal }),
    watch: async ({ start, end, from }, { signal }) => ({
      answer: null,
      items: store.watch({ start, end }, { from, signal }) as AsyncIterable<never>,
    }),
    revision: async (_, { signal }) => store.revision({ signal }),
    grantLease: async ({ ttlSeconds }, { signal }) => store.grantLease(ttlSeconds, { signal }),
    keepAlive: async ({ leaseId }, { signal }) => {
      await store.keepAlive(leaseId, { signal });
      return null;
    },
    revokeLease: async ({ leaseId }, { signal }) => {
      await store.revokeLease(leaseId, { signal });
      return null;
    },
    compact: async ({ revision }, { signal }) => {
      await store.compact(revision, { signal });
      return null;
    },
    lease: async ({ machine }, { signal }) => lease(machine, signal),
    renew: async ({ request }) => ({ certificate: await renew(request) }),
  };
};

/** Puts all marks anew in one transaction, and says what they were. */
const fence = async (store: Store, host: string, instance: string): Promise<{ marks: Mark[]; revision: number }> => {
  const keys = Array.from({ length: slots }, (_, slot) => markKey(host, slot));
  const value = new TextEncoder().encode(`${instance}.hello`);
  for (let i = 0; i < helloTries; i++) {
    const entries = await Promise.all(keys.map((key) => store.get(key)));
    const outcome = await store.commit({
      conditions: keys.map((key, slot): Condition => {
        const entry = entries[slot];
        return entry === undefined ? { key, exists: false } : { key, modRevision: entry.modRevision };
      }),
      operations: keys.map((key): Operation => ({ type: 'put', key: keyBytes(key), value })),
    });
    if (!outcome.committed) continue;
    const marks = entries.map((entry) =>
      entry === undefined
        ? { id: '', revision: 0 }
        : { id: new TextDecoder().decode(entry.value), revision: entry.modRevision },
    );
    return { marks, revision: outcome.revision };
  }
  throw new Error(`the marks of host "${host}" are changed by others all the time`);
};
