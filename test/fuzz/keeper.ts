import assert from 'node:assert/strict';
import { NAME_BYTES, readRequest } from '../../src/device/keeper-protocol.ts';

/** Reads `bytes` as a request of a device process that may have been taken over: what comes out is as agreed, or nothing. */
export function fuzzKeeper(bytes: Uint8Array): void {
  const packet = new Uint8Array(Math.max(bytes.length, 1));
  packet.set(bytes);
  const request = readRequest(packet, bytes.length);
  if (request === undefined) return;
  assert.ok(request.op >= 1 && request.op <= 4);
  assert.ok(request.name.length <= NAME_BYTES && /^[\x20-\x7e]*$/.test(request.name));
  assert.ok(Number.isSafeInteger(request.number) && request.number >= 0);
  assert.ok(request.extra.length <= 512 && request.take <= 4096);
}
