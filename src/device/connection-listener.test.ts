import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { close, connectUnix, eventfd, listenUnix } from '../sys/index.ts';
import { EAGAIN } from '../wire/index.ts';
import { ConnectionListener } from './connection-listener.ts';
import { openListeningSocket } from './listening-socket.ts';
import { Loop } from './loop.ts';

test('ConnectionListener takes so many a second, and the others when the second is over', async () => {
  using directory = temporary();
  const at = path.join(directory.path, 's');
  const loop = new Loop(0);
  const taken: number[] = [];
  const clients: number[] = [];
  const listener = new ConnectionListener(listenUnix(at, 64), loop, (fd) => {
    if ([20, 30].includes(taken.push(fd))) loop.stop();
  });
  for (let i = 0; i < 30; i++) clients.push(connectUnix(at));
  const start = performance.now();
  await loop.run();
  assert.equal(taken.length, 20);
  const turns = loop.counters.turns;
  await loop.run();
  assert.equal(taken.length, 30);
  assert.ok(performance.now() - start >= 999);
  assert.ok(loop.counters.turns - turns < 100, `it slept: ${loop.counters.turns - turns} turns`);
  listener.close();
  loop.close();
  for (const fd of [...clients, ...taken]) close(fd);
});

test('ConnectionListener does not spin over connections that can not be taken', async () => {
  const loop = new Loop(0);
  const listener = new ConnectionListener(eventfd(1), loop, () => assert.fail('there is nothing to take'));
  let endMs = Number.POSITIVE_INFINITY;
  loop.serve({
    servedCount: 0,
    process: () => {
      // From the first turn on, however late that is.
      if (endMs === Number.POSITIVE_INFINITY) endMs = performance.now() + 1500;
      if (loop.counters.turns > 1000) loop.stop();
      return false;
    },
    suppressKicks: () => false,
    nextDeadlineMs: () => endMs,
    tick: () => loop.stop(),
  });
  await loop.run();
  assert.ok(loop.counters.turns < 100, `${loop.counters.turns} turns`);
  listener.close();
  loop.close();
});

test('openListeningSocket leaves a socket that is too busy to answer, and does not wait for it', () => {
  using directory = temporary();
  const at = path.join(directory.path, 's');
  const listening = listenUnix(at, 0);
  const connect = (): number => connectUnix(at, 'stream', false);
  const clients = [connect()];
  while (clients.at(-1)! >= 0) clients.push(connect());
  assert.equal(clients.pop(), -EAGAIN);
  assert.throws(() => openListeningSocket({ path: at, mode: 0o600 }), /another process listens/);
  for (const fd of [...clients, listening]) close(fd);
});

function temporary(): Disposable & { readonly path: string } {
  const made = mkdtempSync(path.join(tmpdir(), 'porthole-listener-'));
  return { path: made, [Symbol.dispose]: () => rmSync(made, { recursive: true }) };
}
