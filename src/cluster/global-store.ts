/** The global store as managers use it: where it is an etcd of its own, its silence is told as its own. */
import { isDeepStrictEqual } from 'node:util';
import { type Store, StoreError } from '../store/index.ts';

/** A store that is away, where the region's is not. */
export class GlobalStoreAway extends StoreError {
  constructor(cause: StoreError) {
    super('STORE_UNAVAILABLE', cause.message, cause);
    this.name = 'GlobalStoreAway';
  }
}

const told = (error: unknown): unknown =>
  error instanceof StoreError && error.code === 'STORE_UNAVAILABLE' ? new GlobalStoreAway(error) : error;

/** The store, whose STORE_UNAVAILABLE is a GlobalStoreAway unless the region's is in the same etcd. */
export const tellingGlobal = (global: Store, region: Store): Store =>
  isDeepStrictEqual(global.place, region.place) && global.place.engine === 'etcd'
    ? global
    : new Proxy(global, {
        get: (target, name: keyof Store) => {
          const member = target[name] as unknown;
          if (typeof member !== 'function') return member;
          return (...args: unknown[]): unknown => {
            const answer = member.apply(target, args) as unknown;
            return answer instanceof Promise ? answer.catch((error: unknown) => Promise.reject(told(error))) : answer;
          };
        },
      });
