/** Every bad vhost-user message to a device in this process: refused as a whole, nothing left open, no memory changed. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import * as vu from '../../src/virtio/messages.ts';
import { EchoHandler, fuse, type InProcess, inProcess } from '../front-end/index.ts';
import { fillBuffers, MemoryGuard } from './memory-guard.ts';
import { allMessageCases, type MessageCase, say } from './message-cases.ts';

const openFds = (): number => readdirSync('/proc/self/fd').length;

function serveGoodRequest(vm: InProcess): void {
  const queue = vm.front.queues[1]!;
  const bytes = fuse.writeRequest(queue.request(1), { opcode: 1, unique: 9 }, 8);
  assert.equal(vm.front.roundTrip(queue, 1, bytes, 24), 24);
}

function check(vm: InProcess, each: MessageCase): void {
  const { front } = vm;
  if (each.after !== 'connect') front.handshake();
  if (each.after === undefined) front.start();
  fillBuffers(front);
  const guard = new MemoryGuard(front);
  const isDue = say(front, each);
  for (let turn = 0; turn < 3; turn++) vm.pump();
  const { expects } = each;
  const reason = vm.closedBy();
  if (expects === 'ended') assert.notEqual(reason, undefined, 'the connection ends');
  if (expects === 'taken' || expects === 'waits') assert.equal(reason, undefined);
  if (reason === undefined && isDue && (expects === 'refused' || expects === 'taken')) {
    const answer = front.receive();
    if (answer.byteLength === vu.U64.sizeBytes && expects === 'refused')
      assert.equal(vu.U64.value.get(answer, 0), 1, 'the message is refused');
    // A connection that lives goes on to be understood.
    front.settle();
  }
  assert.equal(guard.stray(each.mayWrite?.(front) ?? []), undefined, 'no memory changed');
}

test('BackEnd refuses and serves others when a front end says', async (t) => {
  const bystander = inProcess(new EchoHandler());
  t.after(bystander.close);
  bystander.front.handshake();
  bystander.front.start();
  for (const each of allMessageCases)
    await t.test(each.name, () => {
      const fds = openFds();
      const vm = inProcess(new EchoHandler(), { queueSize: 16 });
      try {
        check(vm, each);
        serveGoodRequest(bystander);
      } finally {
        vm.close();
      }
      assert.equal(openFds(), fds, 'no descriptor is left open');
    });
  t.diagnostic(`${allMessageCases.length} bad messages`);
});
