/** Memory that changes under the parser: the double-fetch test. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { fuse } from '../front-end/index.ts';
import { reboot, serveGoodRequest, wildVm } from './ring.ts';
import type { SpoilerData } from './spoiler-worker.ts';

/** How long; a long run is `SPOIL_SECONDS=60`. */
const seconds = Number(process.env['SPOIL_SECONDS'] ?? '1');

for (const indirect of [true, false])
  test(`VirtioFsDevice lives when memory changes under it (${indirect ? 'indirect' : 'direct'})`, async (t) => {
    const vm = wildVm({ indirect, queueSize: 64 });
    t.after(vm.close);
    const queue = vm.front.queues[1]!;
    const { memory } = vm.front;
    const { layout } = queue;
    const done = new Int32Array(new SharedArrayBuffer(4));
    const workerData: SpoilerData = {
      memoryFd: memory.fd,
      sizeBytes: memory.u8.length,
      from: layout.descOffset,
      to: layout.tablesOffset + queue.slots * 64,
      done,
    };
    const spoiler = new Worker(new URL('./spoiler-worker.ts', import.meta.url), { workerData });
    await once(spoiler, 'online');
    const counts = { rounds: 0, broken: 0 };
    const end = performance.now() + seconds * 1000;
    while (performance.now() < end) {
      reboot(vm);
      for (let burst = 0; burst < 20; burst++) {
        for (let slot = 0; slot < queue.slots; slot++) {
          const bytes = fuse.writeRequest(queue.request(slot), { opcode: 1, unique: slot }, slot);
          queue.add(slot, bytes, 100 + slot);
        }
        queue.publish();
        vm.pump();
        vm.handler.answerAll();
      }
      counts.rounds++;
      if (vm.device.brokenBy !== undefined) counts.broken++;
      assert.equal(vm.closedBy(), undefined);
    }
    Atomics.store(done, 0, 1);
    await once(spoiler, 'exit');
    assert.ok(counts.broken > 0, 'the spoiler hit something');
    assert.ok(vm.device.counters.badChains + counts.broken > 0);
    assert.deepEqual(
      vm.faults.filter((fault) => !fault.startsWith('queue ') && !fault.includes('fit')),
      [],
    );
    reboot(vm);
    serveGoodRequest(vm);
    t.diagnostic(`${JSON.stringify({ ...counts, ...vm.device.counters })}`);
  });
