import { conformance } from '../../test/store/conformance.ts';
import { ManualClock } from '../../test/store/manual-clock.ts';
import { temporaryStore } from '../../test/store/temporary.ts';
import { openStores } from './index.ts';

for (const name of ['region', 'global'] as const) {
  conformance(`SqliteStore (${name})`, async (t) => {
    const clock = new ManualClock();
    const stores = await openStores({ ...temporaryStore(t), clock });
    return {
      store: stores[name],
      advance: (ms) => clock.advance(ms),
      leaseSeconds: 10,
      [Symbol.asyncDispose]: () => stores.close(),
    };
  });
}
