/** When `porthole up` does not start: what it says, and that what it says helps. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';
import { runPorthole as run } from './porthole.ts';

const isRoot = process.getuid?.() === 0;
const needsRoot = isRoot ? false : 'this needs root';

const up = (machine: UpMachine, ...args: readonly string[]) => {
  const place = (option: string, name: string) =>
    args.includes(option) ? [] : [option, path.join(machine.directory, name)];
  return run(machine, 'up', ...place('--state', 'state'), ...place('--run', 'run'), ...args);
};

/** Exit code 1, and nothing was said to be up or down. */
const refuses = async (machine: UpMachine, words: RegExp, ...args: readonly string[]): Promise<void> => {
  const { code, out, err } = await up(machine, ...args);
  assert.deepEqual([code, out], [1, ''], err);
  assert.match(err, words);
};

const keyNames = async ({ client }: UpMachine): Promise<string[]> =>
  (await client.call('listKeys')).keys.map(({ name }) => name).toSorted();

const makeKeys = async ({ client }: UpMachine, prefix: string, count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await client.call('createKey', { body: { name: `${prefix}-${i}`, role: 'viewer' } });
};

const damages = {
  'overwritten in the middle': async (file: string) => {
    const handle = await open(file, 'r+');
    const { size } = await handle.stat();
    await handle.write(Buffer.alloc(size / 4, 0xa5), 0, size / 4, size / 2);
    await handle.close();
  },
  truncated: async (file: string) => truncateSync(file, statSync(file).size / 2),
  'no database': async (file: string) => writeFileSync(file, 'gone'),
} as const satisfies Record<string, (file: string) => Promise<void>>;

for (const [how, damage] of Object.entries(damages))
  test(`up refuses a store that is ${how}, says how to restore, and that works`, async (t) => {
    const machine = new UpMachine(t);
    await machine.start();
    await makeKeys(machine, 'kept', 20);
    const backup = path.join(machine.directory, 'backup');
    assert.equal((await run(machine, 'backup', backup)).code, 0);
    await makeKeys(machine, 'later', 2);
    await machine.release();
    const state = path.join(machine.directory, 'state');
    const file = path.join(state, 'store/store.db');
    await damage(file);
    await refuses(
      machine,
      /the daemon does not start: .*store\.db" is damaged[^]*To restore: porthole restore FILE --state '.*state'/,
    );
    const { code, out, err } = await run(machine, 'restore', backup, '--state', state);
    assert.deepEqual([code, err], [0, '']);
    const [, replaced] = /the store that was there is now "([^"]+)"/.exec(out) ?? [];
    assert.ok(existsSync(replaced!), out);
    await machine.start();
    assert.deepEqual(
      (await keyNames(machine)).filter((name) => name.startsWith('later')),
      [],
    );
    assert.equal((await keyNames(machine)).length, 20);
  });

test('up says what is wrong with its key file, its directories and its addresses', async (t) => {
  const machine = new UpMachine(t);
  const { directory } = machine;
  await machine.start();
  await refuses(
    machine,
    /a host daemon, or a restore, uses ".*state" already; stop it/,
    '--run',
    path.join(directory, 'run-2'),
  );
  await refuses(
    machine,
    /another process listens at ".*api\.sock"; stop it/,
    '--state',
    path.join(directory, 'state-2'),
  );
  assert.deepEqual(readdirSync(path.join(directory, 'state-2')), [], 'it began, although the run directory is in use');
  await machine.release();

  const long = path.join(directory, 'r'.repeat(100));
  await refuses(machine, /api\.sock" has \d+ bytes; 107 are allowed; give a shorter --run directory/, '--run', long);
  const key = path.join(directory, 'state/key');
  const copy = path.join(directory, 'key-copy');
  await refuses(machine, /there is no key file ".*key-copy".*If it is elsewhere, name it with --key/, '--key', copy);
  copyFileSync(key, copy);
  chmodSync(copy, 0o644);
  await refuses(machine, /key-copy" has mode 0644, so others may have read the key; run: chmod 600/, '--key', copy);
  chmodSync(copy, 0o600);
  writeFileSync(copy, 'no key');
  await refuses(machine, /key-copy" holds no key: it must be one line/, '--key', copy);
  writeFileSync(copy, `${Buffer.alloc(32, 9).toString('base64')}\n`);
  await refuses(machine, /key-copy" is not the key of ".*store\.db"[^]*--key names the file/, '--key', copy);

  const open = path.join(directory, 'open');
  mkdirSync(open);
  chmodSync(open, 0o1777);
  await refuses(
    machine,
    /open" has mode 01777, so others may change what is in it; give another --state/,
    '--state',
    open,
  );
  assert.equal(statSync(open).mode & 0o7777, 0o1777);
  await refuses(machine, /cannot be used \(ENOTDIR|EEXIST\); give another --run/, '--run', key);

  const server = createServer().listen(0, '127.0.0.1');
  t.after(() => server.close());
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as { readonly port: number };
  await refuses(
    machine,
    new RegExp(`another process listens on 127.0.0.1:${port}; stop it`),
    '--listen',
    `127.0.0.1:${port}`,
  );
  await refuses(machine, /listening on "0\.0\.0\.0" needs TLS/, '--listen', '0.0.0.0:0');
});

test("up refuses another user's directory and leaves it as it is", { skip: needsRoot }, async (t) => {
  const machine = new UpMachine(t);
  const other = path.join(machine.directory, 'other');
  mkdirSync(other, { mode: 0o700 });
  chownSync(other, 1234, 1234);
  await refuses(machine, /other" belongs to uid 1234, and this is uid 0; give another --state/, '--state', other);
  assert.deepEqual([statSync(other).mode & 0o777, readdirSync(other)], [0o700, []]);
});

/** After the machine, so that it is unmounted after the machine's end. */
const smallDisk = (t: TestContext, size: string): string => {
  const base = mkdtempSync(path.join(tmpdir(), 'ph-disk-'));
  chmodSync(base, 0o711);
  const disk = path.join(base, 'disk');
  mkdirSync(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size},mode=0711`, 'tmpfs', disk]);
  t.after(async () => {
    // The keeper was killed the moment before, and has its log open until it is gone.
    await until('the disk to be unused', () => spawnSync('umount', [disk]).status === 0);
    rmSync(base, { recursive: true });
  });
  return disk;
};

test('a backup for which there is no room leaves nothing behind, on either disk', { skip: needsRoot }, async (t) => {
  const machine = new UpMachine(t);
  const state = smallDisk(t, '16m');
  const target = smallDisk(t, '64k');
  await machine.start({ stateDirectory: state });
  await makeKeys(machine, 'kept', 40);
  const small = await run(machine, 'backup', path.join(target, 'backup'));
  assert.equal(small.code, 1);
  assert.match(small.err, /writing ".*disk\/backup" failed: its disk is full; nothing is left of it/);
  assert.deepEqual(readdirSync(target), []);

  const ballast = path.join(state, 'ballast');
  const handle = await open(ballast, 'w');
  try {
    for (;;) await handle.write(Buffer.alloc(64 * 1024));
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'ENOSPC');
  } finally {
    await handle.close();
  }
  const file = path.join(machine.directory, 'backup');
  const full = await run(machine, 'backup', file);
  assert.equal(full.code, 1);
  assert.match(full.err, /the disk is full; free some room, then try again/);
  assert.equal(existsSync(file) || existsSync(`${file}.partial`), false);
  assert.deepEqual(
    readdirSync(path.join(state, 'store')).filter((name) => name.includes('backup')),
    [],
  );
  truncateSync(ballast);
  const good = await run(machine, 'backup', file);
  assert.deepEqual([good.code, good.err], [0, '']);
});

test('key rotate seals all anew under another key file, which the daemon then needs', async (t) => {
  const machine = new UpMachine(t);
  const { directory } = machine;
  await machine.start();
  await makeKeys(machine, 'kept', 20);
  const rotated = await run(machine, 'key', 'rotate');
  assert.deepEqual([rotated.code, rotated.err], [0, '']);
  assert.match(rotated.out, /^done: \d+ values sealed anew\n$/);
  const backup = path.join(directory, 'before');
  assert.equal((await run(machine, 'backup', backup)).code, 0);
  const keyFile = path.join(directory, 'key-2');
  const changed = await run(machine, 'key', 'rotate', '--key-file', 'key-2');
  assert.deepEqual([changed.code, changed.err], [0, '']);
  assert.match(changed.out, /the key file is now ".*key-2": start the daemon with --key '.*key-2' from now on/);
  assert.equal(statSync(keyFile).mode & 0o777, 0o600);
  chmodSync(keyFile, 0o644);
  const exposed = await run(machine, 'key', 'rotate', '--key-file', 'key-2');
  assert.equal(exposed.code, 1);
  assert.match(exposed.err, /key-2" has mode 0644.*chmod 600/);
  chmodSync(keyFile, 0o600);
  await machine.release();
  await refuses(machine, /is not the key of/);
  await machine.start({ keyFile });
  assert.equal((await keyNames(machine)).length, 20);
  await machine.release();
  const state = path.join(directory, 'state');
  const wrong = await run(machine, 'restore', backup, '--state', state, '--key', keyFile);
  assert.equal(wrong.code, 1);
  assert.match(wrong.err, /is not the key of ".*before"/);
  assert.equal((await run(machine, 'restore', backup, '--state', state)).code, 0);
  await machine.start({});
  assert.equal((await keyNames(machine)).length, 20);
});

const attach = async ({ client }: UpMachine, name: string): Promise<void> => {
  await client.call('createVm', { body: { name, kind: 'attached', spec: 'porthole: 1' } });
  await until(
    `${name} to be served`,
    async () => (await client.call('getVm', { params: { name } })).status === 'running',
    60_000,
  );
};

test('up gives its VMs other uids than another daemon of the machine, whose VMs live on when its own are deleted', {
  skip: needsRoot,
}, async (t) => {
  const [one, other] = [new UpMachine(t), new UpMachine(t)];
  await one.start();
  await other.start();
  await attach(one, 'web');
  await attach(other, 'web');
  const pids = [one, other].map((machine) => machine.devicePid('web')!);
  const uids = pids.map((pid) => statSync(`/proc/${pid}`).uid);
  assert.ok(uids[0]! >= 700_000 && uids[1]! >= 700_000 && uids[0] !== uids[1], uids.join(', '));
  await other.client.call('deleteVm', { params: { name: 'web' } });
  await until('the VM to be gone', async () => (await other.client.call('listVms', {})).vms.length === 0, 60_000);
  assert.ok(!existsSync(`/proc/${pids[1]}`));
  assert.equal(one.devicePid('web'), pids[0]);
  const base = String(uids[0]);
  await other.release();
  await refuses(other, new RegExp(`have uids from \\d+ on, and not from ${base}`), '--uid-base', base);
  const third = new UpMachine(t);
  await refuses(third, /are those of the VMs of another host daemon/, '--uid-base', base);
});

test('up serves from a checkout that nobody else can get to, such as one in the home directory of root', {
  skip: needsRoot,
}, async (t) => {
  const home = mkdtempSync(path.join(tmpdir(), 'ph-home-'));
  t.after(() => rmSync(home, { recursive: true, force: true }));
  const checkout = path.join(home, 'porthole');
  const root = path.join(import.meta.dirname, '../..');
  for (const name of ['porthole', 'package.json', 'package-lock.json', 'scripts/install-npm', 'src'])
    cpSync(path.join(root, name), path.join(checkout, name), { recursive: true });
  symlinkSync(path.join(root, 'node_modules'), path.join(checkout, 'node_modules'));
  assert.equal(statSync(home).mode & 0o777, 0o700);
  const machine = new UpMachine(t);
  machine.program = path.join(checkout, 'porthole');
  await machine.spawn();
  await attach(machine, 'web');
  const pid = machine.devicePid('web')!;
  assert.ok(statSync(`/proc/${pid}`).uid >= 700_000);
  assert.match(readFileSync(`/proc/${pid}/cmdline`, 'utf8'), /\/state\/program\/device-[^/]+\/src\/device\/main\.ts/);
});
