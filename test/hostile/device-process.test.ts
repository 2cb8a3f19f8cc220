/** The same malformed rings and messages to a real device process, which serves a second VM throughout. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VIRTIO_RING_F_INDIRECT_DESC } from '../../src/virtio/messages.ts';
import { DESC_INDIRECT, DESC_NEXT, DESC_WRITE, fuse } from '../front-end/index.ts';
import { Bystander, complete, connect, guessingClient, init, Served } from './device.ts';
import { allFuseCases } from './fuse-cases.ts';
import { hold } from './held.ts';
import { allMessageCases, say } from './message-cases.ts';
import { allRingCases } from './ring-cases.ts';

const shape = { queueSize: 16, indirect: false, requestBytes: 16_384, replyBytes: 32_768 };

test('a device process serves another VM while one says every bad message', async (t) => {
  await using served = await Served.start(2);
  await using other = await Served.start(1);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  using elsewhere = await Bystander.connect(other.sockets[0]!);
  for (const each of allMessageCases) {
    const front = connect(hostile, { queueSize: 16 }, each.after ?? 'start');
    say(front, each);
    bystander.ask();
    elsewhere.ask();
    front.close();
  }
  const last = connect(hostile);
  await init(last);
  last.close();
  served.assertAlive();
  t.diagnostic(`${allMessageCases.length} messages`);
  t.diagnostic(bystander.report('second VM of the device process'));
  t.diagnostic(elsewhere.report('VM of another device process'));
});

test('a device process serves another VM while one makes every malformed ring', async (t) => {
  await using served = await Served.start(2);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  for (const { name, without, spoil } of allRingCases) {
    const front = connect(hostile, shape, 'handshake');
    try {
      if (without !== undefined) front.featuresLo &= ~(1 << VIRTIO_RING_F_INDIRECT_DESC);
      front.start();
      spoil(front, front.queues[1]!);
      bystander.ask();
      // The control socket is still answered, and a reset makes the device whole.
      front.stop();
      for (const queue of front.queues) queue.resetDriver();
      front.start();
      await init(front);
    } catch (error) {
      throw new Error(`after "${name}"`, { cause: error });
    } finally {
      front.close();
    }
  }
  served.assertAlive();
  assert.ok(served.events.some((event) => event.event === 'target' && event.what === 'broken'));
  t.diagnostic(`${allRingCases.length} rings`);
  t.diagnostic(bystander.report('second VM of the device process'));
});

test('a device process serves another VM while one sends every malformed FUSE request', async (t) => {
  await using served = await Served.start(2);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  const front = connect(hostile, { queueSize: 8, requestBytes: 131_072, replyBytes: 131_072 });
  t.after(() => front.close());
  const queue = front.queues[1]!;
  const send = async (frame: Uint8Array, room = 65_536): Promise<DataView> => {
    queue.request(0).set(frame);
    queue.add(0, frame.length, room);
    queue.publish();
    assert.equal(await complete(queue), 0, 'the request is given back');
    return fuse.viewOf(queue.reply(0));
  };
  for (const { name, frame, room, beforeInit } of allFuseCases) {
    const held = await hold(guessingClient(), send);
    if (beforeInit === true) await send(held.client.frame('DESTROY'));
    try {
      await send(frame(held), room);
    } catch (error) {
      throw new Error(`after "${name}"`, { cause: error });
    }
    bystander.ask();
    assert.equal(served.server.devicePid, served.pid, `the device process lives after "${name}"`);
  }
  served.assertAlive();
  assert.deepEqual(
    served.events.filter(({ event }) => event === 'trouble'),
    [],
  );
  const counters = (await served.server.statistics(60_000))!;
  assert.equal(counters['fuse.bugs'], 0);
  assert.equal(counters['sessionFaults'], 0);
  t.diagnostic(`${allFuseCases.length} requests`);
  t.diagnostic(bystander.report('second VM of the device process'));
});

test('a device process serves another VM while one makes the longest chains that there can be', async (t) => {
  await using served = await Served.start(2);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  const size = 1024;
  const front = connect(hostile, { queueSize: size, requestBytes: 1024, replyBytes: 64 });
  t.after(() => front.close());
  await init(front);
  const queue = front.queues[1]!;
  const { memory } = front;
  // One table that all heads point to: 1,023 pieces of 1,024 bytes to read, and room for an error.
  const table = new Uint32Array(memory.u8.buffer, queue.layout.tablesOffset, size * 4);
  const pieces = memory.guestAddrOf(queue.layout.buffersOffset);
  for (let i = 0; i < size; i++) {
    const isLast = i === size - 1;
    const address = pieces + (isLast ? 1024 : i * 1088);
    const flags = isLast ? DESC_WRITE : DESC_NEXT | ((i + 1) << 16);
    table.set([address % 2 ** 32, Math.floor(address / 2 ** 32), isLast ? 16 : 1024, flags], i * 4);
  }
  const at = memory.guestAddrOf(queue.layout.tablesOffset);
  for (let head = 0; head < size; head++)
    queue.desc.set([at % 2 ** 32, Math.floor(at / 2 ** 32), size * 16, DESC_INDIRECT], head * 4);
  let given = 1;
  for (let round = 0; round < 20; round++) {
    for (let head = 0; head < size; head++) queue.addHead(head);
    queue.publish();
    for (let done = 0; done < size; ) {
      bystander.ask();
      const now = Atomics.load(queue.used, 1);
      done += (now - given) & 0xffff;
      given = now;
    }
  }
  served.assertAlive();
  t.diagnostic(`${20 * size} chains of ${size} descriptors and 1 MiB`);
  t.diagnostic(bystander.report('second VM of the device process'));
});
