/** Hosts that are there by their records only. */

import type { Placement } from '../../src/cluster/placement.ts';
import { encodeRecord, type HostRecord, hostKey, hostLiveKey, type ImageRecord } from '../../src/records/index.ts';
import type { Operation, Store } from '../../src/store/index.ts';

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

/** Of the global store: an image that only the region `eu` has. */
export const imageElsewhere = (name: string): Operation => {
  const record: ImageRecord = {
    name,
    version: '1',
    account: 'default',
    digest: `sha256:${'e'.repeat(64)}`,
    sizeBytes: 1,
    virtualSizeBytes: 1,
    regions: ['eu'],
    createdAtMs: 1,
  };
  return { type: 'put', key: `image/${name}/1`, value: encodeRecord(record) };
};
