/** What every part of the manager is given, and how it reads and writes records. */
import type { Buffer } from 'node:buffer';
import type { Logger } from 'pino';
import type { z } from 'zod';
import type { HostPort } from '../records/index.ts';
import { decodeRecord, encodeRecord } from '../records/index.ts';
import {
  type Condition,
  type Entry,
  type Key,
  keyText,
  type Operation,
  type Page,
  prefixRange,
  type Store,
} from '../store/index.ts';

export interface Kit {
  readonly region: Store;
  readonly global: Store;
  readonly host: HostPort;
  /** Hosts of the region that this manager can ask one by one, by name. */
  readonly connected: () => ReadonlyMap<string, HostPort>;
  /** The region's name, as index keys have it. */
  readonly regionName: string;
  /** Milliseconds since the epoch. */
  readonly wallMs: () => number;
  readonly randomBytes: (bytes: number) => Buffer;
  readonly log: Logger;
}

/** A record with what conditions need. */
export interface Kept<T> {
  readonly key: string;
  readonly record: T;
  readonly createRevision: number;
  readonly modRevision: number;
}

export const kept = <S extends z.ZodType>(schema: S, entry: Entry): Kept<z.infer<S>> => {
  const key = keyText(entry.key);
  const { createRevision, modRevision } = entry;
  return { key, record: decodeRecord(schema, key, entry.value), createRevision, modRevision };
};

/** Those that this version knows. The others are told to the log: one record must not keep all others from use. */
export const knownOf = <S extends z.ZodType>(
  { log }: Pick<Kit, 'log'>,
  schema: S,
  entries: readonly Entry[],
): Kept<z.infer<S>>[] =>
  entries.flatMap((entry) => {
    try {
      return [kept(schema, entry)];
    } catch (error) {
      log.error({ err: error }, 'a record of the store is left out');
      return [];
    }
  });

export const getRecord = async <S extends z.ZodType>(
  store: Store,
  schema: S,
  key: string,
): Promise<Kept<z.infer<S>> | undefined> => {
  const entry = await store.get(key);
  return entry && kept(schema, entry);
};

/** That it is still as it was read; undefined: that it is not there. */
export const unchanged = (key: string, read: Pick<Kept<unknown>, 'modRevision'> | undefined): Condition =>
  read === undefined ? { key, exists: false } : { key, modRevision: read.modRevision };

export const put = (key: string, record: object, leaseId?: number): Operation => ({
  type: 'put',
  key,
  value: encodeRecord(record),
  ...(leaseId !== undefined && { leaseId }),
});

export const remove = (key: string): Operation => ({ type: 'delete', key });

/** All entries below a prefix, of one moment, page by page. */
export async function* pagesOf(store: Store, prefix: string): AsyncGenerator<Page> {
  const { start, end } = prefixRange(prefix);
  let from: Key = start;
  let revision: number | undefined;
  for (;;) {
    const page = await store.range({ start: from, end }, { revision });
    yield page;
    if (page.next === undefined) return;
    from = page.next;
    ({ revision } = page);
  }
}

/** All entries below a prefix. Where there may be very many, use `pagesOf`. */
export const entriesOf = async (store: Store, prefix: string): Promise<{ revision: number; entries: Entry[] }> => {
  const entries: Entry[] = [];
  let revision = 0;
  for await (const page of pagesOf(store, prefix)) {
    entries.push(...page.entries);
    ({ revision } = page);
  }
  return { revision, entries };
};

/** Sorts by time, and tells nobody else's. */
export const newId = (kit: Kit, prefix: string): string =>
  `${prefix}-${kit.wallMs().toString(16).padStart(12, '0')}${kit.randomBytes(5).toString('hex')}`;

/** Waits, unless the signal ends it. */
export const pause = async (ms: number, signal?: AbortSignal): Promise<void> => {
  if (signal?.aborted) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  const end = (): void => {
    clearTimeout(timer);
    resolve();
  };
  signal?.addEventListener('abort', end, { once: true });
  await promise;
  signal?.removeEventListener('abort', end);
};
