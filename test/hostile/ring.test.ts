/** Every malformed ring through the front end: it is answered or breaks, alone, and nothing else in memory changes. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { drainEventfd } from '../../src/sys/index.ts';
import { VIRTIO_RING_F_INDIRECT_DESC } from '../../src/virtio/messages.ts';
import { EchoHandler, fuse, type InProcess, inProcess } from '../front-end/index.ts';
import { fillBuffers, MemoryGuard } from './memory-guard.ts';
import { allRingCases, type RingCase } from './ring-cases.ts';

const shape = { queueSize: 16, indirect: false, requestBytes: 16384, replyBytes: 32768 };
const EIO = 5;

function serveGoodRequest(vm: InProcess): void {
  const queue = vm.front.queues[1]!;
  const bytes = fuse.writeRequest(queue.request(1), { opcode: 1, unique: 9 }, 8);
  assert.equal(vm.front.roundTrip(queue, 1, bytes, 24), 24);
}

function check(vm: InProcess, bystander: InProcess, { name, expects, spoil }: RingCase): void {
  const { front, device } = vm;
  const queue = front.queues[1]!;
  fillBuffers(front);
  const writable = spoil(front, queue);
  // What the case itself wrote is not the device's doing; a chain that was served while it was prepared is.
  const guard = new MemoryGuard(front);
  const usedBefore = Atomics.load(queue.used, 1);
  const before = device.counters.requests;
  for (let turn = 0; turn < 3; turn++) vm.pump();
  const stray = guard.stray(writable);
  assert.equal(stray, undefined, `byte ${stray} of memory changed, which was not given to be written`);
  assert.equal(vm.closedBy(), undefined);
  const isBroken = device.brokenBy !== undefined;
  assert.equal(isBroken, expects === 'broken', device.brokenBy ?? 'the queue did not break');
  if (isBroken) {
    assert.ok(drainEventfd(queue.errFd) > 0, 'the error eventfd is signalled');
    assert.equal(device.counters.brokenQueues, 1);
  } else if (expects === 'nothing') assert.equal(device.counters.requests, before);
  else if (!name.includes('used')) {
    assert.ok(Atomics.load(queue.used, 1) !== usedBefore, 'the chain is given back');
    const written = queue.used32[2]!;
    if (expects === 'empty') assert.equal(written, 0);
    else assert.ok(written >= 16);
    if (expects === 'error') {
      const header = new DataView(front.memory.u8.buffer, writable[0]!.offset, 16);
      assert.equal(fuse.OutHeader.error.get(header, 0), -EIO);
      assert.equal(fuse.OutHeader.len.get(header, 0), 16);
    }
  }
  serveGoodRequest(bystander);
  // The driver resets: the device is as good as new.
  front.stop();
  for (const each of front.queues) each.resetDriver();
  front.start();
  serveGoodRequest(vm);
}

const openFds = (): number => readdirSync('/proc/self/fd').length;

test('VirtioFsDevice answers or breaks its queue alone, writing nothing else, when', async (t) => {
  const bystander = inProcess(new EchoHandler());
  t.after(bystander.close);
  bystander.front.handshake();
  bystander.front.start();
  for (const each of allRingCases)
    await t.test(each.name, () => {
      const fds = openFds();
      const vm = inProcess(new EchoHandler(), shape);
      try {
        vm.front.handshake();
        if (each.without !== undefined) vm.front.featuresLo &= ~(1 << VIRTIO_RING_F_INDIRECT_DESC);
        vm.front.start();
        check(vm, bystander, each);
      } finally {
        vm.close();
      }
      assert.equal(openFds(), fds, 'no descriptor is left open');
    });
  t.diagnostic(`${allRingCases.length} malformed rings`);
});
