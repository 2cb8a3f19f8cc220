/** Hosts that are there by their records only. */

import type { Placement } from '../../src/cluster/placement.ts';
import { encodeRecord, type HostRecord, hostKey, hostLiveKey } from '../../src/records/index.ts';
import type { Store } from '../../src/store/index.ts';

export const anywhere: Placement = { strategy: 'spread', host: undefined, hostLabels: [], apart: undefined };

export const addHost = async (region: Store, name: string, fields: Partial<HostRecord> = {}): Promise<void> => {
  const record: HostRecord = {
    name,
    id: `h-${name}`,
    labels: {},
    cordoned: false,
    draining: false,
    uids: { first: 700_000, count: 100 },
    addedAtMs: 0,
    ...fields,
  };
  await region.commit({
    operations: [
      { type: 'put', key: hostKey(name), value: encodeRecord(record) },
      { type: 'put', key: hostLiveKey(name), value: encodeRecord({ id: record.id, manager: 'm', sinceMs: 0 }) },
    ],
  });
};
