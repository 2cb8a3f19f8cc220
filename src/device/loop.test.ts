import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { setImmediate as turnOfNode } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { DriverData, DriverResult } from '../../test/front-end/driver-worker.ts';
import { EchoHandler, FrontEnd, fuse } from '../../test/front-end/index.ts';
import { until } from '../../test/until.ts';
import { close, EPOLLET, EPOLLIN, eventfd, setNonBlocking, signalEventfd, socketPair } from '../sys/index.ts';
import { VirtioFsDevice } from '../virtio/index.ts';
import { Loop, type Served } from './loop.ts';

const ROUNDS = 4000;
const worker = new URL('../../test/front-end/driver-worker.ts', import.meta.url);

for (const eventIdx of [true, false])
  for (const spinMs of [0, 0.05])
    test(`Loop loses no wake-up when EVENT_IDX is ${eventIdx ? 'on' : 'off'} and it spins ${spinMs} ms`, async (t) => {
      const pair = socketPair();
      assert.ok(typeof pair !== 'number');
      setNonBlocking(pair[1], true);
      const loop = new Loop(spinMs);
      const device = new VirtioFsDevice(pair[1], new EchoHandler(), loop, { onClosed: () => loop.stop() });
      loop.serve(device);
      const workerData: DriverData = { controlFd: pair[0], eventIdx, rounds: ROUNDS };
      const driver = new Worker(worker, { workerData });
      const told = once(driver, 'message') as Promise<[DriverResult]>;
      await loop.run();
      const [result] = await told;
      loop.close();
      assert.equal(result.failure, undefined);
      assert.equal(device.servedCount, result.completed);
      assert.ok(loop.counters.sleeps > 0, 'it did sleep');
      t.diagnostic(`${result.completed} requests, ${result.kicks} kicks, ${JSON.stringify(loop.counters)}`);
    });

test('Loop tells of each time that an edge-triggered eventfd is written, and sleeps though nobody reads it', async () => {
  const loop = new Loop(0);
  const fd = eventfd(3);
  let told = 0;
  let toldMs = Number.POSITIVE_INFINITY;
  loop.watch(
    fd,
    () => {
      if (++told < 3) signalEventfd(fd);
      else toldMs = performance.now();
    },
    EPOLLIN | EPOLLET,
  );
  loop.serve({
    servedCount: 0,
    process: () => false,
    suppressKicks: () => false,
    nextDeadlineMs: () => toldMs + 200,
    tick: () => loop.stop(),
  });
  await loop.run();
  assert.equal(told, 3);
  assert.ok(loop.counters.turns < 50, `${loop.counters.turns} turns`);
  loop.close();
  close(fd);
});

test('Loop calls tick when the deadline of a device has come', async () => {
  const loop = new Loop();
  const start = performance.now();
  let ticks = 0;
  const device: Served = {
    servedCount: 0,
    process: () => false,
    suppressKicks: () => false,
    nextDeadlineMs: () => start + 10 * (ticks + 1),
    tick(nowMs) {
      assert.ok(nowMs >= start + 10 * (ticks + 1));
      if (++ticks === 3) loop.stop();
    },
  };
  loop.serve(device);
  await loop.run();
  loop.close();
  assert.equal(ticks, 3);
  assert.ok(loop.counters.sleeps < 20, 'it sleeps in between');
});

test('Loop gives Node the turns that are asked for in its own, and serves in between', async () => {
  const loop = new Loop(0);
  let served = 0;
  loop.serve({
    servedCount: 0,
    process: () => {
      served++;
      return false;
    },
    suppressKicks: () => false,
    nextDeadlineMs: () => Number.POSITIVE_INFINITY,
    tick: () => undefined,
  });
  const running = loop.run();
  for (let turn = 0; turn < 10; turn++) {
    loop.yieldToNode();
    await turnOfNode();
  }
  loop.stop();
  loop.yieldToNode();
  await running;
  loop.close();
  assert.ok(served >= 9, `served ${served} times`);
});

test('Loop does not call back for an fd that was unwatched in the same turn', async () => {
  const loop = new Loop();
  const [a, b] = [eventfd(), eventfd()];
  let calls = 0;
  const onReady = (): void => {
    calls++;
    loop.unwatch(a);
    loop.unwatch(b);
    loop.stop();
  };
  loop.watch(a, onReady);
  loop.watch(b, onReady);
  signalEventfd(a);
  signalEventfd(b);
  await loop.run();
  loop.close();
  assert.equal(calls, 1);
  for (const fd of [a, b]) close(fd);
});

test('a device process serves two front ends over a socket path, and ends on SIGTERM', async (t) => {
  const dir = await mkdtemp('/tmp/porthole-loop-');
  t.after(() => rm(dir, { recursive: true }));
  const socket = path.join(dir, 's');
  const script = path.join(import.meta.dirname, '../../test/front-end/echo-device.ts');
  const child = spawn(process.execPath, [script, socket], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const connected = (): FrontEnd | undefined => {
    try {
      return FrontEnd.connect(socket);
    } catch {
      return undefined;
    }
  };
  const first = await until('the device process to listen', connected);
  const fronts = [first, FrontEnd.connect(socket, { flavour: 'cloud-hypervisor' })];
  for (const front of fronts) {
    front.handshake();
    front.start();
  }
  for (let i = 0; i < 200; i++) {
    const front = fronts[i & 1]!;
    const queue = front.queues[1]!;
    const bytes = fuse.writeRequest(queue.request(0), { opcode: 1, unique: i }, 8);
    assert.equal(front.roundTrip(queue, 0, bytes, 24), 24);
  }
  for (const front of fronts) front.close();
  let output = '';
  child.stdout.on('data', (chunk) => {
    output += String(chunk);
  });
  child.kill('SIGTERM');
  const [code] = await once(child, 'close');
  assert.equal(code, 0);
  assert.match(output, /"turns":\d+/);
});
