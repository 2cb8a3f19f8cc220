/** Daemon, device process and keeper are replaced by another version's under a guest that reads and writes without pause. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { ClientError } from '../../src/cluster/index.ts';
import { LINK_PROTOCOL } from '../../src/device/link-messages.ts';
import { until } from '../until.ts';
import { BusyGuest } from './busy-guest.ts';
import { runPorthole } from './porthole.ts';

const root = path.join(import.meta.dirname, '../..');

/** Replaces `before`, which must be there, in a file. */
function edit(file: string, before: string, after: string): void {
  const text = readFileSync(file, 'utf8');
  assert.ok(text.includes(before), `${file} has "${before}"`);
  writeFileSync(file, text.replace(before, after));
}

/** These sources, as another version of them would be; the path of its `porthole`. */
function otherVersion(t: TestContext, version: string, change: (directory: string) => void = () => undefined): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'ph-version-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  // Device processes run as users of their own.
  chmodSync(directory, 0o755);
  for (const name of ['porthole', 'package.json', 'package-lock.json', 'scripts/install-npm', 'src'])
    cpSync(path.join(root, name), path.join(directory, name), { recursive: true });
  symlinkSync(path.join(root, 'node_modules'), path.join(directory, 'node_modules'));
  edit(path.join(directory, 'package.json'), '"version": "', `"version": "${version}-`);
  change(directory);
  const porthole = path.join(directory, 'porthole');
  // Compiles it: a guest waits for the daemon's start.
  execFileSync(porthole, ['up', '--help'], { stdio: 'ignore' });
  return porthole;
}

const renewals = Number(process.env['PORTHOLE_UPGRADES'] ?? 1);

test('a newer version takes over from an older one under a guest that reads and writes', async (t) => {
  const guest = await BusyGuest.start(t);
  const { machine } = guest;
  const { client } = machine;
  const params = { name: 'one' };
  const device = () => client.call('getVm', { params }).then((vm) => vm.device);
  const anotherDevice = async (than: number): Promise<void> => {
    await until('another device process', () => (machine.devicePid('one') ?? than) !== than);
    await guest.progress();
  };
  const qemu = machine.qemuPid('one');
  const first = machine.devicePid('one')!;
  const [keeper] = machine.pidsWith('keeper.sock');
  const older = machine.program;
  const own = (await device())!;
  assert.match(own.version, /^\d+\.\d+\.\d+\+[0-9a-f]{12}$/);
  assert.equal(own.outdated, false);

  // Everything, as when a package is upgraded.
  const newer = otherVersion(t, '9.9.9');
  const otherJournal = otherVersion(t, '9.9.10', (directory) =>
    edit(path.join(directory, 'src/device/journal-version.ts'), 'JOURNAL_VERSION = ', 'JOURNAL_VERSION = 9'),
  );
  const otherLink = otherVersion(t, '9.9.11', (directory) =>
    edit(path.join(directory, 'src/device/link-messages.ts'), 'LINK_PROTOCOL = ', 'LINK_PROTOCOL = 9'),
  );
  for (let upgrade = 0; upgrade < renewals; upgrade++) {
    for (const program of [newer, older]) {
      const before = machine.devicePid('one')!;
      const keeperBefore = machine.pidsWith('keeper.sock')[0];
      await guest.progress();
      await machine.kill(program === older ? 'SIGKILL' : 'SIGTERM');
      machine.program = program;
      await machine.spawn();
      await anotherDevice(before);
      const now = await until('the version', async () => ((await device())?.outdated === false ? device() : undefined));
      assert.equal(now!.version.startsWith('9.9.9-'), program === newer, now!.version);
      // A device process that dies as soon as there is another keeper is succeeded all the same.
      const another = (): boolean => machine.pidsWith('keeper.sock').some((pid) => pid !== keeperBefore);
      await until('another keeper', another);
      const served = machine.devicePid('one')!;
      process.kill(served, 'SIGKILL');
      await anotherDevice(served);
      await until('the old one to be gone', () => !machine.pidsWith('keeper.sock').includes(keeperBefore!));
      await until('the other to be known', async () => !(await client.call('getHost')).keeper.outdated);
      await guest.progress();
    }
  }
  assert.deepEqual(await device(), own);
  assert.notEqual(machine.pidsWith('keeper.sock')[0], keeper);

  // What is kept as it is, until somebody asks.
  await machine.kill('SIGTERM');
  const left = machine.devicePid('one')!;
  machine.program = newer;
  await machine.spawn('--no-renew');
  await until('the device process', async () => (await device())?.outdated);
  const { vms, deviceVersion, keeper: kept } = await client.call('getHost');
  assert.deepEqual(vms, [{ name: 'one', deviceVersion: own.version, replicas: 1, outdated: true }]);
  assert.match(deviceVersion, /^9\.9\.9-/);
  assert.equal(kept.outdated, true);
  const porthole = async (...args: string[]): Promise<string> => {
    const { code, out, err } = await runPorthole(machine, ...args);
    assert.equal(code, 0, err);
    return out;
  };
  assert.match(await porthole('vm', 'ls'), /^one +running \(outdated\) /m);
  assert.match(
    await porthole('status'),
    new RegExp(`^outdated: +one \\(${own.version.replace('+', '\\+')}\\), the keeper`, 'm'),
  );
  assert.match(await porthole('vm', 'show', 'one'), /^device: .*\(outdated: "porthole vm renew" replaces it\)$/m);
  await guest.progress();
  assert.equal(machine.devicePid('one'), left, 'it was left as it is');
  for (let renewal = 0; renewal < renewals; renewal++) {
    const before = machine.devicePid('one')!;
    // Where there is no keeper, it waits for one.
    if (renewal === 0) process.kill(machine.pidsWith('keeper.sock')[0]!, 'SIGKILL');
    assert.equal(await porthole('vm', 'renew', 'one'), '');
    await anotherDevice(before);
    assert.deepEqual(await device(), { version: deviceVersion, outdated: false });
  }

  // One that leaves what this version can't take up serves on.
  await machine.kill('SIGTERM');
  const stranger = machine.devicePid('one')!;
  machine.program = otherJournal;
  await machine.spawn();
  await until('the device process', async () => (await device())?.outdated);
  await assert.rejects(client.call('renewDevice', { params }), (error: unknown) => {
    assert.ok(error instanceof ClientError);
    assert.equal(error.code, 'WRONG_STATE');
    assert.match(error.message, /cannot hand its guest over/);
    return true;
  });
  await guest.progress();
  assert.equal(machine.devicePid('one'), stranger);

  // One that can't be talked with is killed, and succeeded.
  await machine.kill('SIGTERM');
  machine.program = otherLink;
  await machine.spawn();
  await anotherDevice(stranger);
  assert.match((await device())!.version, /^9\.9\.11-/);
  const words = new RegExp(String.raw`of another version \(.*protocol ${LINK_PROTOCOL} `);
  assert.ok(machine.events.some((event) => event.event === 'trouble' && words.test(event.what)));

  assert.equal(machine.qemuPid('one'), qemu);
  assert.notEqual(machine.devicePid('one'), first);
  await guest.check(t);
});
