/** One engine's stores into another's, which are empty. */
import { createHash } from 'node:crypto';
import { StoreError } from './error.ts';
import { keyText } from './keys.ts';
import type { Stores } from './sqlite-stores.ts';
import { type CallOptions, type Entry, type Key, limits, type Operation, type Store } from './store.ts';

export interface CopyOptions extends CallOptions {
  /** In keys of both stores. */
  readonly onProgress?: (done: number, total: number) => void;
}

export interface Copied {
  readonly keys: number;
  /** SHA-256 over names, keys and values of both stores, as they were written, and as they were read back. */
  readonly digest: string;
}

/** In the region's store until a copy into it is written and read back. */
const unfinishedKey = 'unfinished-copy';

/** STORE_MISSING when a copy into the stores was begun and not ended. */
export const mustBeWhole = async ({ region }: Stores): Promise<void> => {
  if ((await region.get(unfinishedKey)) !== undefined)
    throw new StoreError('STORE_MISSING', 'a copy into this store was not finished; empty it, and copy again');
};

/** All entries as of one moment. */
async function* entriesOf(store: Store, signal: AbortSignal | undefined): AsyncGenerator<Entry> {
  let start: Key | undefined = '';
  let revision: number | undefined;
  while (start !== undefined) {
    const page: Awaited<ReturnType<Store['range']>> = await store.range({ start }, { revision, signal });
    yield* page.entries;
    ({ revision, next: start } = page);
  }
}

class Digest {
  readonly #hash = createHash('sha256');
  keys = 0;

  /** Lengths come first, so that no two lists look the same. */
  add(store: string, { key, value, leaseId }: Entry): void {
    this.keys++;
    this.#hash.update(`${store} ${key.length} ${value.length} ${leaseId === undefined ? '' : 'leased'}\n`);
    this.#hash.update(key).update(value);
  }

  toString(): string {
    return this.#hash.digest('hex');
  }
}

/**
 * All keys and values of both stores; revisions are the target's own. What has a lease gets one of a day. Until it is done
 * the target says that it is unfinished. StoreError STORE_EXISTS: the target is not empty; STORE_DAMAGED: it was read back
 * otherwise than written.
 */
export const copyStores = async (from: Stores, to: Stores, options: CopyOptions = {}): Promise<Copied> => {
  const { signal, onProgress } = options;
  const pairs = [
    [from.region, to.region],
    [from.global, to.global],
  ] as const;
  let total = 0;
  for (const [source, target] of pairs) {
    const { count } = await target.count({ start: '' }, { signal });
    if (count > 0)
      throw new StoreError('STORE_EXISTS', `the ${target.name} store to copy into has ${count} keys; it must be empty`);
    total += (await source.count({ start: '' }, { signal })).count;
  }
  await to.region.commit({ operations: [{ type: 'put', key: unfinishedKey, value: new Uint8Array(0) }] }, { signal });
  const written = new Digest();
  for (const [source, target] of pairs) await copyOne(source, target, written, options, total);
  const read = new Digest();
  for (const [, target] of pairs)
    for await (const entry of entriesOf(target, signal))
      if (target !== to.region || keyText(entry.key) !== unfinishedKey) read.add(target.name, entry);
  const [wanted, found] = [written.toString(), read.toString()];
  if (wanted !== found)
    throw new StoreError(
      'STORE_DAMAGED',
      `the copy has ${read.keys} keys that differ from the ${written.keys} of the original: somebody wrote to it meanwhile; empty it, and copy again`,
    );
  await to.region.commit({ operations: [{ type: 'delete', key: unfinishedKey }] }, { signal });
  onProgress?.(total, total);
  return { keys: read.keys, digest: found };
};

const copyOne = async (
  source: Store,
  target: Store,
  written: Digest,
  { signal, onProgress }: CopyOptions,
  total: number,
): Promise<void> => {
  let leaseId: number | undefined;
  let operations: Operation[] = [];
  let bytes = 0;
  const flush = async (): Promise<void> => {
    await target.commit({ operations }, { signal });
    operations = [];
    bytes = 0;
    onProgress?.(written.keys, total);
  };
  for await (const entry of entriesOf(source, signal)) {
    const { key, value } = entry;
    if (entry.leaseId !== undefined) leaseId ??= (await target.grantLease(limits.leaseSeconds, { signal })).id;
    if (operations.length === limits.operations || bytes + key.length + value.length > limits.transactionBytes)
      await flush();
    operations.push({ type: 'put', key, value, ...(entry.leaseId !== undefined && { leaseId }) });
    bytes += key.length + value.length;
    written.add(target.name, entry);
  }
  await flush();
};
