import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  EchoHandler,
  type FrontEndOptions,
  fuse,
  type InProcess,
  inProcess,
  OPCODE_FORGET_TO_ANSWER,
  OPCODE_HOLD,
  OPCODE_THROW,
  OPCODE_TOO_MUCH,
} from '../../test/front-end/index.ts';

const EIO = 5;

function started(options: FrontEndOptions = {}): InProcess & { handler: EchoHandler } {
  const handler = new EchoHandler();
  const all = inProcess(handler, options);
  all.front.handshake();
  all.front.start();
  return { ...all, handler };
}

/** Sends one request of `bodyBytes` and returns the error of its reply. */
function ask(vm: InProcess, opcode: number, unique: number, bodyBytes = 0, replyBytes = 16 + bodyBytes): number {
  const queue = vm.front.queues[1]!;
  const bytes = fuse.writeRequest(queue.request(0), { opcode, unique }, bodyBytes);
  const view = fuse.viewOf(queue.reply(0));
  view.setUint32(0, 0xdead, true);
  vm.front.roundTrip(queue, 0, bytes, replyBytes);
  assert.equal(fuse.OutHeader.unique.get(view, 0), unique);
  return fuse.OutHeader.error.get(view, 0);
}

/** Puts a request on its way that the handler holds. */
function holdOne(vm: InProcess & { handler: EchoHandler }, slot: number, unique: number): void {
  const queue = vm.front.queues[1]!;
  const before = vm.handler.held.length;
  queue.add(slot, fuse.writeRequest(queue.request(slot), { opcode: OPCODE_HOLD, unique }, 0), 16);
  queue.publish();
  vm.pump();
  assert.equal(vm.handler.held.length, before + 1);
}

const shapes: FrontEndOptions[] = [
  {},
  { indirect: false },
  { eventIdx: false },
  { flavour: 'cloud-hypervisor' },
  { queues: 5, queueSize: 1024 },
  { ringsAt: 2 ** 40, buffersAt: 0 },
];
for (const shape of shapes)
  test(`VirtioFsDevice answers what was asked when the front end is ${JSON.stringify(shape)}`, (t) => {
    const vm = started(shape);
    t.after(vm.close);
    for (let i = 1; i <= 300; i++) {
      const queue = vm.front.queues[1 + (i % (vm.front.queues.length - 1))]!;
      const request = queue.request(i % queue.slots);
      const body = (i * 13) % 3000;
      for (let b = 0; b < body; b++) request[40 + b] = (b * i) & 0xff;
      const bytes = fuse.writeRequest(request, { opcode: 1, unique: i }, body);
      assert.equal(vm.front.roundTrip(queue, i % queue.slots, bytes, 16 + body), 16 + body);
      const reply = queue.reply(i % queue.slots);
      assert.equal(fuse.OutHeader.len.get(fuse.viewOf(reply), 0), 16 + body);
      assert.deepEqual(reply.subarray(16, 16 + body), request.subarray(40, 40 + body));
    }
    assert.equal(vm.device.counters.requests, 300);
    assert.deepEqual(vm.faults, []);
  });

test('VirtioFsDevice gives a FORGET back when it has no room for a reply', (t) => {
  const vm = started();
  t.after(vm.close);
  const hiprio = vm.front.queues[0]!;
  const bytes = fuse.writeRequest(hiprio.request(3), { opcode: fuse.FUSE_FORGET, unique: 9 }, 8);
  assert.equal(vm.front.roundTrip(hiprio, 3, bytes, 0), 0);
});

test('VirtioFsDevice answers EIO when the session throws, forgets, or answers too much', (t) => {
  const vm = started();
  t.after(vm.close);
  assert.equal(ask(vm, OPCODE_THROW, 1), -EIO);
  assert.equal(ask(vm, OPCODE_FORGET_TO_ANSWER, 2), -EIO);
  assert.equal(ask(vm, OPCODE_TOO_MUCH, 3, 100, 32), -EIO);
  assert.equal(ask(vm, 1, 4), 0);
  assert.equal(vm.device.counters.sessionFaults, 3);
});

test('VirtioFsDevice keeps a held request over stop and cont', (t) => {
  const vm = started();
  t.after(vm.close);
  const queue = vm.front.queues[1]!;
  holdOne(vm, 0, 77);
  holdOne(vm, 1, 78);
  const bases = vm.front.stop();
  assert.deepEqual(bases, [0, 2]);
  assert.equal(vm.handler.flushes > 0, true);
  vm.handler.answer(vm.handler.held[0]!);
  assert.equal(queue.next(), -1, 'nothing is written while the ring stands still');
  vm.front.start(bases);
  assert.equal(vm.front.complete(queue), 0);
  assert.equal(fuse.OutHeader.unique.get(fuse.viewOf(queue.reply(0)), 0), 77);
  vm.handler.answer(vm.handler.held[1]!);
  assert.equal(vm.front.complete(queue), 1);
  assert.equal(vm.handler.resets, 0);
  assert.equal(vm.device.counters.droppedReplies, 0);
});

test('VirtioFsDevice flushes waiting readers when the ring stops', (t) => {
  const vm = started();
  t.after(vm.close);
  vm.handler.answersOnFlush = true;
  const queue = vm.front.queues[1]!;
  holdOne(vm, 5, 99);
  assert.deepEqual(vm.front.stop(), [0, 1]);
  assert.equal(queue.next(), 5, 'the heartbeat is there before the base is answered');
});

test('VirtioFsDevice drops held requests when the driver starts anew', (t) => {
  const vm = started();
  t.after(vm.close);
  const queue = vm.front.queues[1]!;
  holdOne(vm, 0, 77);
  holdOne(vm, 1, 78);
  vm.front.stop();
  vm.handler.answer(vm.handler.held[0]!);
  for (const each of vm.front.queues) each.resetDriver();
  vm.front.start();
  assert.equal(vm.handler.resets > 0, true);
  const before = vm.front.memory.u8.slice();
  vm.handler.answer(vm.handler.held[1]!);
  vm.pump();
  assert.deepEqual(vm.front.memory.u8, before, 'a late answer touches nothing');
  assert.equal(queue.next(), -1);
  assert.equal(vm.device.counters.droppedReplies, 2);
  assert.equal(ask(vm, 1, 5), 0);
});

test('VirtioFsDevice drops held requests when a reset leaves the base where it was', (t) => {
  const vm = started({ queueSize: 1024 });
  t.after(vm.close);
  const queue = vm.front.queues[1]!;
  const bytes = fuse.writeRequest(queue.request(0), { opcode: 1, unique: 1 }, 0);
  for (let i = 0; i < 65_535; i++) vm.front.roundTrip(queue, 0, bytes, 16);
  holdOne(vm, 1, 78);
  assert.deepEqual(vm.front.stop(), [0, 0], 'our position has wrapped to 0');
  for (const each of vm.front.queues) each.resetDriver();
  vm.front.start();
  vm.handler.answer(vm.handler.held[0]!);
  assert.equal(vm.device.counters.droppedReplies, 1);
  assert.equal(queue.next(), -1);
});

test('VirtioFsDevice writes a held reply by the memory table of now', (t) => {
  const vm = started();
  t.after(vm.close);
  const queue = vm.front.queues[1]!;
  holdOne(vm, 0, 77);
  vm.front.setMemory();
  vm.handler.answer(vm.handler.held[0]!);
  assert.equal(vm.front.complete(queue), 0);
  assert.equal(ask(vm, 1, 6), 0);
});

test('VirtioFsDevice resets the session and closes when the front end hangs up', (t) => {
  const handler = new EchoHandler();
  const vm = inProcess(handler);
  t.after(() => vm.device.close('over'));
  vm.front.handshake();
  vm.front.start();
  holdOne({ ...vm, handler }, 0, 1);
  vm.front.close();
  vm.pump();
  assert.equal(vm.closedBy(), 'the front end hung up');
  assert.equal(handler.resets, 1);
  handler.answer(handler.held[0]!);
  assert.equal(vm.watcher.watched.size, 0);
});

test('VirtioFsDevice ends its turn sooner when requests are long', (t) => {
  const vm = started({ requestBytes: 131_072, replyBytes: 64, queueSize: 16 });
  t.after(vm.close);
  const queue = vm.front.queues[1]!;
  for (let slot = 0; slot < 16; slot++)
    queue.add(slot, fuse.writeRequest(queue.request(slot), { opcode: 1, unique: slot }, 131_072 - 40), 16);
  queue.publish();
  assert.equal(vm.device.process(64), true);
  // 128 KiB count as eight requests beside the one that they are.
  assert.equal(vm.device.counters.requests, 8);
  assert.equal(vm.device.process(64), false);
  assert.equal(vm.device.counters.requests, 16);
});
