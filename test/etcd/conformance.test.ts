/** The suite of every store, on three etcd members. */
import { after, before } from 'node:test';
import { openEtcdStores } from '../../src/store/index.ts';
import { conformance } from '../store/conformance.ts';
import { temporaryStore } from '../store/temporary.ts';
import { EtcdCluster } from './cluster.ts';

const rounds = Number(process.env['PORTHOLE_ETCD_ROUNDS'] ?? 1);

let cluster: EtcdCluster;
let opened = 0;
before(async () => {
  cluster = await EtcdCluster.start();
});
after(() => cluster?.[Symbol.asyncDispose]());

conformance(
  'EtcdStore',
  async (t) => {
    const { keyFile } = temporaryStore(t);
    const stores = await openEtcdStores({ endpoints: cluster.endpoints, prefix: `test${opened++}`, keyFile });
    return { store: stores.region, leaseSeconds: 4, [Symbol.asyncDispose]: () => stores.close() };
  },
  { histories: 5 * rounds },
);
