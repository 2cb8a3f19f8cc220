import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { until } from '../../test/until.ts';
import { ProcessList, statusOf } from './inside.ts';

test('statusOf tells what the kernel says', () => {
  const agent = { version: '1', pid: process.pid, startedAt: new Date().toISOString() };
  const status = statusOf(agent);
  assert.equal(status.version, 1);
  assert.ok(status.uptimeSeconds > 0);
  assert.equal(status.load.length, 3);
  assert.ok(status.memory.totalBytes > status.memory.availableBytes && status.memory.availableBytes > 0);
  assert.ok(status.swap.totalBytes >= status.swap.freeBytes);
  for (const { totalBytes, freeBytes } of status.disks) assert.ok(totalBytes >= freeBytes);
  assert.equal(status.agent, agent);
});

test('ProcessList lists what takes most CPU first, and itself by its name', async (t) => {
  const busy = spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' });
  t.after(() => busy.kill('SIGKILL'));
  const list = new ProcessList();
  const found = await until('it to have used its CPU', async () => {
    const { processes } = await list.list();
    const shares = processes.map(({ cpuPercent }) => cpuPercent);
    assert.deepEqual(
      shares,
      shares.toSorted((a, b) => b - a),
    );
    return processes.find(({ pid, cpuPercent }) => pid === busy.pid && cpuPercent > 0);
  });
  assert.equal(found.command, 'sh');
  assert.equal(found.uid, process.getuid?.());
  assert.match(found.state, /^[RS]$/);
  assert.ok(found.memoryBytes > 0);
});
