import assert from 'node:assert/strict';
import { fstatSync, readlinkSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import * as sys from './index.ts';

const EAGAIN = 11;
const EBADF = 9;
const EPERM = 1;
const EINVAL = 22;
const ENAMETOOLONG = 36;

test('Mapping reads and writes beyond 4 GiB', () => {
  const sizeBytes = 6 * 2 ** 30;
  const fd = sys.memfd('large', sizeBytes);
  assert.ok(fd >= 0);
  assert.equal(sys.fileSize(fd), sizeBytes);
  const mapping = sys.Mapping.map(fd, 0, sizeBytes);
  assert.ok(mapping instanceof sys.Mapping);
  const u8 = new Uint8Array(mapping.buffer);
  const u32 = new Uint32Array(mapping.buffer);
  u32[sizeBytes / 4 - 1] = 0x04030201;
  u8[5 * 2 ** 30] = 9;
  assert.deepEqual([...u8.subarray(sizeBytes - 4)], [1, 2, 3, 4]);
  const window = sys.Mapping.map(fd, 5 * 2 ** 30, 4096);
  assert.ok(window instanceof sys.Mapping);
  assert.equal(new Uint8Array(window.buffer)[0], 9, 'the file has it at that offset, not at its low 32 bits');
  window.unmap();
  mapping.unmap();
  sys.close(fd);
});

test('Mapping detaches every view when it is unmapped', () => {
  const fd = sys.memfd('short', 8192);
  const mapping = sys.Mapping.map(fd, 4096, 4096);
  assert.ok(mapping instanceof sys.Mapping);
  const kept = new Uint8Array(mapping.buffer);
  kept[0] = 1;
  mapping.unmap();
  mapping.unmap();
  assert.equal(kept.length, 0);
  kept[0] = 2;
  assert.equal(kept[0], undefined);
  assert.throws(() => mapping.buffer, /no longer mapped/);
  sys.close(fd);
});

test('Mapping rounds to pages when the offset is within one', () => {
  const fd = sys.memfd('offset', 16384);
  const all = sys.Mapping.map(fd, 0, 16384);
  const part = sys.Mapping.map(fd, 4096 + 512, 5000, 4096);
  assert.ok(all instanceof sys.Mapping && part instanceof sys.Mapping);
  new Uint8Array(all.buffer)[4096 + 512 + 4999] = 7;
  assert.equal(new Uint8Array(part.buffer)[4999], 7);
  all.unmap();
  part.unmap();
  sys.close(fd);
});

test('memfd cannot shrink when it is sealed', () => {
  const fd = sys.memfd('sealed', 8192);
  assert.equal(sys.getSeals(fd), 0);
  assert.equal(sys.addSeals(fd, sys.F_SEAL_SHRINK), 0);
  assert.equal(sys.getSeals(fd), sys.F_SEAL_SHRINK);
  assert.equal(sys.truncate(fd, 4096), -EPERM);
  assert.equal(sys.truncate(fd, 16384), 0);
  sys.close(fd);
});

test('punchHole gives pages back, which read as zeros', () => {
  const fd = sys.memfd('hole', 16384);
  const mapping = sys.Mapping.map(fd, 0, 16384);
  assert.ok(typeof mapping !== 'number');
  const bytes = new Uint8Array(mapping.buffer).fill(1);
  const { blocks } = fstatSync(fd);
  assert.equal(sys.punchHole(fd, 4096, 8192), 0);
  assert.equal(fstatSync(fd).blocks, blocks / 2);
  assert.deepEqual([bytes[4095], bytes[4096], bytes[12287], bytes[12288]], [1, 0, 0, 1]);
  mapping.unmap();
  sys.close(fd);
  assert.equal(sys.punchHole(-1, 0, 4096), -EBADF);
});

test('calls return the negative errno when they fail', () => {
  const buffer = new Uint8Array(8);
  assert.equal(sys.close(-1), -EBADF);
  assert.equal(sys.read(-1, buffer), -EBADF);
  assert.equal(sys.read(0, buffer, 9), -EINVAL, 'more bytes than the buffer has');
  assert.equal(sys.getSeals(-1), -EBADF);
  assert.equal(sys.Mapping.map(-1, 0, 4096), -EBADF);
  assert.equal(sys.Mapping.map(0, -4096, 4096), -EINVAL);
  assert.equal(sys.listenUnix(`/${'x'.repeat(108)}`), -ENAMETOOLONG);
  assert.equal(sys.unmount('/nonexistent'), -2);
});

test('eventfd wakes epoll and counts down', () => {
  const epoll = new sys.Epoll(4);
  const fds = [sys.eventfd(), sys.eventfd(), sys.eventfd()];
  for (const fd of fds) assert.equal(epoll.add(fd, sys.EPOLLIN), 0);
  assert.equal(epoll.wait(0), 0);
  sys.signalEventfd(fds[2]!);
  sys.signalEventfd(fds[0]!);
  assert.equal(epoll.wait(30_000), 2);
  assert.deepEqual([epoll.eventFd(0), epoll.eventFd(1)].toSorted(), [fds[0], fds[2]].toSorted());
  assert.equal(epoll.eventBits(1), sys.EPOLLIN);
  assert.equal(sys.drainEventfd(fds[2]!), 8);
  assert.equal(sys.drainEventfd(fds[2]!), -EAGAIN);
  assert.equal(epoll.remove(fds[0]!), 0);
  assert.equal(epoll.wait(0), 0);
  epoll.close();
  for (const fd of fds) sys.close(fd);
});

test('uvBackendFd becomes readable when Node has something to do', async () => {
  const fd = sys.uvBackendFd();
  assert.match(readlinkSync(`/proc/self/fd/${fd}`), /eventpoll/);
  const epoll = new sys.Epoll();
  assert.equal(epoll.add(fd, sys.EPOLLIN), 0);
  const got = new Promise<void>((resolve) => process.once('SIGHUP', resolve));
  await new Promise((resolve) => setImmediate(resolve));
  process.kill(process.pid, 'SIGHUP');
  let count = epoll.wait(30_000);
  if (count === -4) count = epoll.wait(30_000);
  assert.equal(count, 1, 'a signal that libuv caught wakes the blocking wait');
  await got;
  epoll.close();
});

test('receiveWithFds hands over open descriptors, closed on exec', () => {
  const pair = sys.socketPair();
  assert.ok(typeof pair !== 'number');
  const memory = sys.memfd('passed', 4096);
  const message = Uint8Array.of(1, 2, 3, 4);
  assert.equal(sys.sendWithFds(pair[0], message, 4, [memory, memory, memory]), 4);
  const fds: number[] = [];
  const buffer = new Uint8Array(16);
  assert.equal(sys.receiveWithFds(pair[1], buffer, 16, fds), 4);
  assert.deepEqual([...buffer.subarray(0, 4)], [1, 2, 3, 4]);
  assert.equal(fds.length, 3);
  for (const fd of fds) {
    assert.match(readlinkSync(`/proc/self/fd/${fd}`), /passed/);
    assert.equal(sys.close(fd), 0);
  }
  assert.equal(sys.receiveWithFds(pair[1], buffer, 16, fds), -EAGAIN);
  sys.close(pair[0]);
  assert.equal(sys.receiveWithFds(pair[1], buffer, 16, fds), 0);
  sys.close(pair[1]);
  sys.close(memory);
});

test('receiveWithFds closes what came when more came than fits', () => {
  const pair = sys.socketPair();
  assert.ok(typeof pair !== 'number');
  const memory = sys.memfd('passed', 4096);
  const most = Array.from({ length: sys.MAX_FDS }, () => memory);
  assert.equal(sys.sendWithFds(pair[0], new Uint8Array(4), 4, [...most, memory]), -EINVAL);
  assert.equal(sys.sendWithFds(pair[0], new Uint8Array(4), 4, most), 4);
  const free = sys.eventfd();
  sys.close(free);
  const fds: number[] = [];
  assert.equal(sys.receiveWithFds(pair[1], new Uint8Array(8), 8, fds, 3), -71);
  assert.deepEqual(fds, []);
  const next = sys.eventfd();
  assert.equal(next, free, 'no descriptor was left open');
  for (const fd of [next, memory, ...pair]) sys.close(fd);
});

test('unix sockets carry bytes, and send answers EPIPE when the other end is gone', async () => {
  const dir = await mkdtemp('/tmp/porthole-sys-');
  const at = path.join(dir, 's');
  const listener = sys.listenUnix(at);
  assert.ok(listener >= 0);
  assert.equal(sys.accept(listener), -EAGAIN);
  const client = sys.connectUnix(at);
  const server = sys.accept(listener);
  assert.equal(sys.send(client, Uint8Array.of(5, 6), 2), 2);
  const buffer = new Uint8Array(4);
  assert.equal(sys.read(server, buffer), 2);
  sys.close(server);
  assert.equal(sys.send(client, buffer), -32, 'EPIPE instead of SIGPIPE');
  for (const fd of [client, listener]) sys.close(fd);
  await rm(dir, { recursive: true });
});

test('writeParts writes head and payload at once, small and large', () => {
  const pair = sys.socketPair();
  assert.ok(typeof pair !== 'number');
  const head = Uint8Array.of(1, 2, 3, 99);
  const into = new Uint8Array(70_000);
  for (const size of [0, 1, 500, 8189, 8190, 60_000]) {
    const payload = new Uint8Array(size).fill(size & 0xff);
    assert.equal(sys.writeParts(pair[0], head, 3, payload), 3 + size);
    let got = 0;
    while (got < 3 + size) got += sys.read(pair[1], into.subarray(got));
    assert.deepEqual([...into.subarray(0, 3)], [1, 2, 3]);
    assert.deepEqual(into.subarray(3, 3 + size), payload);
  }
  for (const fd of pair) sys.close(fd);
});

test('isEventfd tells an eventfd from everything else', () => {
  const event = sys.eventfd();
  const others = [sys.timerfd(), sys.memfd('no event', 4096)];
  assert.equal(sys.isEventfd(event), true);
  for (const fd of others) assert.equal(sys.isEventfd(fd), false);
  for (const fd of [event, ...others]) sys.close(fd);
  assert.equal(sys.isEventfd(event), false);
  assert.equal(sys.isEventfd(-1), false);
});
