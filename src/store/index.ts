export {
  Store,
  type StoreChange,
  type StoreEntry,
  StoreError,
  type StoreErrorCode,
  type StoreOptions,
} from './store.ts';
