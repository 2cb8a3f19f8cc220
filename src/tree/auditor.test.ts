import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TestClock, World } from '../../test/tree/world.ts';
import { EACCES } from '../wire/index.ts';
import type { AuditRecord } from './audit.ts';
import { Auditor, auditLimits } from './auditor.ts';
import { ways } from './caller.ts';

function auditorOf() {
  const world = new World({
    content: { secrets: { a: '1', b: '2' } },
    rules: [{ path: '/secrets/b', source: 'x.yaml:3' }],
  });
  const records: AuditRecord[] = [];
  const clock = new TestClock();
  const log = { works: true };
  const sink = (record: AuditRecord) => log.works && records.push(record) > 0;
  const auditor = new Auditor('vm', sink, clock.wallMs);
  const record = (uid: number, path = '/secrets/a', errno = EACCES) =>
    auditor.record(
      ways.direct,
      'open',
      world.authority.replica,
      world.authority.snapshot.resolve(path)!,
      { uid, gid: 5, pid: 6 },
      errno,
    );
  const counted = () =>
    records.length + records.reduce((sum, { dropped = 0, droppedOthers = 0 }) => sum + dropped + droppedOthers, 0);
  return { records, clock, record, counted, world, log };
}

test('Auditor says who, what, when and by which rule', () => {
  const { records, record, world } = auditorOf();
  assert.ok(record(7, '/secrets/b'));
  assert.ok(record(7, '/secrets/a', 0));
  const common = {
    timeMs: Date.parse('2026-01-01T00:00:00.000Z'),
    vm: 'vm',
    way: 'direct',
    operation: 'open',
    uid: 7,
    gid: 5,
    pid: 6,
    program: undefined,
    dropped: undefined,
    droppedOthers: undefined,
    revision: world.authority.snapshot.revision,
  };
  assert.deepEqual(records, [
    { ...common, path: '/secrets/b', verdict: 'denied', rule: '/secrets/b (x.yaml:3)', errno: 'EACCES' },
    { ...common, path: '/secrets/a', verdict: 'allowed', rule: 'default', errno: undefined },
  ]);
});

test('Auditor records a burst of one kind, then a few a second, and says how many it dropped', () => {
  const { records, clock, record } = auditorOf();
  for (let i = 0; i < 100; i++) assert.ok(record(7));
  assert.equal(records.length, auditLimits.kind.burst);
  clock.advance(1000);
  for (let i = 0; i < 100; i++) record(7);
  const second = records.slice(auditLimits.kind.burst);
  assert.equal(second.length, auditLimits.kind.perSecond);
  assert.deepEqual(
    second.map(({ dropped }) => dropped),
    [100 - auditLimits.kind.burst, undefined, undefined, undefined, undefined],
  );
  for (let i = 0; i < 100; i++) record(7, '/secrets/a', 0);
  assert.equal(records.filter(({ verdict }) => verdict === 'allowed').length, 100, 'what was allowed is never dropped');
});

test('Auditor records the first of each kind when others have used up the rate', () => {
  const { records, record } = auditorOf();
  for (let uid = 0; uid < 100; uid++) for (let i = 0; i < 30; i++) record(uid);
  record(1, '/secrets/b');
  record(5000);
  assert.deepEqual(
    records.slice(-2).map(({ uid, path }) => `${uid} ${path}`),
    ['1 /secrets/b', '5000 /secrets/a'],
  );
  assert.equal(new Set(records.map(({ uid }) => uid)).size, 101);
});

test('Auditor leaves other uids three quarters of the rate when one denies all it can', () => {
  const { records, record } = auditorOf();
  for (let i = 0; i < 1000; i++)
    for (const path of ['/secrets/a', '/secrets/b', '/secrets', '/', '/guest']) record(7, path);
  assert.ok(records.length <= auditLimits.uid.burst + 5);
  for (let i = 0; i < 10; i++) record(8);
  assert.equal(records.filter(({ uid }) => uid === 8).length, 10);
});

test('Auditor bounds the log and counts all when a guest goes through uids', () => {
  const { records, clock, record, counted } = auditorOf();
  const denials = 40_000;
  for (let uid = 0; uid < denials; uid++) record(uid);
  assert.ok(records.length <= auditLimits.newKinds.burst + auditLimits.vm.burst, `${records.length} records`);
  const before = records.length;
  for (let second = 0; second < 10; second++) {
    clock.advance(1000);
    for (let uid = 0; uid < 1000; uid++) record(1_000_000 + second * 1000 + uid);
  }
  assert.ok(records.length - before <= 10 * (auditLimits.newKinds.perSecond + auditLimits.vm.perSecond));
  clock.advance(60_000);
  record(3_000_000);
  assert.equal(counted(), denials + 10_000 + 1, 'every denial is recorded or counted');
});

test('Auditor counts a denial that the log could not keep in the next that it does', () => {
  const { records, record, log } = auditorOf();
  assert.equal(record(7), true);
  log.works = false;
  for (let i = 0; i < 3; i++) assert.equal(record(7), false);
  log.works = true;
  assert.equal(record(7), true);
  assert.deepEqual(
    records.map(({ dropped }) => dropped),
    [undefined, 3],
  );
});
