/** Following a part of a store: what is there, then every change, and anew after a break. */

import type { z } from 'zod';
import { keyText, prefixRange, type Store, StoreError } from '../store/index.ts';
import { entriesOf, type Kept, type Kit, knownOf, pause } from './kit.ts';

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
      const { revision, entries } = await entriesOf(store, prefix);
      await told.all(knownOf(kit, schema, entries));
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
