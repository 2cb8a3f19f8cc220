import assert from 'node:assert/strict';
import { test } from 'node:test';
import { networkOf } from './vm-machine.ts';

test('networkOf isolates a user-mode network where its record says so, and no other', () => {
  const isolated = (more: object): unknown => {
    const found = networkOf({ network: { mode: 'user', forwards: [], ...more } }, undefined, '/run/n.sock');
    return found?.kind === 'user' && found.isolated;
  };
  assert.deepEqual([isolated({ isolated: true }), isolated({ isolated: false }), isolated({})], [true, false, false]);
});
