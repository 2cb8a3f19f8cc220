/**
 * A minute of random requests in memory that changes under the parser, against a real device process: a thread scribbles
 * over descriptors, indirect tables, rings and the requests in the buffers while the device reads them. The device process
 * lives, other VMs are served, and the hostile guest itself can always start anew. MUTATION_SECONDS and MUTATION_SEED
 * repeat a run, as far as two threads that race can.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { type FrontEnd, type FrontQueue, fuse } from '../front-end/index.ts';
import type { SpoilerData } from '../fuzz/spoiler-worker.ts';
import { Bystander, connect, guessingClient, init, Served } from './device.ts';
import { allFuseCases } from './fuse-cases.ts';
import { MemoryGuard } from './memory-guard.ts';

const seconds = Number(process.env['MUTATION_SECONDS'] ?? '60');
const seed = Number(process.env['MUTATION_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
const REQUEST_BYTES = 512;
const REPLY_BYTES = 1024;
const rooms = [0, 15, 16, 24, 120, 144, 160, REPLY_BYTES];
const BURSTS = 20;

/** Marsaglia's xorshift: 32 bits from a seed. */
function random(from: number): (below: number) => number {
  let x = from | 1;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % below;
  };
}

/** Every malformed request that fits a slot, from a guest that guesses what it holds. */
function frames(): Uint8Array[] {
  const client = guessingClient();
  const held = { client, file: 3, link: 4, guest: 2, fh: 1, directoryFh: 2 };
  return allFuseCases.map(({ frame }) => frame(held)).filter(({ length }) => length >= 1 && length <= REQUEST_BYTES);
}

interface Area {
  readonly name: string;
  readonly from: (queue: FrontQueue) => number;
  readonly to: (queue: FrontQueue) => number;
}

const buffersEnd = ({ layout, slots }: FrontQueue): number =>
  layout.buffersOffset + slots * (layout.requestBytes + layout.replyBytes);

const areas: readonly Area[] = [
  {
    name: 'descriptors, rings and tables',
    from: ({ layout }) => layout.descOffset,
    to: ({ layout, slots }) => layout.tablesOffset + slots * 64,
  },
  { name: 'requests', from: ({ layout }) => layout.buffersOffset, to: buffersEnd },
];

async function spoil(front: FrontEnd, area: Area): Promise<() => Promise<void>> {
  const queue = front.queues[1]!;
  const done = new Int32Array(new SharedArrayBuffer(4));
  const workerData: SpoilerData = {
    memoryFd: front.memory.fd,
    sizeBytes: front.memory.u8.length,
    from: area.from(queue),
    to: area.to(queue),
    done,
  };
  const worker = new Worker(new URL('../fuzz/spoiler-worker.ts', import.meta.url), { workerData });
  await once(worker, 'online');
  return async () => {
    Atomics.store(done, 0, 1);
    await once(worker, 'exit');
  };
}

test(`a device process lives when its guest's memory changes under it for ${seconds} s`, async (t) => {
  t.diagnostic(`MUTATION_SEED=${seed}`);
  await using served = await Served.start(2);
  await using other = await Served.start(1);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  using elsewhere = await Bystander.connect(other.sockets[0]!);
  const choose = random(seed);
  const pool = frames();
  const counts = { rounds: 0, offered: 0, taken: 0 };
  const shapes = [true, false].flatMap((indirect) => areas.map((area) => ({ indirect, area })));
  const guard = new MemoryGuard(bystander.front);

  for (const { indirect, area } of shapes) {
    const front = connect(hostile, { queueSize: 64, indirect, requestBytes: REQUEST_BYTES, replyBytes: REPLY_BYTES });
    const queue = front.queues[1]!;
    const stop = await spoil(front, area);
    const end = performance.now() + (seconds / shapes.length) * 1000;
    while (performance.now() < end) {
      counts.rounds++;
      front.stop();
      for (const each of front.queues) each.resetDriver();
      front.start();
      queue.add(0, fuse.writeInit(queue.request(0), 1), fuse.INIT_REPLY_BYTES);
      for (let burst = 0; burst < BURSTS; burst++) {
        for (let slot = 1; slot < queue.slots; slot++) {
          const frame = pool[choose(pool.length)]!;
          const request = queue.request(slot);
          request.set(frame);
          for (let flips = choose(4) === 0 ? choose(6) : 0; flips > 0; flips--)
            request[choose(frame.length)] = choose(256);
          queue.add(slot, frame.length, rooms[choose(rooms.length)]!);
          counts.offered++;
        }
        queue.publish();
        queue.kick();
        // The bystander's answer comes when the device has had its turn with the hostile one.
        bystander.ask();
        if (burst % 4 === 0) elsewhere.ask();
        await turn();
      }
    }
    await stop();
    // Nothing changes any more: the same guest starts anew and is served.
    front.stop();
    for (const each of front.queues) each.resetDriver();
    front.start();
    await init(front);
    const counters = (await served.server.statistics(60_000))!;
    assert.equal(counters['fuse.bugs'], 0);
    assert.equal(counters['sessionFaults'], 0);
    counts.taken += counters['requests']!;
    front.close();
  }

  served.assertAlive();
  const { layout, size } = bystander.front.queues[1]!;
  const own = layout.buffersOffset + layout.requestBytes + layout.replyBytes;
  const stray = guard.stray([
    { offset: layout.availOffset, bytes: 6 + size * 2 },
    { offset: layout.descOffset, bytes: size * 16 },
    { offset: layout.tablesOffset, bytes: size * 64 },
    { offset: own, bytes: layout.requestBytes + fuse.GETATTR_REPLY_BYTES },
  ]);
  assert.equal(stray, undefined, `byte ${stray} of the memory of another VM changed`);
  const broken = served.events.filter((event) => event.event === 'target' && event.what === 'broken');
  // Queues break, and an INIT that was scribbled over is refused; a bug of the session would be told as one.
  const expected = /^(queue |the kernel (does not offer|speaks) )/;
  const odd = broken.filter((event) => !('detail' in event) || !expected.test(event.detail));
  assert.deepEqual(odd, [], 'queues break; sessions do not');
  assert.ok(broken.length > 0, 'the scribbling hit something');
  t.diagnostic(`${JSON.stringify({ ...counts, broken: broken.length })}`);
  t.diagnostic(`memory of the device process: ${served.anonymousMib().toFixed(0)} MiB`);
  t.diagnostic(bystander.report('second VM of the device process'));
  t.diagnostic(elsewhere.report('VM of another device process'));
});
