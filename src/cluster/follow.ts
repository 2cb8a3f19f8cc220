/** Following a part of a store: what is there, then every change, and anew after a break. */

import type { z } from 'zod';
import { keyText, prefixRange, type Store, StoreError } from '../store/index.ts';
import { type Kept, type Kit, knownOf, pagesOf, pause } from './kit.ts';

const retryMs = 200;

export interface Followed<T> {
  /** All there is, at the beginning and after a break. */
  all(records: readonly Kept<T>[]): void | Promise<void>;
  put(record: Kept<T>): void | Promise<void>;
  removed(key: string): void | Promise<void>;
}

/** Until the signal. Never rejects. */
export const follow = async <S extends z.ZodType>(
  kit: Pick<Kit, 'log'>,
  { store, prefix, schema, signal }: { store: Store; prefix: string; schema: S; signal: AbortSignal },
  told: Followed<z.infer<S>>,
): Promise<void> => {
  while (!signal.aborted) {
    try {
      const records: Kept<z.infer<S>>[] = [];
      let revision = 0;
      // Only what the schema takes is held of all of them: they may be large.
      for await (const page of pagesOf(store, prefix)) {
        records.push(...knownOf(kit, schema, page.entries));
        ({ revision } = page);
      }
      await told.all(records);
      for await (const { events } of store.watch(prefixRange(prefix), { from: revision + 1, signal }))
        for (const event of events)
          if (event.type === 'delete') await told.removed(keyText(event.key));
          else for (const record of knownOf(kit, schema, [event.entry])) await told.put(record);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof StoreError && error.code === 'STORE_COMPACTED'))
        kit.log.error({ err: error, prefix }, 'following the store failed; beginning anew');
      await pause(retryMs, signal);
    }
  }
};
