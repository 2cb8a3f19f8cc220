import assert from 'node:assert/strict';
import { test } from 'node:test';
import { close, read, setNonBlocking, socketPair, write } from '../sys/index.ts';
import type { Outcome } from '../tree/index.ts';
import { EIO } from '../wire/index.ts';
import { HostLink } from './host-link.ts';
import { encodeMessage } from './link.ts';
import type { ToDevice, ToHost } from './link-messages.ts';
import { readerOnHost } from './link-on-host.ts';

/** A link whose other end the test plays. */
function linked(t: { after: (done: () => void) => void }) {
  const pair = socketPair();
  assert(typeof pair !== 'number');
  for (const fd of pair) setNonBlocking(fd, true);
  const open = new Set(pair);
  t.after(() => {
    for (const fd of open) close(fd);
  });
  const hangUp = (): void => {
    close(pair[1]);
    open.delete(pair[1]);
  };
  const link = new HostLink({
    config: () => {},
    delta: () => {},
    askStatistics: () => {},
    shutdown: () => {},
    handOver: () => {},
    bootToken: () => {},
    cutOff: () => {},
    ended: (fd) => void open.delete(fd),
    wantWritable: () => {},
  });
  link.attach(pair[0]);
  link.resume();
  let reader = readerOnHost();
  let [, peer] = pair;
  const buffer = new Uint8Array(new ArrayBuffer(1 << 20));
  const received = (): ToHost[] => {
    const got = read(peer, buffer);
    return got > 0 ? reader.feed(buffer.subarray(0, got)) : [];
  };
  const answer = (message: ToDevice): void => {
    write(peer, encodeMessage(message));
    link.serve();
  };
  const connect = (): void => {
    const next = socketPair();
    assert(typeof next !== 'number');
    for (const fd of next) {
      setNonBlocking(fd, true);
      open.add(fd);
    }
    link.attach(next[0]);
    [, peer] = next;
    reader = readerOnHost();
  };
  /** What a daemon says the moment before it is gone. */
  const say = (message: ToDevice): void => void write(peer, encodeMessage(message));
  return { link, received, answer, hangUp, connect, say };
}

const caller = { uid: 0, gid: 0, pid: 1 };
const nameOf = ({ mutation }: Extract<ToHost, { type: 'mutation' }>): string =>
  mutation.op === 'unlink' ? mutation.name : mutation.op;
const unlinkBy = (uid: number) => ({ op: 'unlink', caller: { ...caller, uid }, parentIno: 1, name: 'x' }) as const;
const unlink = unlinkBy(0);
test('HostLink settles a mutation with the outcome of its sequence number, once', (t) => {
  const { link, received, answer } = linked(t);
  const outcomes: Outcome[] = [];
  link.upstream('mount').submit(unlink, (outcome) => outcomes.push(outcome));
  const [message] = received();
  assert(message?.type === 'mutation');
  const outcome = { errno: 0, revision: 9, ino: 0 };
  answer({ type: 'outcome', sequence: message.sequence + 1, outcome });
  assert.deepEqual(outcomes, []);
  answer({ type: 'outcome', sequence: message.sequence, outcome });
  answer({ type: 'outcome', sequence: message.sequence, outcome });
  assert.deepEqual(outcomes, [outcome]);
});

test('HostLink answers EIO when the host daemon is silent for 5 s, and takes few mutations meanwhile', (t) => {
  t.mock.timers.enable({ apis: ['Date'] });
  let nowMs = 1_000;
  t.mock.method(process, 'hrtime', () => [Math.floor(nowMs / 1000), (nowMs % 1000) * 1e6]);
  const { link, received, answer } = linked(t);
  const errnos: number[] = [];
  const submit = (uid = 0) => link.upstream('virtiofs').submit(unlinkBy(uid), ({ errno }) => errnos.push(errno));
  for (let i = 0; i < 40; i++) submit(i % 4);
  assert.deepEqual(errnos, [], 'a burst is no silence');
  nowMs += 1_001;
  submit();
  assert.deepEqual(errnos, [EIO], 'one more than a silent daemon may be sent');
  nowMs += 3_000;
  link.tick();
  assert.equal(errnos.length, 1);
  nowMs += 1_500;
  link.tick();
  assert.deepEqual(
    errnos,
    Array.from({ length: 41 }, () => EIO),
  );
  const sent = received();
  assert.equal(sent.length, 32);
  for (const message of sent) assert(message.type === 'mutation' && message.expiresMs === 6_000);
  answer({ type: 'outcome', sequence: 1, outcome: { errno: 0, revision: 2, ino: 0 } });
  assert.equal(errnos.length, 41, 'a late outcome is nobody’s');
});

test('HostLink waits for the outcome of what the host daemon has taken, and 5 s for the next one when that is gone', (t) => {
  let nowMs = 1_000;
  t.mock.method(process, 'hrtime', () => [Math.floor(nowMs / 1000), (nowMs % 1000) * 1e6]);
  const { link, received, answer, connect } = linked(t);
  const settled: string[] = [];
  const submit = (name: string): void =>
    link.upstream('virtiofs').submit({ ...unlink, name }, ({ errno }) => settled.push(`${name} ${errno}`));
  for (const name of ['a', 'b', 'c']) submit(name);
  answer({ type: 'taken', sequence: 1 });
  answer({ type: 'taken', sequence: 3 });
  nowMs += 60_000;
  link.tick();
  assert.deepEqual(settled, [`b ${EIO}`]);
  answer({ type: 'outcome', sequence: 1, outcome: { errno: 0, revision: 2, ino: 0 } });
  assert.deepEqual(settled, [`b ${EIO}`, 'a 0']);
  link.detach('test');
  nowMs += 5_400;
  link.tick();
  assert.equal(link.mutationsWaiting, 1);
  received();
  connect();
  link.resume();
  assert.deepEqual(
    received().map((message) => message.type === 'mutation' && message.sequence),
    [3],
  );
  nowMs += 200;
  link.tick();
  assert.deepEqual(settled, [`b ${EIO}`, 'a 0', `c ${EIO}`]);
});

test('HostLink answers EIO after 5 s for what it could not even send because all that it may send is being kept', (t) => {
  let nowMs = 1_000;
  t.mock.method(process, 'hrtime', () => [Math.floor(nowMs / 1000), (nowMs % 1000) * 1e6]);
  const { link, answer } = linked(t);
  let refusals = 0;
  for (let i = 0; i < 33; i++)
    link.upstream('virtiofs').submit(unlinkBy(i % 5), ({ errno }) => (refusals += Number(errno === EIO)));
  for (let sequence = 1; sequence <= 32; sequence++) answer({ type: 'taken', sequence });
  assert.equal(link.nextDeadlineMs() < Number.POSITIVE_INFINITY, true);
  nowMs += 5_100;
  link.tick();
  assert.equal(refusals, 1);
  assert.equal(link.mutationsWaiting, 32);
});

test('HostLink has the host daemon do 32 mutations at once, the others in their order and by their callers', (t) => {
  const { link, received, answer } = linked(t);
  const upstream = link.upstream('virtiofs');
  const register = { uid: 0, gid: 0, pid: 1 };
  const outcomes: Outcome[] = [];
  for (let i = 1; i <= 100; i++) {
    register.uid = i;
    upstream.submit({ op: 'unlink', caller: register, parentIno: 1, name: `name-${i}` }, (outcome) =>
      outcomes.push(outcome),
    );
  }
  assert.equal(link.mutationsWaiting, 100);
  assert.equal(received().length, 32);
  const outcome = { errno: 0, revision: 1, ino: 0 };
  for (let i = 1; i <= 68; i++) {
    answer({ type: 'outcome', sequence: i, outcome });
    const [next] = received();
    assert(next?.type === 'mutation' && next.sequence === i + 32);
    const { mutation } = next;
    assert(mutation.op === 'unlink' && mutation.name === `name-${i + 32}` && mutation.caller.uid === i + 32);
  }
  for (let i = 69; i <= 100; i++) answer({ type: 'outcome', sequence: i, outcome });
  assert.deepEqual(received(), []);
  assert.equal(outcomes.length, 100);
  assert.equal(link.mutationsWaiting, 0);
});

test('HostLink refuses what waits when it is too much, and all of it when the host daemon is gone', (t) => {
  const { link, hangUp } = linked(t);
  const upstream = link.upstream('virtiofs');
  const data = new Uint8Array(1024 * 1024);
  const tooMuch = {
    op: 'write',
    caller,
    ino: 2,
    offset: 0,
    data,
    append: false,
    truncate: false,
    grantedAtOpen: true,
  } as const;
  let refusals = 0;
  const settle = ({ errno }: Outcome): void => {
    assert.equal(errno, EIO);
    refusals++;
  };
  for (let i = 0; i < 32; i++) upstream.submit(unlinkBy(i % 4), settle);
  for (let i = 0; i < 100; i++) upstream.submit({ ...tooMuch, caller: { ...caller, uid: i % 4 } }, settle);
  assert.ok(refusals >= 36 && refusals < 60, `${refusals} of 100 MiB were refused`);
  hangUp();
  link.serve();
  link.refuseAll();
  assert.equal(refusals, 132);
  assert.equal(link.mutationsWaiting, 0);
});

test('HostLink sends what was not answered to the next host daemon, in order and by the same numbers', (t) => {
  const { link, received, answer, connect } = linked(t);
  const upstream = link.upstream('virtiofs');
  const settled: number[] = [];
  const submit = (name: string): void => {
    const at = settled.length;
    upstream.submit({ op: 'unlink', caller, parentIno: 1, name }, ({ errno }) => settled.splice(at, 0, errno));
  };
  const named = () => received().map((message) => message.type === 'mutation' && [message.sequence, nameOf(message)]);
  for (const name of ['a', 'b', 'c']) submit(name);
  assert.deepEqual(named(), [
    [1, 'a'],
    [2, 'b'],
    [3, 'c'],
  ]);
  answer({ type: 'outcome', sequence: 2, outcome: { errno: 0, revision: 2, ino: 0 } });
  link.detach('test');
  submit('d');
  assert.equal(link.mutationsWaiting, 3);
  connect();
  assert.deepEqual(named(), [], 'not before the daemon has told what the tree is');
  link.resume();
  assert.deepEqual(named(), [
    [1, 'a'],
    [3, 'c'],
    [4, 'd'],
  ]);
  for (const sequence of [1, 3, 4]) answer({ type: 'outcome', sequence, outcome: { errno: 0, revision: 3, ino: 0 } });
  assert.deepEqual(settled, [0, 0, 0, 0]);
});

test('HostLink takes the answers of a host daemon that is gone when it wants to tell it more', (t) => {
  const { link, hangUp, say } = linked(t);
  const settled: string[] = [];
  const submit = (name: string): void =>
    link.upstream('virtiofs').submit({ ...unlink, name }, ({ errno }) => settled.push(`${name} ${errno}`));
  submit('a');
  say({ type: 'outcome', sequence: 1, outcome: { errno: 0, revision: 2, ino: 0 } });
  hangUp();
  submit('b');
  assert.deepEqual(settled, ['a 0']);
  assert.equal(link.fd, undefined);
  assert.equal(link.mutationsWaiting, 1);
});

test('HostLink has 32 mutations wait for a host daemon that is away, 5 s each', (t) => {
  let nowMs = 1_000;
  t.mock.method(process, 'hrtime', () => [Math.floor(nowMs / 1000), (nowMs % 1000) * 1e6]);
  const { link, received, connect } = linked(t);
  link.detach('test');
  const errnos: number[] = [];
  for (let i = 0; i < 33; i++) link.upstream('virtiofs').submit(unlinkBy(i % 4), ({ errno }) => errnos.push(errno));
  assert.deepEqual(errnos, [EIO]);
  nowMs += 5_400;
  link.tick();
  assert.equal(link.mutationsWaiting, 32, 'an answer that was on time may be on its way');
  nowMs += 200;
  link.tick();
  assert.equal(errnos.length, 33);
  connect();
  link.resume();
  assert.deepEqual(received(), []);
});

test('HostLink gives a uid a quarter of the mutations under way, and of what waits, while others go past it', (t) => {
  const { link, received, answer } = linked(t);
  const upstream = link.upstream('virtiofs');
  const outcomes: string[] = [];
  const submit = (uid: number, name: string): void =>
    upstream.submit({ ...unlinkBy(uid), name }, ({ errno }) => outcomes.push(`${name} ${errno}`));
  const names = () => received().map((message) => message.type === 'mutation' && nameOf(message));
  for (let i = 0; i < 20; i++) submit(1000, `a${i}`);
  submit(1001, 'b');
  assert.deepEqual(names(), ['a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7', 'b']);
  answer({ type: 'outcome', sequence: 3, outcome: { errno: 0, revision: 2, ino: 0 } });
  assert.deepEqual(names(), ['a8']);
  link.detach('test');
  submit(1000, 'late');
  assert.deepEqual(outcomes, ['a2 0', `late ${EIO}`], 'nobody there: no more than its share waits');
  submit(1001, 'c');
  assert.equal(outcomes.length, 2);
});

test('HostLink lets a uid fill a quarter of what may wait', (t) => {
  const { link } = linked(t);
  const data = new Uint8Array(1024 * 1024);
  let refusals = 0;
  const write = (uid: number): void =>
    link.upstream('virtiofs').submit(
      {
        op: 'write',
        caller: { ...caller, uid },
        ino: 2,
        offset: 0,
        data,
        append: false,
        truncate: false,
        grantedAtOpen: true,
      },
      () => refusals++,
    );
  for (let i = 0; i < 40; i++) write(1000);
  assert.equal(refusals, 40 - 8 - 15);
  for (let i = 0; i < 8 + 15; i++) write(1001);
  assert.equal(refusals, 40 - 8 - 15);
  link.refuseAll();
});
