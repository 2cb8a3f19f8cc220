import assert from 'node:assert/strict';
import { test } from 'node:test';
import { close, read, setNonBlocking, socketPair, write } from '../sys/index.ts';
import type { AuditRecord, Outcome } from '../tree/index.ts';
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
  let open = [...pair];
  t.after(() => {
    for (const fd of open) close(fd);
  });
  const hangUp = (): void => {
    close(pair[1]);
    open = [pair[0]];
  };
  let sequence = 0;
  const events = {
    config: () => {},
    delta: () => {},
    askStatistics: () => {},
    shutdown: () => {},
    handOver: () => {},
    ended: () => {},
    wantWritable: () => {},
  };
  const link = new HostLink(pair[0], events, () => ++sequence);
  const reader = readerOnHost();
  const buffer = new Uint8Array(new ArrayBuffer(1 << 20));
  const received = (): ToHost[] => {
    const got = read(pair[1], buffer);
    return got > 0 ? reader.feed(buffer.subarray(0, got)) : [];
  };
  const answer = (message: ToDevice): void => {
    write(pair[1], encodeMessage(message));
    link.serve();
  };
  return { link, received, answer, hangUp };
}

const caller = { uid: 0, gid: 0, pid: 1 };
const unlink = { op: 'unlink', caller, parentIno: 1, name: 'x' } as const;
const record: AuditRecord = {
  time: '2026-01-01T00:00:00.000Z',
  vm: 'test',
  way: 'mount',
  operation: 'open',
  path: '/secrets/x',
  uid: 0,
  gid: 0,
  pid: 1,
  revision: 1,
  verdict: 'allowed',
  rule: 'default',
};

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
  const submit = () => link.upstream('virtiofs').submit(unlink, ({ errno }) => errnos.push(errno));
  for (let i = 0; i < 40; i++) submit();
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

test('HostLink sends audit records together, and before the mutation that came after them', (t) => {
  const { link, received } = linked(t);
  for (let i = 0; i < 3; i++) assert.equal(link.audit(record), true);
  assert.deepEqual(received(), []);
  link.upstream('mount').submit(unlink, () => {});
  assert.deepEqual(
    received().map((message) => (message.type === 'audit' ? message.records.length : message.type)),
    [3, 'mutation'],
  );
  for (let i = 0; i < 64; i++) link.audit(record);
  link.beforePoll();
  assert.equal(received().length, 1);
});

test('HostLink keeps no record when the log cannot be written or the daemon takes none', (t) => {
  const { link, answer } = linked(t);
  answer({ type: 'auditHealth', writable: false });
  assert.equal(link.audit(record), false);
  answer({ type: 'auditHealth', writable: true });
  let kept = 0;
  while (link.audit(record)) kept++;
  assert.equal(kept, 4096);
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
  for (let i = 0; i < 32; i++) upstream.submit(unlink, settle);
  for (let i = 0; i < 100; i++) upstream.submit(tooMuch, settle);
  assert.ok(refusals >= 36 && refusals < 60, `${refusals} of 100 MiB were refused`);
  hangUp();
  link.serve();
  assert.equal(refusals, 132);
  assert.equal(link.mutationsWaiting, 0);
});
