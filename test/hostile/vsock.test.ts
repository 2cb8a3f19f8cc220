/** Every malformed vsock packet and chain through the front end: it is answered or dropped, and nobody else notices. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { MAX_VSOCK_CONNECTIONS, type VsockService, type VsockServices } from '../../src/virtio/index.ts';
import { op } from '../front-end/vsock-driver.ts';
import { VsockStage } from '../front-end/vsock-in-process.ts';
import {
  BYSTANDER,
  DEAF_PORT,
  ECHO_PORT,
  FLOOD_BYTES,
  FLOOD_PORT,
  packetCases,
  VICTIM,
  type VsockCase,
} from './vsock-cases.ts';

const nothing = { drained: () => undefined, ended: () => undefined, closed: () => undefined };
const echo: VsockService = (stream) => ({
  ...nothing,
  receive: (bytes) => {
    stream.write(bytes);
    return bytes.length;
  },
});
const services: VsockServices = new Map<number, VsockService>([
  [ECHO_PORT, echo],
  [DEAF_PORT, () => ({ ...nothing, receive: () => 0 })],
  [
    FLOOD_PORT,
    (stream) => {
      stream.write(new Uint8Array(FLOOD_BYTES));
      return { ...nothing, receive: (bytes) => bytes.length };
    },
  ],
]);

const stageOf = (): VsockStage => {
  const stage = new VsockStage({ services });
  open(stage, VICTIM);
  open(stage, BYSTANDER);
  return stage;
};
function open(stage: VsockStage, srcPort: number): void {
  stage.driver.send({ op: op.request, srcPort, dstPort: ECHO_PORT });
  assert.deepEqual(
    stage.packets().map(({ fields }) => fields.op),
    [op.response],
  );
}
/** Whether the echo answers on a connection of the guest's port. */
function echoes(stage: VsockStage, srcPort: number, fwdCnt = 0): boolean {
  stage.driver.send({ srcPort, dstPort: ECHO_PORT, fwdCnt }, Uint8Array.of(7, 8, 9));
  const [answer] = stage.packets();
  assert.ok(answer !== undefined, 'there is an answer');
  if (answer.fields.op === op.rst) return false;
  assert.deepEqual([answer.fields.op, ...answer.data], [op.rw, 7, 8, 9]);
  return true;
}

function check(
  stage: VsockStage,
  other: VsockStage,
  { act, expects, victimEnds = expects === 'victim' }: VsockCase,
): void {
  act(stage);
  const packets = stage.packets();
  const resets = packets.filter(({ fields }) => fields.op === op.rst);
  assert.deepEqual(stage.faults, stage.device.brokenBy === undefined ? [] : [stage.device.brokenBy]);
  assert.equal(stage.closedBy, undefined);
  assert.equal(stage.device.brokenBy !== undefined, expects === 'broken', stage.device.brokenBy ?? 'it did not break');
  if (expects === 'nothing' || expects === 'broken') assert.deepEqual(packets, []);
  if (expects === 'answered') assert.deepEqual([packets.length > 0, resets], [true, []]);
  if (expects === 'victim' || expects === 'stranger') {
    assert.ok(resets.length > 0, 'it is reset');
    const isVictim = ({ fields }: (typeof resets)[number]): boolean =>
      fields.srcCid === 2 && fields.type === 1 && fields.dstPort === VICTIM && fields.srcPort === ECHO_PORT;
    if (!victimEnds) assert.equal(resets.some(isVictim), false);
    if (expects === 'victim') assert.ok(resets.every(isVictim));
  }
  const sent = packets.reduce((sum, { data }) => sum + data.length, 0);
  assert.ok(sent < 1000, `a guest with no room was sent ${sent} bytes`);
  if (expects === 'broken') {
    // The driver resets: the device is as good as new, and knows of nothing.
    stage.driver.front.stop();
    for (const queue of stage.driver.front.queues) queue.resetDriver();
    stage.driver.front.start();
    stage.driver.fill(stage.driver.rx.slots);
    assert.equal(stage.device.mux.connectionCount, 0);
    open(stage, BYSTANDER);
  } else {
    // A guest that lied about its credit tells the truth from here on.
    const took = packets.reduce((sum, { fields, data }) => sum + (fields.dstPort === VICTIM ? data.length : 0), 0);
    assert.equal(echoes(stage, VICTIM, took), !victimEnds, 'the victim');
  }
  assert.ok(echoes(stage, BYSTANDER), 'the bystander');
  assert.ok(echoes(other, VICTIM, other.device.mux.counters.bytesOut), 'another VM');
}

test('VsockDevice answers or drops, and serves everybody else, when a guest sends', async (t) => {
  using other = stageOf();
  const before = readdirSync('/proc/self/fd').length;
  for (const each of packetCases)
    await t.test(each.name, () => {
      using stage = stageOf();
      check(stage, other, each);
    });
  assert.equal(readdirSync('/proc/self/fd').length, before, 'every descriptor is closed');
  t.diagnostic(`${packetCases.length} malformed packets and chains`);
});

test('VsockDevice serves as many connections as it may, and refuses the others, when a guest floods it', () => {
  using stage = new VsockStage({ services });
  let responses = 0;
  let resets = 0;
  for (let srcPort = 1; srcPort <= MAX_VSOCK_CONNECTIONS + 500; srcPort++) {
    stage.driver.send({ op: op.request, srcPort, dstPort: ECHO_PORT });
    for (const { fields } of stage.packets())
      if (fields.op === op.response) responses++;
      else if (fields.op === op.rst) resets++;
  }
  assert.deepEqual([responses, resets], [MAX_VSOCK_CONNECTIONS, 500]);
  assert.ok(echoes(stage, 1));
  stage.driver.send({ op: op.rst, srcPort: 1, dstPort: ECHO_PORT });
  assert.deepEqual(stage.packets(), []);
  open(stage, 1);
});

test('VsockDevice takes no more than it can answer when a guest gives no buffers, and then answers all', () => {
  using stage = new VsockStage({ services }, false);
  const { driver } = stage;
  let sent = 0;
  for (let srcPort = 1; srcPort <= 5000; srcPort++) {
    if (!driver.send({ op: op.request, srcPort, dstPort: 1 })) break;
    sent++;
    stage.pump();
  }
  assert.ok(sent < 2000, `${sent} packets were taken`);
  driver.fill(driver.rx.slots);
  const resets = stage.packets();
  assert.equal(resets.length, sent);
  assert.deepEqual(
    resets.map(({ fields }) => fields.dstPort),
    Array.from({ length: sent }, (_, index) => index + 1),
  );
});

test('VsockDevice gives back buffers that are no buffers, and serves with those that are', () => {
  using stage = new VsockStage({ services }, false);
  const { driver } = stage;
  for (const [slot, bytes] of [1, 44].entries()) driver.give(slot, bytes);
  const { table, at } = driver.rx.chain(2);
  table.set([0, 2 ** 13, 100, 2], at * 4);
  driver.rx.addHead(driver.rx.headOf(2));
  driver.give(3, 45);
  driver.give(4);
  driver.rx.publish();
  driver.send({ op: op.request, srcPort: 1, dstPort: ECHO_PORT });
  driver.send({ srcPort: 1, dstPort: ECHO_PORT }, Uint8Array.of(1));
  stage.pump();
  const used = [0, 1, 2, 3, 4].map(() => [driver.rx.next(), driver.rx.usedBytes]);
  assert.deepEqual(used, [
    [0, 0],
    [1, 0],
    [2, 0],
    [3, 44],
    [4, 45],
  ]);
  assert.equal(stage.device.counters.badChains, 3);
});
