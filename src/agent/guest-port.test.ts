import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { Stage } from '../../test/imds/stage.ts';
import { until } from '../../test/until.ts';
import { Loop } from '../device/index.ts';
import { SerialMux } from '../imds/index.ts';
import { AgentTree } from './agent-tree.ts';
import { parseServerAddress } from './server-address.ts';

const clock = { wallMs: () => Date.now(), monotonicMs: () => performance.now() };

test('AgentTree follows its server over a port of the guest that comes late, and again when it was cut off', async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-port-'));
  await using stage = await Stage.start({ content: { instance: { id: 'i-1' } } });
  const host = createServer((socket) => {
    const mux = new SerialMux(socket, {
      onConnection: (stream) => stage.server.accept(stream, { kind: 'virtio-serial', privileged: true }),
    });
    socket.once('close', () => mux.destroy());
  }).listen(path.join(directory, 'host.sock'));
  const port = path.join(directory, 'port');
  // What a character device is here: read and written without waiting, and hung up on.
  const line = (): ChildProcess =>
    spawn('socat', [`PTY,link=${port},raw,echo=0`, `UNIX-CONNECT:${path.join(directory, 'host.sock')}`]);
  const loop = new Loop(0);
  const looping = loop.run();
  let lastMs = performance.now();
  loop.serve({
    process: () => false,
    servedCount: 0,
    suppressKicks: () => false,
    nextDeadlineMs: () => lastMs + 5,
    tick: (nowMs) => {
      lastMs = nowMs;
      loop.yieldToNode();
    },
  });
  const waiting: string[] = [];
  const connections: (string | undefined)[] = [];
  const tree = new AgentTree({
    server: parseServerAddress(`virtio-serial:${port}`),
    clock,
    loop,
    onWaiting: (why) => waiting.push(why),
    onConnected: (why) => connections.push(why),
  });
  const following = tree.follow();
  let socat: ChildProcess | undefined;
  t.after(async () => {
    await tree.close();
    await following;
    loop.stop();
    await looping;
    socat?.kill();
    host.close();
    rmSync(directory, { recursive: true, force: true });
  });
  await until('it to find no port', () => waiting.some((why) => why.includes('ENOENT')));
  socat = line();
  await tree.loaded;
  assert.ok(tree.replica.snapshot.resolve('/instance/id'));
  socat.kill('SIGKILL');
  await until('it to notice', () => connections.some((why) => why !== undefined));
  rmSync(port, { force: true });
  socat = line();
  const before = connections.filter((why) => why === undefined).length;
  await until('it to follow again', () => connections.filter((why) => why === undefined).length > before);
});

test('parseServerAddress knows the ports that a hypervisor gives its guest', () => {
  assert.deepEqual(parseServerAddress('vsock:2:80').guestPort, { kind: 'vsock', cid: 2, port: 80 });
  assert.deepEqual(parseServerAddress('virtio-serial:/dev/vport0p1').guestPort, {
    kind: 'virtio-serial',
    path: '/dev/vport0p1',
  });
  for (const text of ['vsock:2', 'vsock:2:99999999999', 'virtio-serial:port', 'vsock:2:80:1'])
    assert.throws(() => parseServerAddress(text), /write unix:PATH, http/);
});
