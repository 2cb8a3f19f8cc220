/** The same malformed rings and messages to a real device process, which serves a second VM throughout. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VIRTIO_RING_F_INDIRECT_DESC } from '../../src/virtio/messages.ts';
import { Bystander, connect, init, Served } from './device.ts';
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
