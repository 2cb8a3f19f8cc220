import { conformance } from '../../test/store/conformance.ts';
import { ManualClock } from '../../test/store/manual-clock.ts';
import { temporaryStore } from '../../test/store/temporary.ts';
import { hiding } from '../../test/uplink/hiding-store.ts';
import { Pair } from '../../test/uplink/pair.ts';
import { hostLimits, openStores } from '../store/index.ts';
import { markPrefix } from './store-service.ts';

conformance(
  'RemoteStore',
  async (t) => {
    const clock = new ManualClock();
    const stores = await openStores({ ...temporaryStore(t), clock });
    const pair = await Pair.open(hiding(stores.region, markPrefix('h1')));
    return {
      store: pair.remote,
      advance: (ms) => clock.advance(ms),
      leaseSeconds: 10,
      [Symbol.asyncDispose]: async () => {
        await pair[Symbol.asyncDispose]();
        await stores.close();
      },
    };
  },
  { most: hostLimits },
);
