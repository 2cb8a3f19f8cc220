import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { World } from '../../test/tree/world.ts';
import type { GuestInside } from '../records/index.ts';
import { insideOf } from './guest-inside.ts';

const at = '2026-03-01T12:00:00Z';
const status = {
  version: 1,
  at,
  uptimeSeconds: 90,
  load: [0.5, 0.25, 0],
  memory: { totalBytes: 1000, availableBytes: 400 },
  swap: { totalBytes: 0, freeBytes: 0 },
  disks: [{ mount: '/', totalBytes: 10, freeBytes: 5 }],
  agent: { version: '0.1.0', pid: 7, startedAt: at },
};
const process = { pid: 1, user: 'root', uid: 0, command: 'init', cpuPercent: 1, memoryBytes: 4096, state: 'S' };

/** What is read of files that root in the guest wrote. */
const insideWith = (files: Readonly<Record<string, unknown>>): GuestInside => {
  const agent = Object.fromEntries(
    Object.entries(files).map(([name, value]) => [name, typeof value === 'string' ? value : JSON.stringify(value)]),
  );
  const { authority } = new World({ content: { guest: { '.agent': agent } } });
  return insideOf(authority.snapshot, Date.now()).read();
};

test('insideOf gives what an agent wrote, and nothing where none did', () => {
  assert.deepEqual(insideWith({}), { problems: [] });
  const {
    status: read,
    processes,
    problems,
    statusAgeMs,
  } = insideWith({
    'status.json': { ...status, more: 'of a newer agent' },
    'processes.json': { version: 1, at, processes: [process] },
  });
  assert.deepEqual([read?.memory.availableBytes, processes, problems], [400, [process], []]);
  assert.ok(statusAgeMs! >= 0);
});

test('insideOf makes text printable, and leaves out what is absurd, without a word of it', () => {
  const shown = insideWith({
    'processes.json': { version: 1, at, processes: [{ ...process, command: '\u001b]0;owned\u0007\n\u202Ex' }] },
  });
  assert.equal(shown.processes?.[0]?.command, String.raw`\u{1b}]0;owned\u{7}\u{a}\u{202e}x`);
  const absurd: readonly unknown[] = [
    'no JSON',
    '[]',
    { ...status, version: 2 },
    { ...status, memory: { totalBytes: -1, availableBytes: 0 } },
    { ...status, memory: { totalBytes: 2 ** 61, availableBytes: 0 } },
    { ...status, uptimeSeconds: 1e300 },
    { ...status, load: [0, 0] },
    { ...status, at: 'hunter2' },
    { ...status, disks: Array.from({ length: 65 }, () => status.disks[0]) },
    `${JSON.stringify(status)}${' '.repeat(65_536)}`,
  ];
  for (const value of absurd) {
    const inside = insideWith({ 'status.json': value });
    assert.equal(inside.status, undefined, JSON.stringify(value).slice(0, 100));
    assert.equal(inside.problems.length, 1);
    assert.doesNotMatch(inside.problems[0]!, /hunter2/);
  }
  const many = Array.from({ length: 1001 }, () => process);
  assert.equal(insideWith({ 'processes.json': { version: 1, at, processes: many } }).processes, undefined);
});

test('insideOf stands whatever JSON a guest writes', () => {
  fc.assert(
    fc.property(fc.json(), fc.json(), (one, two) => {
      const inside = insideWith({ 'status.json': one, 'processes.json': two });
      assert.ok(inside.problems.length <= 2);
    }),
    { numRuns: 100 },
  );
});
