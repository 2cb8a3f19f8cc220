/** A store without what lies below a prefix, for those who must not see what others keep there. */
import { Buffer } from 'node:buffer';
import {
  type KeyRange,
  keyBytes,
  type Page,
  prefixRange,
  type RangeOptions,
  type Store,
  type WatchBatch,
  type WatchOptions,
} from '../../src/store/index.ts';

export const hiding = (store: Store, prefix: string): Store => {
  const isHidden = (key: Uint8Array): boolean => Buffer.from(key).toString('latin1').startsWith(prefix);
  const hiddenIn = async ({ start, end }: KeyRange, options?: RangeOptions): Promise<number> => {
    const { entries } = await store.range(prefixRange(prefix), options);
    return entries.filter(
      ({ key }) =>
        Buffer.compare(key, keyBytes(start)) >= 0 && (end === undefined || Buffer.compare(key, keyBytes(end)) < 0),
    ).length;
  };
  return {
    name: store.name,
    place: store.place,
    epoch: store.epoch,
    commit: (transaction, options) => store.commit(transaction, options),
    get: (key, options) => store.get(key, options),
    async range(range, options): Promise<Page> {
      const page = await store.range(range, options);
      return { ...page, entries: page.entries.filter(({ key }) => !isHidden(key)) };
    },
    async count(range, options) {
      const { revision, count } = await store.count(range, options);
      return { revision, count: count - (await hiddenIn(range, { revision })) };
    },
    async *watch(range: KeyRange, options: WatchOptions): AsyncIterableIterator<WatchBatch> {
      for await (const { revision, events } of store.watch(range, options)) {
        const shown = events.filter((event) => !isHidden(event.type === 'put' ? event.entry.key : event.key));
        if (shown.length > 0) yield { revision, events: shown };
      }
    },
    grantLease: (ttlSeconds, options) => store.grantLease(ttlSeconds, options),
    keepAlive: (leaseId, options) => store.keepAlive(leaseId, options),
    revokeLease: (leaseId, options) => store.revokeLease(leaseId, options),
    revision: (options) => store.revision(options),
    compact: (revision, options) => store.compact(revision, options),
  };
};
