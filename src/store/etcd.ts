/**
 * Stores in etcd, as the other rooms see them. What speaks to etcd is loaded when it is needed: every command would wait
 * for it else.
 */
import type { EtcdClientOptions } from './etcd-client.ts';
import type { Stores } from './sqlite-stores.ts';
import type { Clock } from './store.ts';

export interface EtcdPlaceOptions extends EtcdClientOptions {
  /** All keys of ours begin with it and a slash. Default "porthole". */
  readonly prefix?: string | undefined;
}

export interface EtcdStoresOptions extends EtcdPlaceOptions {
  /** Of the etcd that has the global store. Default: the same. */
  readonly global?: EtcdPlaceOptions | undefined;
  /** Made together with new stores, never for those that are there. All managers have the same. */
  readonly keyFile: string;
  /** No store is made where there is none: STORE_MISSING. */
  readonly mustExist?: boolean | undefined;
  /** For watches. Default: the system's. */
  readonly clock?: Clock | undefined;
  /** As for SQLite; etcd's revisions count for all that is in it. */
  readonly retainRevisions?: number | undefined;
  readonly retainBytes?: number | undefined;
  readonly sealsPerDataKey?: number | undefined;
}

/**
 * Opens, or makes, the stores in an etcd, which any number of managers use at once.
 * StoreError: STORE_UNAVAILABLE, STORE_REFUSED, STORE_MISSING, STORE_FOREIGN, STORE_TOO_NEW, STORE_DAMAGED, STORE_KEY_*.
 */
export const openEtcdStores = async (options: EtcdStoresOptions): Promise<Stores> =>
  (await import('./etcd-stores.ts')).openStoresIn(options);

/**
 * After a snapshot of etcd was restored, and before a copy is filled: revisions of before mean nothing any more, and
 * managers that still run write nothing more. @returns the new epoch. StoreError as `openEtcdStores`.
 */
export const raiseEtcdEpoch = async (options: EtcdStoresOptions): Promise<number> =>
  (await import('./etcd-stores.ts')).raiseEpochOf(options);
