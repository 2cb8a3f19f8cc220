import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { until } from '../../test/until.ts';
import { Loop } from '../device/index.ts';
import { ProcessList, statusOf } from './inside.ts';
import { diskPoints, mounts } from './mounts.ts';

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

test('diskPoints leaves out what lies on, or under, what somebody serves', () => {
  const row = (point: string, type: string, source: string): string => `20 1 0:1 / ${point} rw - ${type} ${source} rw`;
  const all = [
    row('/', 'ext4', '/dev/vda1'),
    row('/proc', 'proc', 'proc'),
    row('/boot', 'autofs', 'systemd-1'),
    row('/boot', 'vfat', '/dev/vda15'),
    row('/net', 'nfs4', 'server:/'),
    row('/net/disk', 'ext4', '/dev/vdb'),
    row('/network', 'ext4', '/dev/vdc'),
    row('/hidden', 'ext4', '/dev/vdd'),
    row('/hidden', 'fuse.sshfs', 'server:/'),
    row('/with\\040space', 'ext4', '/dev/vde'),
    row('/again', 'ext4', '/dev/vde'),
    row('/of\\040a\\040process', 'fuseblk', '/dev/vdf'),
  ];
  const points = ['/', '/boot', '/network', '/with space'];
  assert.deepEqual(diskPoints(mounts(all.join('\n'))), points);
  assert.deepEqual(diskPoints(mounts([row('/', 'virtiofs', 'root'), ...all.slice(1)].join('\n'))), []);
});

test('ProcessList comes to its end on a loop that has nothing else to do', async () => {
  const loop = new Loop(0);
  const looping = loop.run();
  const { processes } = await new ProcessList(() => loop.yieldToNode()).list();
  assert.ok(processes.length > 0);
  loop.stop();
  loop.yieldToNode();
  await looping;
  loop.close();
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
