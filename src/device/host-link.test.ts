import assert from 'node:assert/strict';
import { test } from 'node:test';
import { close, read, setNonBlocking, socketPair, write } from '../sys/index.ts';
import type { Mutation, Outcome } from '../tree/index.ts';
import { HostLink } from './host-link.ts';
import { encodeMessage, readerOnHost } from './link.ts';
import type { ToHost } from './link-messages.ts';

const EIO = 5;
const unlink = (i: number): Mutation => ({
  op: 'unlink',
  caller: { uid: 0, gid: 0, pid: 1 },
  parentIno: 1,
  name: `name-${i}`,
});

function linked() {
  const pair = socketPair();
  assert.ok(typeof pair !== 'number');
  for (const fd of pair) setNonBlocking(fd, true);
  const [ours, theirs] = pair;
  const link = new HostLink(ours, {
    config: () => {},
    delta: () => {},
    askStatistics: () => {},
    shutdown: () => {},
    ended: () => {},
    wantWritable: () => {},
  });
  const reader = readerOnHost();
  const buffer = new Uint8Array(new ArrayBuffer(65_536));
  /** What the host daemon is told now. */
  const told = (): ToHost[] => {
    const got = read(theirs, buffer);
    return got > 0 ? reader.feed(buffer.subarray(0, got)) : [];
  };
  const answer = (sequence: number): void => {
    write(theirs, encodeMessage({ type: 'outcome', sequence, outcome: { errno: 0, revision: 1, ino: 0 } }));
    link.serve();
  };
  return { link, told, answer, theirs, ours };
}

test('HostLink has the host daemon do 32 mutations at once, the others in their order', (t) => {
  const { link, told, answer, ours, theirs } = linked();
  t.after(() => [ours, theirs].map(close));
  const upstream = link.upstream('virtiofs');
  const outcomes: Outcome[] = [];
  for (let i = 1; i <= 100; i++) upstream.submit(unlink(i), (outcome) => outcomes.push(outcome));
  assert.equal(link.mutationsWaiting, 100);
  assert.equal(told().length, 32);
  for (let i = 1; i <= 68; i++) {
    answer(i);
    const [next] = told();
    assert.ok(next?.type === 'mutation' && next.sequence === i + 32);
    assert.deepEqual(next.mutation, unlink(i + 32));
  }
  for (let i = 69; i <= 100; i++) answer(i);
  assert.deepEqual(told(), []);
  assert.equal(outcomes.length, 100);
  assert.equal(link.mutationsWaiting, 0);
});

test('HostLink refuses what waits when it is too much, and all of it when the host daemon is gone', (t) => {
  const { link, ours, theirs } = linked();
  t.after(() => close(ours));
  const upstream = link.upstream('virtiofs');
  const data = new Uint8Array(1024 * 1024);
  const write: Mutation = {
    op: 'write',
    caller: { uid: 0, gid: 0, pid: 1 },
    ino: 2,
    offset: 0,
    data,
    append: false,
    truncate: false,
    grantedAtOpen: true,
  };
  let refusals = 0;
  const settle = ({ errno }: Outcome): void => {
    assert.equal(errno, EIO);
    refusals++;
  };
  for (let i = 0; i < 32; i++) upstream.submit(unlink(i), settle);
  for (let i = 0; i < 100; i++) upstream.submit(write, settle);
  assert.ok(refusals >= 36, `${refusals} of 100 MiB were refused`);
  assert.ok(refusals < 60);
  close(theirs);
  link.serve();
  assert.equal(refusals, 132);
  assert.equal(link.mutationsWaiting, 0);
});
