/** Managers of one region on etcd, each with connections of its own. `PORTHOLE_PLACEMENT_ROUNDS`, `PORTHOLE_BATCH_ROUNDS`: more. */
import { after, before } from 'node:test';
import { completesOnceTest } from '../cluster/batches.ts';
import { type Connections, inEtcd } from '../cluster/connections.ts';
import { placementTests } from '../cluster/placement.ts';
import { EtcdCluster } from './cluster.ts';

let cluster: EtcdCluster;
let opened = 0;
before(async () => {
  cluster = await EtcdCluster.start();
});
after(() => cluster?.[Symbol.asyncDispose]());

const open = (): Connections => inEtcd(cluster, `m${opened++}`);

placementTests(open, { creations: 8, hosts: 3 });
completesOnceTest(open, 20);
