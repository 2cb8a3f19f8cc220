/** Whatever of ours is killed while a guest reads and writes without pause: no program there sees more than a wait. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../until.ts';
import { BusyGuest } from './busy-guest.ts';

const kills = Number(process.env['PORTHOLE_KILLS'] ?? 5);

test(`the host daemon is killed ${kills} times under a guest that reads and writes`, async (t) => {
  const guest = await BusyGuest.start(t);
  const { machine } = guest;
  const [device, qemu] = [machine.devicePid('one'), machine.qemuPid('one')];
  for (let kill = 0; kill < kills; kill++) {
    await guest.progress();
    await machine.kill('SIGKILL');
    await machine.spawn();
  }
  await guest.progress();
  assert.deepEqual([machine.devicePid('one'), machine.qemuPid('one')], [device, qemu], 'nothing else was started anew');
  await guest.check(t);
});

test(`the device process is killed ${kills} times under a guest that reads and writes`, async (t) => {
  const guest = await BusyGuest.start(t);
  for (let kill = 0; kill < kills; kill++) {
    await guest.progress();
    const pid = guest.machine.devicePid('one')!;
    process.kill(pid, 'SIGKILL');
    await until('another device process', () => (guest.machine.devicePid('one') ?? pid) !== pid);
  }
  await guest.progress();
  await guest.check(t);
});

test('the host daemon and the device process are killed together under a guest that reads and writes', async (t) => {
  const guest = await BusyGuest.start(t);
  for (let kill = 0; kill < Math.ceil(kills / 4); kill++) {
    await guest.progress();
    const pid = guest.machine.devicePid('one')!;
    const killed = guest.machine.kill('SIGKILL');
    process.kill(pid, 'SIGKILL');
    await killed;
    await guest.machine.spawn();
  }
  await guest.progress();
  await guest.check(t);
});
