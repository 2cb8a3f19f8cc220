export { StoreError, type StoreErrorCode } from './error.ts';
export { type StateChange, type StateEntry, StateFile, type StateFileOptions } from './state-file.ts';
