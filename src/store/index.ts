export { Store, type StoreChange, StoreError } from './store.ts';
