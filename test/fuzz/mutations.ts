/** Whether the host daemon would take what a guest caused for a device process gone bad, and end it. */
import assert from 'node:assert/strict';
import { encodeMessage, readerOnHost } from '../../src/device/index.ts';
import type { Mutation } from '../../src/tree/index.ts';

/** Fails unless the host daemon's reader accepts the mutation. */
export function assertHostAccepts(mutation: Mutation): void {
  const frame = encodeMessage({ type: 'mutation', sequence: 1, way: 'virtiofs', mutation, expiresMs: 1 });
  assert.doesNotThrow(() => readerOnHost().feed(frame), `the host daemon would end the device process: ${mutation.op}`);
}
