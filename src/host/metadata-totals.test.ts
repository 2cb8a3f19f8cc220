import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MetadataCounts } from './metadata-totals.ts';

test('MetadataCounts never counts down when a VM goes', () => {
  const counts = new MetadataCounts();
  const one = { requests: 3, connections: 2, inFlight: 1, 'rejected.rate': 1, 'rejected.host': 0 };
  const two = { requests: 4, 'rejected.rate': 2 };
  const both = { requests: 7, rejected: { rate: 3, host: 0 } };
  assert.deepEqual(counts.totals([one, two]), both);
  counts.retire(one);
  assert.deepEqual(counts.totals([two]), both);
});
