import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MetadataCounts } from './metadata-totals.ts';

test('MetadataCounts never counts down when a VM goes, nor twice', () => {
  const counts = new MetadataCounts();
  const one = {
    metadataCounters: { requests: 3, connections: 2, inFlight: 1, 'rejected.rate': 1, 'rejected.host': 0 },
  };
  const two = { metadataCounters: { requests: 4, 'rejected.rate': 2 } };
  for (const server of [one, two]) counts.add(server);
  const both = { requests: 7, rejected: { rate: 3, host: 0 } };
  assert.deepEqual(counts.totals(), both);
  counts.retire(one);
  counts.retire(one);
  assert.deepEqual(counts.totals(), both);
});
