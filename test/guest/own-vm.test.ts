/** The life of a VM of ours, with the tiny image, a QEMU of its own user and a watcher. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { identify } from '../../src/qemu/index.ts';
import { until } from '../until.ts';
import { bootLimitMs, OwnVm, shell, testUid } from './own-vm.ts';

const statusOf = (pid: number | undefined): string => readFileSync(`/proc/${pid}/status`, 'utf8');
const limit = (): AbortSignal => AbortSignal.timeout(bootLimitMs);

test('Vm boots, is confined, speaks over its console, and powers off when asked to', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  await own.vm.until(({ status }) => status !== 'starting', limit());
  assert.deepEqual(own.story, ['starting', 'running']);
  assert.equal(own.vm.state.bootId, own.boots[0]);
  const status = statusOf(own.vm.qemuPid);
  assert.match(status, new RegExp(`^Uid:\\t${testUid}\\t${testUid}\\t${testUid}\\t${testUid}$`, 'm'));
  assert.match(status, /^NoNewPrivs:\t1$/m);
  assert.match(status, /^CapBnd:\t0+$/m);
  assert.match(status, /^Seccomp:\t2$/m);
  await own.ready();

  const client = own.attach();
  await until('the past', () => client.text().includes('tiny: ready'));
  client.socket.write('echo $((6*7)) is the answer\n');
  await until('the answer', () => client.text().includes('42 is the answer'));
  const second = own.attach();
  await until('the past, for another client', () => second.text().includes('42 is the answer'));
  for (const { socket } of [client, second]) socket.destroy();

  own.vm.stop(120_000);
  await own.vm.until(({ status }) => status === 'stopped', limit());
  assert.deepEqual(own.story.slice(2), ['stopping', 'stopped: the guest powered off when asked to']);
  assert.equal(own.runtime, undefined);
  assert.match(own.console, /42 is the answer/);
});

test('Vm starts a new QEMU with a new boot id when the guest reboots', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  await own.ready();
  const first = own.vm.qemuPid;
  own.attach().socket.end('reboot -f\n');
  await own.vm.until(() => own.boots.length === 2, limit());
  await own.vm.until(({ status }) => status === 'running', limit());
  assert.deepEqual(own.story, ['starting', 'running', 'starting: the guest rebooted', 'running']);
  assert.notEqual(own.vm.qemuPid, first);
  assert.notEqual(own.boots[0], own.boots[1]);
  assert.equal(own.vm.state.bootId, own.boots[1]);
  await own.ready(2);
});

test('Vm goes on under another daemon, and ends there with the reason in words', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  await own.ready();
  const pid = own.vm.qemuPid!;
  // Its main loop may stand still for a while, as over a disk that hangs: that ends no guest.
  process.kill(pid, 'SIGSTOP');
  own.restartDaemon();
  await until('the silence', () => own.troubles.some((what) => /monitor does not answer/.test(what)));
  process.kill(pid, 'SIGCONT');
  await until('the monitor', () => own.vm.qmp, bootLimitMs);
  assert.equal(own.vm.qemuPid, pid);
  assert.deepEqual(own.story, ['starting', 'running']);
  const client = own.attach();
  client.socket.write('echo still $((40+2))\n');
  await until('the answer', () => client.text().includes('still 42'));
  client.socket.write('poweroff -f\n');
  await own.vm.until(({ status }) => status === 'stopped', limit());
  client.socket.destroy();
  assert.equal(own.vm.state.reason, 'the guest powered off');
});

test('Vm tells a daemon that was away why QEMU ended', async () => {
  await using own = await OwnVm.make({ options: { policy: { restart: 'no', guestReboot: 'stop' } } });
  own.vm.start();
  await own.ready();
  const { runtime } = own;
  await own.vm.release();
  own.attach().socket.end('reboot -f\n');
  await until(
    'the last words',
    () => existsSync(own.paths.lastWords) && /endedAtMs/.test(readFileSync(own.paths.lastWords, 'utf8')),
    bootLimitMs,
  );
  own.runtime = runtime;
  own.restartDaemon();
  await own.vm.until(({ status }) => status === 'stopped', limit());
  assert.equal(own.vm.state.reason, 'the guest rebooted');
});

test('Vm lives on when its watcher is killed, and gets another', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  await own.ready();
  const pid = own.vm.qemuPid;
  const watcher = own.runtime!.watcher!.pid;
  process.kill(watcher, 'SIGKILL');
  await until('another watcher', () => own.runtime!.watcher!.pid !== watcher, bootLimitMs);
  const answer = await until(
    'the console through it',
    async () => {
      const client = own.attach();
      client.socket.on('error', () => {});
      client.socket.write('echo again $((40+2))\n');
      await until('an answer', () => client.text().includes('again 42'), 2_000).catch(() => {});
      client.socket.destroy();
      return client.text().includes('again 42');
    },
    bootLimitMs,
  );
  assert.equal(answer, true);
  assert.equal(own.vm.qemuPid, pid);
  assert.deepEqual(own.troubles, ['the watcher was killed by SIGKILL (out of memory?); starting another']);
});

test('Vm says how QEMU died, and starts again as its policy says', async () => {
  await using own = await OwnVm.make({ options: { policy: { restart: 'on-failure', guestReboot: 'boot' } } });
  own.vm.start();
  await own.vm.until(({ status }) => status === 'running', limit());
  process.kill(own.vm.qemuPid!, 'SIGKILL');
  await own.vm.until(({ status }) => status === 'failed', limit());
  assert.equal(own.vm.state.reason, 'QEMU was killed by SIGKILL (out of memory?); it starts again in 1 s');
  await own.vm.until(({ status }) => status === 'running', limit());
  assert.equal(own.boots.length, 2);
});

test('Vm that does not hear its power button is switched off after the deadline', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  await own.ready();
  await shell(own, 'killall acpid');
  own.vm.stop(500);
  await own.vm.until(({ status }) => status === 'stopped', limit());
  assert.equal(own.vm.state.reason, 'the guest did not power off within 1 s and was switched off');
});

test('Vm that cannot start says what QEMU said, and leaves nothing running', async () => {
  const disks = [{ path: '/nonexistent/disk.qcow2', format: 'qcow2' as const }];
  await using own = await OwnVm.make({ machine: { disks } });
  own.vm.start();
  await own.vm.until(({ status }) => status === 'failed', limit());
  assert.match(own.vm.state.reason, /^QEMU ended with status 1: .*Could not open '\/nonexistent\/disk.qcow2'/);
  assert.equal(own.runtime, undefined);
});

test('Vm is not started when its boot id could not be committed', async () => {
  const commitBoot = (): Promise<never> => Promise.reject(new Error('the store is full'));
  await using own = await OwnVm.make({ options: { commitBoot } });
  own.vm.start();
  await own.vm.until(({ status }) => status === 'failed', limit());
  assert.deepEqual(own.story, ['starting', 'failed: the store is full']);
  assert.equal(existsSync(own.paths.qemuLog), false);
});

test('Vm that is stopped while it starts leaves nothing running', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  await until('QEMU', () => own.runtime?.qemu);
  const { pid } = own.runtime!.qemu!;
  own.vm.stop();
  await own.vm.until(({ status }) => status === 'stopped', limit());
  assert.equal(existsSync(`/proc/${pid}`), false);
});

test('Vm ends a QEMU that its daemon started and could not write down, and starts another', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  const { qemu, bootId, startedAtMs } = await until('QEMU', () => own.runtime?.qemu && own.runtime);
  own.runtime = { bootId, startedAtMs };
  own.restartDaemon();
  await own.vm.until(({ status }) => status === 'running', limit());
  assert.equal(existsSync(`/proc/${qemu!.pid}`) && identify(qemu!.pid)?.startTicks === qemu!.startTicks, false);
  assert.equal(own.boots.length, 2);
});

test('Vm that hangs is killed when it is stopped, under a daemon that never reached it', async () => {
  await using own = await OwnVm.make();
  own.vm.start();
  await own.vm.until(({ status }) => status === 'running', limit());
  process.kill(own.vm.qemuPid!, 'SIGSTOP');
  own.restartDaemon();
  own.vm.stop(0);
  await own.vm.until(({ status }) => status === 'stopped', limit());
  assert.equal(own.vm.state.reason, 'the guest did not power off within 0 s and was killed');
});
