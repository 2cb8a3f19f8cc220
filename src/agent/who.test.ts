import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { callerFromProc, identify, unitOf } from './who.ts';

test('unitOf names the unit of the system, whatever users have below it', () => {
  assert.equal(unitOf('0::/system.slice/nginx.service\n'), 'nginx.service');
  assert.equal(unitOf('0::/system.slice/nginx.service/evil/db.service\n'), 'nginx.service');
  assert.equal(unitOf('0::/user.slice/user-1000.slice/user@1000.service/app.slice/db.service\n'), 'user@1000.service');
  assert.equal(
    unitOf('12:cpu:/\n1:name=systemd:/system.slice/system-getty.slice/getty@tty1.service\n'),
    'getty@tty1.service',
  );
  assert.equal(unitOf('0::/system.slice/_cgroup.service\n'), 'cgroup.service');
});

test('unitOf proves nothing of what lies elsewhere', () => {
  for (const cgroup of ['0::/\n', '', '0::/../db.service\n', '0::/system.slice\n', '0::/docker/0123\n', 'garbage'])
    assert.equal(unitOf(cgroup), undefined, cgroup);
});

test('identify finds this process, and nothing of a number that nobody has', () => {
  const found = identify(process.pid);
  assert.equal(found?.uid, process.geteuid?.());
  assert.ok(found?.groups.every((gid) => process.getgroups!().includes(gid)));
  assert.ok(found !== undefined && found.startTime > 0);
  for (const pid of [0, -1, 0.5, 2 ** 31]) assert.equal(identify(pid), undefined);
});

test('callerFromProc looks a caller up for each request, and believes nothing where the ids differ', async () => {
  const child = spawn('sleep', ['60']);
  try {
    const caller = callerFromProc();
    Object.assign(caller, { uid: process.geteuid!(), gid: process.getegid!(), pid: child.pid! });
    assert.ok(Array.isArray(caller.groups));
    Object.assign(caller, { uid: 12_345, pid: child.pid! });
    assert.deepEqual([caller.groups, caller.program, caller.unit], [undefined, undefined, undefined]);
    assert.deepEqual(Object.keys({ ...caller }), ['uid', 'gid', 'pid', 'groups', 'program', 'unit']);
  } finally {
    child.kill('SIGKILL');
    await new Promise((resolve) => {
      child.once('exit', resolve);
    });
  }
});
