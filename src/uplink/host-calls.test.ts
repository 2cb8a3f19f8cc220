import assert from 'node:assert/strict';
import { test } from 'node:test';
import { latestMs, VmStatusRecord } from '../records/index.ts';
import { hostCalls } from './host-calls.ts';

test('a time that a host says and that none can be made of is refused', () => {
  const record = {
    ...{ vm: 'a', way: 'virtiofs', operation: 'read', path: '/a', uid: 0, gid: 0, pid: 0 },
    ...{ revision: 1, verdict: 'allowed', rule: '' },
  };
  const status = { id: 'i-0123456789abcdef0', status: 'running', reason: '', generation: 1, outcome: 'done' };
  const says: readonly ((atMs: number) => boolean)[] = [
    (atMs) =>
      hostCalls.audit.answer.safeParse({ events: [{ id: '1', atMs, record: { ...record, timeMs: 0 } }] }).success,
    (timeMs) => hostCalls.followAudit.item.safeParse({ id: '1', atMs: 0, record: { ...record, timeMs } }).success,
    (atMs) => hostCalls.statistics.answer.safeParse({ atMs, values: {} }).success,
    (sinceMs) => VmStatusRecord.safeParse({ ...status, sinceMs, bootNumber: 1, addresses: [] }).success,
  ];
  for (const [index, isTaken] of says.entries())
    assert.deepEqual([isTaken(0), isTaken(latestMs), isTaken(latestMs + 1)], [true, true, false], String(index));
});
