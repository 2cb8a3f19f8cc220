/** Changes memory that a device is parsing, as fast as it can: random words of random descriptors, rings and buffers. */
import { workerData } from 'node:worker_threads';
import { Mapping } from '../../src/sys/index.ts';

export interface SpoilerData {
  memoryFd: number;
  sizeBytes: number;
  /** Offsets of the words that may change: [from, to). */
  from: number;
  to: number;
  /** Raised by the other thread when it is done. */
  done: Int32Array;
}

const { memoryFd, sizeBytes, from, to, done } = workerData as SpoilerData;
const mapping = Mapping.map(memoryFd, 0, sizeBytes);
if (typeof mapping === 'number') throw new Error(`mapping failed with errno ${-mapping}`);
const u32 = new Uint32Array(mapping.buffer);
let seed = 12345;
const words = (to - from) / 4;
let kept = 0;
while (Atomics.load(done, 0) === 0) {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  const word = from / 4 + ((seed >>> 8) % words);
  const before = u32[word]!;
  // Mostly a short change and back again: what a second fetch of the same field would see.
  const changes = [before ^ (1 << (seed & 31)), seed, 0, 0xffff_ffff, before + 16];
  u32[word] = changes[kept++ % changes.length]! >>> 0;
  if ((seed & 0x700) !== 0) u32[word] = before;
}
mapping.unmap();
