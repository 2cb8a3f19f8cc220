/** The same malformed rings and messages to a real device process, which serves a second VM throughout. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VIRTIO_RING_F_INDIRECT_DESC } from '../../src/virtio/messages.ts';
import { fuse } from '../front-end/index.ts';
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
  const counters = (await served.server.statistics())!;
  assert.equal(counters['fuse.bugs'], 0);
  assert.equal(counters['sessionFaults'], 0);
  t.diagnostic(`${allFuseCases.length} requests`);
  t.diagnostic(bystander.report('second VM of the device process'));
});
