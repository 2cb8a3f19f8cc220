/** A manager that dies between any two of its commits, in this process. */
import type { Store, Stores } from '../../src/store/index.ts';

/** Dies with its n-th commit, before or after that has its effect: nothing it does then comes to anything. */
export const mortal = (
  stores: Stores,
  dying: { left: number; readonly before: boolean; readonly died: () => void },
): Stores => {
  let isDead = false;
  const dead = new Promise<never>(() => {});
  const wrap = (store: Store): Store =>
    new Proxy(store, {
      get: (target, name) => {
        const value = Reflect.get(target, name) as unknown;
        if (typeof value !== 'function') return value;
        return (...args: unknown[]): unknown => {
          if (isDead)
            return name === 'watch'
              ? (async function* () {
                  yield await dead;
                })()
              : dead;
          const call = (): unknown => Reflect.apply(value, target, args) as unknown;
          if (name !== 'commit' || --dying.left > 0) return call();
          isDead = true;
          dying.died();
          if (!dying.before) void (call() as Promise<unknown>).catch(() => {});
          return dead;
        };
      },
    });
  return { ...stores, region: wrap(stores.region), global: wrap(stores.global) } as Stores;
};
