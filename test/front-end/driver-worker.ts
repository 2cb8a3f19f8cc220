/** A driver in a thread of its own: sends batches, sleeps for the interrupt each time, and says whether one was lost. */
import { parentPort, workerData } from 'node:worker_threads';
import { FrontEnd } from './front-end.ts';
import * as fuse from './fuse-requests.ts';

export interface DriverData {
  controlFd: number;
  eventIdx: boolean;
  rounds: number;
}

export interface DriverResult {
  completed: number;
  kicks: number;
  failure: string | undefined;
}

const BATCH = 8;
const { controlFd, eventIdx, rounds } = workerData as DriverData;
const front = new FrontEnd(controlFd, { eventIdx, queueSize: 32 });
front.handshake();
front.start();
const queue = front.queues[1]!;
let completed = 0;
let failure: string | undefined;
let seed = 1;
const bodies = new Uint32Array(queue.slots);
for (let round = 0; round < rounds && failure === undefined; round++) {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  const batch = 1 + (seed >>> 29);
  for (let slot = 0; slot < Math.min(batch, BATCH); slot++) {
    bodies[slot] = seed ^ slot;
    fuse.viewOf(queue.request(slot)).setUint32(40, bodies[slot]!, true);
    queue.add(slot, fuse.writeRequest(queue.request(slot), { opcode: 1, unique: round }, 4), 20);
    if ((seed & (1 << slot)) !== 0) queue.publish();
  }
  queue.publish();
  for (let spins = (seed >>> 8) & 0xff; spins > 0; spins--) Atomics.load(queue.used, 1);
  for (let left = batch; left > 0 && failure === undefined; ) {
    const slot = queue.next();
    if (slot < 0) {
      if (!queue.wait(60_000)) failure = `round ${round}: ${left} of ${batch} replies never came`;
      continue;
    }
    left--;
    completed++;
    const reply = fuse.viewOf(queue.reply(slot));
    if (fuse.OutHeader.unique.get(reply, 0) !== round) failure = `round ${round}: a reply of another round`;
    if (reply.getUint32(16, true) !== bodies[slot]) failure = `round ${round}: a torn reply`;
  }
}
const result: DriverResult = { completed, kicks: queue.kicks, failure };
// oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread has no origin
parentPort?.postMessage(result);
front.close();
