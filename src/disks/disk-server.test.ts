/** Network disks with the real qemu-nbd, and qemu-io as the QEMU of a host. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { until } from '../../test/until.ts';
import { SessionLauncher, writeDiskKey } from '../qemu/index.ts';
import type { OpenDisk } from '../records/index.ts';
import { DiskServer } from './disk-server.ts';

const run = promisify(execFile);
const id = 'i-00000000000000001';
const sizeBytes = 1024 * 1024;

test('DiskServer exports a disk for one epoch at a time, to who has its key, and keeps what is written', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'ph-disks-'));
  const server = (): DiskServer =>
    new DiskServer({
      directory: join(directory, 'disks'),
      launcher: new SessionLauncher(),
      address: '127.0.0.1',
      onTrouble: assert.fail,
    });
  const first = server();
  t.after(async () => {
    await first.remove(id);
    first[Symbol.dispose]();
    rmSync(directory, { recursive: true, force: true });
  });
  const io = async ({ port, key }: OpenDisk, command: string): Promise<string> => {
    writeDiskKey(join(directory, 'key'), key, undefined);
    const { stdout } = await run('qemu-io', [
      ...['--object', `tls-creds-psk,id=k,endpoint=client,username=porthole,dir=${join(directory, 'key')}`],
      ...['--image-opts', `driver=nbd,host=127.0.0.1,port=${port},export=${id},tls-creds=k`],
      ...['-c', command],
    ]);
    return stdout;
  };
  const wish = { id, epoch: 1, sizeBytes };
  const one = await first.open(wish);
  assert.deepEqual(await first.open(wish), one, 'it is open already');
  await io(one, 'write -P 7 0 4096');
  await assert.rejects(io({ ...one, key: '0'.repeat(64) }, 'read 0 512'), /TLS|handshake|authenticat/i);

  // A manager that is started anew finds it open.
  {
    using second = server();
    assert.deepEqual(await second.open(wish), one);
    assert.equal(second.id, first.id);
  }
  // One that ends by itself is found where it was.
  assert.deepEqual(first.lost(), []);
  const kept = JSON.parse(readFileSync(join(directory, 'disks', id, 'export.json'), 'utf8')) as {
    process: { pid: number };
  };
  process.kill(kept.process.pid, 'SIGKILL');
  await until('it to be lost', () => first.lost().includes(id));
  assert.deepEqual(await first.open(wish), one);
  assert.deepEqual(first.lost(), []);
  assert.match(await io(one, 'read -P 7 0 4096'), /read 4096\/4096/);
  const two = await first.open({ ...wish, epoch: 2 });
  assert.notEqual(two.key, one.key);
  await assert.rejects(io(one, 'read 0 512'), 'its export has ended');
  assert.match(await io(two, 'read -P 7 0 4096'), /read 4096\/4096/);
  await assert.rejects(first.open(wish), /was opened for epoch 2, and is not for 1 any more/);
  using third = server();
  await assert.rejects(third.open(wish), /was opened for epoch 2/);

  await first.remove(id);
  assert.equal(existsSync(join(directory, 'disks', id)), false);
  await assert.rejects(io(two, 'read 0 512'));
});

test('DiskServer bounds the logs of exports, to which anybody can speak', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const directory = mkdtempSync(join(tmpdir(), 'ph-disks-'));
  using server = new DiskServer({
    ...{ directory, launcher: new SessionLauncher(), address: '127.0.0.1', onTrouble: assert.fail },
  });
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  await server.open({ id, epoch: 1, sizeBytes });
  const log = join(directory, id, 'log');
  appendFileSync(log, 'a line\n'.repeat(1024 * 1024));
  t.mock.timers.tick(60_000);
  assert.ok(statSync(log).size <= 1024 * 1024);
  let isRemoved = false;
  const removing = server.remove(id).then(() => (isRemoved = true));
  await until('it to be removed', () => {
    t.mock.timers.tick(1_000);
    return isRemoved;
  });
  await removing;
});
