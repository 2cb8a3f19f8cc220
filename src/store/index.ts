export { type Copied, type CopyOptions, copyStores, mustBeWhole } from './copy.ts';
export { StoreError, type StoreErrorCode } from './error.ts';
export { type EtcdPlaceOptions, type EtcdStoresOptions, openEtcdStores, raiseEtcdEpoch } from './etcd.ts';
export { type DirectoryLock, lockDirectory, syncToDisk } from './files.ts';
export { compareKeys, keyAfter, keyBytes, keyText, prefixRange } from './keys.ts';
export { checkRange, checkRangeOptions, checkTransaction, checkWhole } from './request.ts';
export { type Restored, type RestoreOptions, restoreStores } from './restore.ts';
export { createKeyFile } from './seal.ts';
export { openStores, type RotateOptions, type Stores, type StoresOptions } from './sqlite-stores.ts';
export { type StateChange, type StateEntry, StateFile, type StateFileOptions } from './state-file.ts';
export {
  type CallOptions,
  type Clock,
  type Condition,
  type Entry,
  hostLimits,
  type Key,
  type KeyRange,
  type Lease,
  limits,
  type Operation,
  type Outcome,
  type Page,
  type RangeOptions,
  type Store,
  type StorePlace,
  systemClock,
  type Transaction,
  type WatchBatch,
  type WatchEvent,
  type WatchOptions,
} from './store.ts';
