/** The region's and the global store in an etcd: in one, each below a prefix of its own, or in two. */
import { StoreError } from './error.ts';
import type { EtcdPlaceOptions, EtcdStoresOptions } from './etcd.ts';
import { EtcdClient, EtcdRefused, refused } from './etcd-client.ts';
import { EtcdMeta } from './etcd-meta.ts';
import { EtcdStore } from './etcd-store.ts';
import { type StoreName, storeNames } from './sqlite-file.ts';
import type { RotateOptions, Stores } from './sqlite-stores.ts';
import { systemClock } from './store.ts';

/** One etcd of ours, and what is in it. */
class Place implements AsyncDisposable {
  readonly client: EtcdClient;
  readonly meta: EtcdMeta;
  readonly stores: ReadonlyMap<StoreName, EtcdStore>;

  constructor(client: EtcdClient, meta: EtcdMeta, stores: ReadonlyMap<StoreName, EtcdStore>) {
    this.client = client;
    this.meta = meta;
    this.stores = stores;
  }

  static async open(
    options: EtcdPlaceOptions,
    names: readonly StoreName[],
    {
      keyFile,
      mustExist,
      clock = systemClock,
      retainRevisions = 10_000,
      retainBytes = 128 * 1024 * 1024,
      sealsPerDataKey = 2 ** 31,
    }: EtcdStoresOptions,
  ): Promise<Place> {
    const { prefix = 'porthole' } = options;
    const client = new EtcdClient(options);
    try {
      const meta = await EtcdMeta.open(client, prefix, { keyFile, mustExist });
      const { revision } = (await client.ask('Range', { key: meta.key, countOnly: true })).header;
      const shared = { client, meta, prefix, revision, clock, retainRevisions, retainBytes, sealsPerDataKey };
      return new Place(client, meta, new Map(names.map((name) => [name, new EtcdStore({ ...shared, name })])));
    } catch (error) {
      client.close();
      throw error instanceof EtcdRefused ? refused(error, 'opening the stores in etcd') : error;
    }
  }

  async rotate({ signal, onProgress }: RotateOptions): Promise<number> {
    const stores = [...this.stores.values()];
    const { header } = await this.client.ask('Range', { key: this.meta.key, countOnly: true }, signal);
    const oldest = await this.meta.newDataKey(header.revision, signal);
    const counts = await Promise.all(stores.map((store) => store.count({ start: '' }, { signal })));
    const total = counts.reduce((sum, { count }) => sum + count, 0);
    let seen = 0;
    const onSeen = (count: number): void => onProgress?.(Math.min((seen += count), total), total);
    let resealed = 0;
    for (const store of stores) resealed += await store.reseal(oldest, { signal, onSeen });
    // Older versions of the values are under the old keys still.
    await stores[0]!.compact(await stores[0]!.revision({ signal }), { signal });
    await this.meta.forgetDataKeys(oldest, signal);
    return resealed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const store of this.stores.values()) await store.close();
    this.client.close();
  }
}

class EtcdStores implements Stores {
  readonly region: EtcdStore;
  readonly global: EtcdStore;
  readonly epoch: number;
  readonly #places: readonly Place[];

  constructor(places: readonly Place[]) {
    this.#places = places;
    const find = (name: StoreName): EtcdStore => places.find(({ stores }) => stores.has(name))!.stores.get(name)!;
    this.region = find('region');
    this.global = find('global');
    this.epoch = this.region.epoch;
  }

  /** Always STORE_INVALID. */
  async backup(): Promise<void> {
    throw new StoreError(
      'STORE_INVALID',
      'stores in etcd are backed up by etcd: run "etcdctl snapshot save FILE" on a member, and keep a copy of the key file elsewhere',
    );
  }

  async rotateDataKey(options: RotateOptions = {}): Promise<number> {
    let resealed = 0;
    for (const place of this.#places) resealed += await place.rotate(options);
    return resealed;
  }

  async changeKeyFile(keyFile: string): Promise<void> {
    for (const { meta } of this.#places) await meta.changeKeyFile(keyFile);
  }

  async close(): Promise<void> {
    for (const place of this.#places) await place[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

export const openStoresIn = async (options: EtcdStoresOptions): Promise<Stores> => {
  const { global } = options;
  if (global === undefined) return new EtcdStores([await Place.open(options, storeNames, options)]);
  const region = await Place.open(options, ['region'], options);
  try {
    return new EtcdStores([region, await Place.open(global, ['global'], options)]);
  } catch (error) {
    await region[Symbol.asyncDispose]();
    throw error;
  }
};

export const raiseEpochOf = async (
  options: EtcdStoresOptions,
  nowSeconds = Math.floor(Date.now() / 1000),
): Promise<number> => {
  const { global } = options;
  let epoch = nowSeconds;
  for (const place of global === undefined ? [options] : [options, global]) {
    await using opened = await Place.open(place, [], options);
    epoch = Math.max(epoch, await opened.meta.raiseEpoch(nowSeconds));
  }
  return epoch;
};
