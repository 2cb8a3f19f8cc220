/** Every malformed FUSE request through the front end to a session over a real tree: one answer that fits, and no more. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { abi, FuseSession } from '../../src/fuse/index.ts';
import { ways } from '../../src/tree/index.ts';
import { type FrontQueue, fuse, type InProcess, inProcess } from '../front-end/index.ts';
import { Client } from '../fuse/client.ts';
import { assertHostAccepts } from '../fuzz/mutations.ts';
import { Symlink, World } from '../tree/world.ts';
import { allFuseCases, type FuseCase, type Held } from './fuse-cases.ts';
import { hold } from './held.ts';
import { fillBuffers, MemoryGuard } from './memory-guard.ts';

const ROOM = 65_536;
const shape = { queueSize: 4, requestBytes: 131_072, replyBytes: ROOM + 4096 };
const content = { instance: { id: 'i-1', link: new Symlink('id') }, guest: {} };

interface Vm extends InProcess {
  readonly session: FuseSession;
  readonly log: string[];
}

function started(world: World): Vm {
  const log: string[] = [];
  const session = new FuseSession(world.fileSystem(ways.virtiofs), {
    transport: 'virtiofs',
    clock: world.clock,
    log: (message) => log.push(message),
  });
  const vm = { ...inProcess(session, shape), session, log };
  vm.front.handshake();
  vm.front.start();
  return vm;
}

/** Sends a frame in slot 0; returns how much came back. */
function send(vm: Vm, frame: Uint8Array, room = ROOM): number {
  const queue = vm.front.queues[1]!;
  queue.request(0).set(frame);
  return vm.front.roundTrip(queue, 0, frame.length, room);
}

const replyOf = (queue: FrontQueue): DataView => fuse.viewOf(queue.reply(0));

/** Answers come while the request is sent: device and session live in this thread. */
const sendTo =
  (vm: Vm) =>
  (frame: Uint8Array): Promise<DataView> => {
    send(vm, frame);
    return Promise.resolve(replyOf(vm.front.queues[1]!));
  };

async function check(world: World, bystander: { vm: Vm; held: Held }, each: FuseCase): Promise<void> {
  const vm = started(world);
  try {
    const held =
      each.beforeInit === true
        ? { ...bystander.held, client: new Client(vm.session) }
        : await hold(new Client(vm.session), sendTo(vm));
    const queue = vm.front.queues[1]!;
    const room = each.room ?? ROOM;
    const frame = each.frame(held);
    fillBuffers(vm.front);
    queue.request(0).set(frame);
    queue.add(0, frame.length, room);
    const guard = new MemoryGuard(vm.front);
    queue.publish();
    assert.equal(vm.front.complete(queue), 0, 'the request is given back');
    const offset = queue.layout.buffersOffset + queue.layout.requestBytes;
    const stray = guard.stray([
      { offset, bytes: queue.usedBytes },
      // The driver's own index and event.
      { offset: queue.layout.availOffset, bytes: 6 + queue.size * 2 },
    ]);
    assert.equal(stray, undefined, `byte ${stray} of memory changed, which was not given to be written`);
    assert.equal(vm.session.bugs, 0, vm.log.join('\n'));
    assert.equal(vm.device.counters.sessionFaults, 0, vm.faults.join('\n'));
    assert.equal(vm.device.brokenBy, undefined);
    if (each.expects === 'silent') assert.equal(queue.usedBytes, 0);
    else {
      const reply = replyOf(queue);
      assert.ok(queue.usedBytes >= 16 && queue.usedBytes <= room);
      assert.equal(abi.OutHeader.len.get(reply, 0), queue.usedBytes);
      const errno = 0 - abi.OutHeader.error.get(reply, 0);
      if (each.expects === 'errno') assert.ok(errno > 0 && errno < 134, `it was answered with errno ${errno}`);
      if (errno !== 0) assert.equal(queue.usedBytes, 16, 'an error has no body');
    }
    const other = await sendTo(bystander.vm)(bystander.held.client.frame('GETATTR', { nodeid: bystander.held.file }));
    assert.equal(abi.OutHeader.error.get(other, 0), 0);
    // And the hostile guest itself can start anew.
    await hold(new Client(vm.session), sendTo(vm));
  } finally {
    vm.close();
  }
}

test('FuseSession answers each request once, within its room, when the request is', async (t) => {
  const world = new World({ content });
  world.onMutation = assertHostAccepts;
  const vm = started(world);
  t.after(vm.close);
  const bystander = { vm, held: await hold(new Client(vm.session), sendTo(vm)) };
  for (const each of allFuseCases) await t.test(each.name, () => check(world, bystander, each));
  t.diagnostic(`${allFuseCases.length} malformed FUSE requests`);
});
