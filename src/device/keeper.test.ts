import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, openSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { fuzzKeeper } from '../../test/fuzz/keeper.ts';
import { until } from '../../test/until.ts';
import { commandOf } from '../parts/index.ts';
import {
  close,
  connectUnix,
  eventfd,
  memfd,
  POLLIN,
  peerCredentials,
  pollOne,
  read,
  receive,
  receiveWithFds,
  send,
  sendWithFds,
  setNonBlocking,
  signalEventfd,
  socketPair,
} from '../sys/index.ts';
import { Keeper } from './keeper.ts';
import { KeeperClient } from './keeper-client.ts';
import * as protocol from './keeper-protocol.ts';

const EINTR = 4;
const EINVAL = 22;
const ENOENT = 2;
const ENOSPC = 28;

/** A keeper in this thread, that runs while it is asked something. */
class Bench {
  readonly directory = mkdtempSync('/tmp/porthole-keeper-test-');
  readonly keeper: Keeper;
  readonly #open: number[] = [];

  constructor(t: TestContext) {
    this.keeper = new Keeper(this.at('admin'), '1.2.3+test');
    t.after(() => {
      for (const fd of this.#open) close(fd);
      rmSync(this.directory, { recursive: true, force: true });
    });
  }

  at(name: string): string {
    return path.join(this.directory, name);
  }

  own(fd: number): number {
    assert.ok(fd >= 0, `errno ${-fd}`);
    this.#open.push(fd);
    return fd;
  }

  admin(command: object): number {
    const fd = connectUnix(this.at('admin'));
    const line = Buffer.from(`${JSON.stringify(command)}\n`);
    assert.equal(send(fd, line), line.length);
    const answer = new Uint8Array(64);
    while (pollOne(fd, POLLIN, 0) === 0) this.keeper.turn(10);
    const got = read(fd, answer);
    close(fd);
    return (JSON.parse(Buffer.from(answer.subarray(0, got)).toString()) as { errno: number }).errno;
  }

  connect(vm: string): Peer {
    return new Peer(this, this.own(connectUnix(this.at(vm), 'packets')));
  }
}

interface Entry {
  readonly name: string;
  readonly number: number;
  readonly fd: number;
}

class Peer {
  readonly #bench: Bench;
  readonly fd: number;

  constructor(bench: Bench, fd: number) {
    this.#bench = bench;
    this.fd = fd;
  }

  ask(
    op: number,
    name: string,
    more: { fd?: number; number?: number; take?: number; extra?: Uint8Array } = {},
  ): number {
    const packet = new Uint8Array(protocol.PACKET_BYTES);
    const bytes = protocol.writeRequest(packet, op, name, more.number, more.take, more.extra);
    assert.equal(sendWithFds(this.fd, packet, bytes, more.fd === undefined ? [] : [more.fd]), bytes);
    return this.answer([]);
  }

  list(): Entry[] {
    const entries: Entry[] = [];
    const packet = new Uint8Array(protocol.PACKET_BYTES);
    send(this.fd, packet, protocol.writeRequest(packet, protocol.LIST, ''));
    assert.equal(this.answer(entries), 0);
    for (const { fd } of entries) this.#bench.own(fd);
    return entries;
  }

  answer(entries: Entry[]): number {
    const packet = new Uint8Array(protocol.PACKET_BYTES);
    for (;;) {
      while (pollOne(this.fd, POLLIN, 0) === 0) this.#bench.keeper.turn(10);
      const fds: number[] = [];
      const got = receiveWithFds(this.fd, packet, packet.length, fds);
      if (got <= 0) return -1;
      const answer = protocol.readAnswer(packet, got);
      assert.ok(answer);
      if (answer.kind === protocol.DONE) return answer.errno;
      entries.push({ name: answer.name, number: answer.number, fd: fds[0]! });
    }
  }
}

test('Keeper gives a descriptor to whoever asks at the same socket, and to nobody else', (t) => {
  const bench = new Bench(t);
  assert.equal(bench.admin({ open: 'a', path: bench.at('a') }), 0);
  assert.equal(bench.admin({ open: 'b', path: bench.at('b') }), 0);
  assert.equal(statSync(bench.at('a')).mode & 0o777, 0o600);
  const event = bench.own(eventfd());
  assert.equal(bench.connect('a').ask(protocol.PUT, 'kick', { fd: event, number: 7 }), 0);
  const [entry, ...more] = bench.connect('a').list();
  assert.deepEqual([entry?.name, entry?.number, more], ['kick', 7, []]);
  signalEventfd(event);
  assert.ok(pollOne(entry!.fd, POLLIN, 0) > 0, 'it is the same open file');
  assert.deepEqual(bench.connect('b').list(), []);
  assert.equal(bench.connect('b').ask(protocol.DROP, 'kick'), ENOENT);
  assert.equal(bench.connect('a').ask(protocol.DROP, 'kick'), 0);
  assert.deepEqual(bench.connect('a').list(), []);
});

test('Keeper closes what it keeps for a VM that is closed', (t) => {
  const bench = new Bench(t);
  bench.admin({ open: 'a', path: bench.at('a') });
  const pair = socketPair();
  assert.ok(typeof pair !== 'number');
  bench.own(pair[1]);
  assert.equal(bench.connect('a').ask(protocol.PUT, 'control', { fd: pair[0] }), 0);
  close(pair[0]);
  assert.equal(pollOne(pair[1], POLLIN, 0), 0, 'it is held open');
  assert.equal(bench.admin({ close: 'a' }), 0);
  assert.equal(read(pair[1], new Uint8Array(1)), 0, 'nobody has the other end any more');
  assert.equal(bench.admin({ close: 'a' }), ENOENT);
});

test('Keeper answers and takes a message once for each number', (t) => {
  const bench = new Bench(t);
  bench.admin({ open: 'a', path: bench.at('a') });
  const pair = socketPair();
  assert.ok(typeof pair !== 'number');
  for (const fd of pair) bench.own(fd);
  setNonBlocking(pair[1], true);
  const peer = bench.connect('a');
  assert.equal(peer.ask(protocol.PUT, 'control', { fd: pair[0] }), 0);
  send(pair[1], Buffer.from('question, next'));
  const finish = { number: 1, take: 10, extra: Buffer.from('answer') };
  assert.equal(peer.ask(protocol.FINISH, 'control', finish), 0);
  assert.equal(bench.connect('a').ask(protocol.FINISH, 'control', finish), 0, 'a successor asks again');
  const got = new Uint8Array(32);
  assert.equal(read(pair[1], got), 6);
  assert.equal(receive(pair[0], got, 32), 4, 'what was taken is taken once');
  assert.equal(Buffer.from(got.subarray(0, 4)).toString(), 'next');
  assert.equal(peer.ask(protocol.FINISH, 'nothing', finish), ENOENT);
});

test('Keeper takes so many descriptors and no more', (t) => {
  const bench = new Bench(t);
  bench.admin({ open: 'a', path: bench.at('a') });
  const peer = bench.connect('a');
  const event = bench.own(eventfd());
  let taken = 0;
  while (taken < 1000 && peer.ask(protocol.PUT, `kick ${taken}`, { fd: event }) === 0) taken++;
  assert.ok(taken >= 300 && taken < 400, `${taken} were taken`);
  assert.equal(peer.ask(protocol.PUT, 'one more', { fd: event }), ENOSPC);
  assert.equal(peer.ask(protocol.PUT, 'kick 0', { fd: event }), 0, 'in place of another there is room');
  assert.equal(peer.ask(protocol.PUT, 'without'), EINVAL);
});

test('Keeper listens no more to a VM that sent what closing could wait for', (t) => {
  const bench = new Bench(t);
  bench.admin({ open: 'a', path: bench.at('a') });
  bench.admin({ open: 'b', path: bench.at('b') });
  const peer = bench.connect('a');
  const file = bench.own(openSync('/dev/null', 'r'));
  assert.equal(peer.ask(protocol.PUT, 'file', { fd: file }), -1, 'it hangs up');
  assert.equal(bench.connect('a').answer([]), -1);
  assert.equal(bench.connect('b').ask(protocol.PUT, 'memory', { fd: bench.own(memfd('guest', 4096)) }), 0);
});

test('Keeper hangs up on nonsense and goes on', (t) => {
  const bench = new Bench(t);
  bench.admin({ open: 'a', path: bench.at('a') });
  for (const nonsense of [[], [9], Array.from({ length: 16 }, () => 255), Array.from({ length: 900 }, () => 1)]) {
    const peer = bench.connect('a');
    if (nonsense.length > 0) send(peer.fd, Uint8Array.from(nonsense));
    else close(peer.fd);
    if (nonsense.length > 0) assert.equal(peer.answer([]), -1);
  }
  assert.equal(bench.admin({ open: 5 }), EINVAL);
  assert.deepEqual(bench.connect('a').list(), []);
});

/** A keeper in a process of its own, at the admin socket of `bench`. */
async function keeperProcess(t: TestContext, bench: Bench): Promise<{ readonly ended: Promise<unknown> }> {
  const [program, ...args] = commandOf('keeper');
  const child = spawn(program, [...args, bench.at('admin-of-processes')], { stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  const ended = once(child, 'exit');
  const asked = (): number | undefined => adminOf(bench, { build: true }, child.pid);
  await until('the keeper to listen', () => asked() === 0);
  return { ended };
}

/** The errno of the keeper of processes; undefined while there is none, or another one than that of `pid`. */
function adminOf(bench: Bench, command: object, pid?: number): number | undefined {
  const fd = connectUnix(bench.at('admin-of-processes'));
  if (fd < 0) return undefined;
  const peer = peerCredentials(fd);
  const isIt = pid === undefined || (typeof peer === 'object' && peer.pid === pid);
  const answer = new Uint8Array(256);
  const line = Buffer.from(`${JSON.stringify(command)}\n`);
  let got = 0;
  if (isIt && send(fd, line) === line.length) {
    // The end of the other keeper, which is a child of this process, interrupts it.
    while (pollOne(fd, POLLIN, 60_000) === -EINTR) continue;
    got = read(fd, answer);
  }
  close(fd);
  return got <= 0
    ? undefined
    : (JSON.parse(Buffer.from(answer.subarray(0, got)).toString()) as { errno: number }).errno;
}

const steps = [
  'before another keeper is there',
  'when the other listens, and has nothing yet',
  'when the other has taken over, and nobody has noticed',
  'when it has seen that its keeper is gone',
  'when it has given all to the other',
] as const;

for (const [death, when] of steps.entries())
  test(`a successor finds all that a device process held that dies ${when}`, async (t) => {
    const bench = new Bench(t);
    const old = await keeperProcess(t, bench);
    const vm = { open: 'a', path: bench.at('a') };
    assert.equal(adminOf(bench, vm), 0);
    const device = new KeeperClient(bench.at('a'));
    const held = ['journal', 'control', 'kick'];
    for (const [number, name] of held.entries())
      assert.ok(device.put(name, bench.own(eventfd()), number), `${name} is kept`);
    /** Connected already when the keepers change, and asks only then. */
    const early = new KeeperClient(bench.at('a'));
    const dies = (step: number): boolean => {
      if (step === death) device.close();
      return step === death;
    };
    let isDead = dies(0);
    await keeperProcess(t, bench);
    isDead ||= dies(1);
    assert.equal(adminOf(bench, vm), 0);
    isDead ||= dies(2);
    await old.ended;
    if (!isDead) device.check();
    isDead ||= dies(3);
    if (!isDead) {
      await until('it to be with the other', () => {
        device.tick(performance.now());
        return device.isConnected;
      });
      assert.ok(device.put('late', bench.own(eventfd()), 9));
      held.push('late');
    }
    dies(4);
    for (const successor of [early, new KeeperClient(bench.at('a'))]) {
      const found = successor.listAnew() ?? [];
      for (const { fd } of found) bench.own(fd);
      assert.deepEqual(found.map(({ name }) => name).toSorted(), held.toSorted());
      successor.close();
    }
  });

test('readRequest takes what writeRequest wrote', () => {
  const packet = new Uint8Array(protocol.PACKET_BYTES);
  const extra = Uint8Array.of(1, 2, 3);
  const bytes = protocol.writeRequest(packet, protocol.FINISH, 'a control', 12, 34, extra);
  const request = { op: protocol.FINISH, name: 'a control', number: 12, take: 34, extra };
  assert.deepEqual(protocol.readRequest(packet, bytes), request);
  fuzzKeeper(packet.subarray(0, bytes));
});
