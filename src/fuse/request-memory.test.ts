import assert from 'node:assert/strict';
import { fstatSync } from 'node:fs';
import { test } from 'node:test';
import * as abi from './abi.ts';
import { REQUEST_BYTES, RequestMemory } from './request-memory.ts';

test('RequestMemory gives the memory of large requests back when they are answered, but for the first few slots', () => {
  using memory = RequestMemory.create();
  const kept = (): number => fstatSync(memory.fd).blocks * 512;
  const fill = (slot: number): void => {
    const bytes = memory.bytes(slot).fill(1);
    abi.InHeader.len.set(new DataView(bytes.buffer, bytes.byteOffset), 0, REQUEST_BYTES);
  };
  for (let slot = 0; slot < 40; slot++) fill(slot);
  assert.ok(kept() >= 40 * REQUEST_BYTES);
  for (let slot = 0; slot < 40; slot++) memory.clear(slot);
  assert.ok(kept() < 5 * REQUEST_BYTES, `${kept()} bytes are kept`);
  assert.deepEqual([memory.uniqueAt(3), memory.uniqueAt(39)], [0, 0]);
});
