/** What a VM of ours is made of: disks that last, a network with forwards, metadata, images built by a recipe. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ensureDisk, ImageStore, type VmMachine, vmStatistics } from '../../src/qemu/index.ts';
import { until } from '../until.ts';
import { bootLimitMs, OwnVm, shell, testUid } from './own-vm.ts';

const limit = (): AbortSignal => AbortSignal.timeout(bootLimitMs);
const imagesGid = 700_124;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

test('Vm keeps its disk over boots, on an image that it cannot write, and is seen at work', async () => {
  await using own = await OwnVm.make({ options: { groups: [imagesGid] } });
  const store = new ImageStore({ directory: join(own.dir, 'images'), sandboxUid: 700_125, gid: imagesGid });
  const raw = join(own.dir, 'raw');
  writeFileSync(raw, 'from the image');
  truncateSync(raw, 1024 * 1024);
  const base = await store.addDisk({ file: raw, format: 'raw' });
  const { path } = base;
  const disk = { path: own.paths.disk, base, uid: testUid, groups: [imagesGid], sizeBytes: 8 * 1024 * 1024 };
  own.change({ disks: [{ path: own.paths.disk, format: 'qcow2', base: { path, format: 'qcow2' }, serial: 'root' }] });
  own.create = async () => {
    await ensureDisk(disk);
  };
  own.vm.start();
  await own.ready();
  assert.match(
    await shell(own, 'head -c 14 /dev/vda; blockdev --getsize64 /dev/vda; cat /sys/block/vda/serial'),
    /from the image8388608\r\nroot/,
  );
  await shell(own, 'printf "kept over boots" | dd of=/dev/vda bs=512 seek=9 conv=fsync 2>/dev/null');
  const seen = await vmStatistics(own.vm.qemuPid!, { qmp: own.vm.qmp });
  assert.ok(seen && seen.cpu.seconds > 0.1 && seen.cpu.guestSeconds > 0 && seen.cpu.guestSeconds <= seen.cpu.seconds);
  assert.ok(seen.memory.residentBytes > 64 * 1024 * 1024 && seen.memory.peakBytes >= seen.memory.residentBytes);
  assert.ok(seen.openFiles > 10);
  const { disk0 } = seen.disks;
  assert.ok(disk0 && disk0.readBytes >= 512 && disk0.writtenBytes >= 512 && disk0.flushes >= 1 && disk0.failures === 0);
  own.vm.reboot();
  await own.ready(2);
  assert.equal(own.boots.length, 2);
  assert.match(await shell(own, 'dd if=/dev/vda bs=512 skip=9 count=1 2>/dev/null | head -c 15'), /kept over boots/);
  assert.deepEqual(store.open(base.digest), base, 'the image is as it was');
  assert.equal(await vmStatistics(2 ** 22 + 1), undefined);
});

test('Vm from an image built by a recipe answers on a forwarded port, isolated too, and its console log stays short', async () => {
  const hostPort = await freePort();
  const consoleLogBytes = 8_192;
  await using own = await OwnVm.make({ options: { groups: [imagesGid], consoleLogBytes } });
  const store = new ImageStore({ directory: join(own.dir, 'images'), sandboxUid: 700_125, gid: imagesGid });
  const recipe = join(import.meta.dirname, '../../images/tiny/recipe.ts');
  const image = await store.build([process.execPath, recipe]);
  assert.ok(image.kind === 'kernel' && image.initrd !== undefined);
  const { kernel, initrd, commandLine } = image;
  const boot: VmMachine['boot'] = { from: 'kernel', kernel, initrd, commandLine };
  const network: VmMachine['network'] = { kind: 'user', forwards: [{ protocol: 'tcp', hostPort, guestPort: 80 }] };
  own.change({ boot, network });
  own.vm.start();
  await own.ready();
  const serveInside = async (): Promise<void> => {
    await shell(own, 'mkdir -p /srv && echo hello from inside >/srv/index.html && httpd -h /srv');
    const answer = await until(
      'an answer',
      () => fetch(`http://127.0.0.1:${hostPort}/`).catch(() => undefined),
      bootLimitMs,
    );
    assert.equal(await answer.text(), 'hello from inside\n');
  };
  await serveInside();
  await shell(own, 'seq 1 20000');
  const pieces = readdirSync(own.paths.state).filter((name) => name.startsWith('console.log.'));
  assert.equal(pieces.length, 2);
  for (const name of pieces) {
    const { size, mode } = statSync(join(own.paths.state, name));
    assert.ok(size > 0 && size <= consoleLogBytes, `${name} has ${size} bytes`);
    assert.equal(mode & 0o777, 0o600);
  }
  assert.match(own.console, /\r\n19990\r\n[^]*\r\n20000\r\n/);
  // The address at which a guest meets services of this machine.
  await using outside = createServer((socket) => socket.end('hello from outside')).listen(0, '127.0.0.1');
  await once(outside, 'listening');
  const ask = `nc -w 5 10.0.2.2 ${(outside.address() as { port: number }).port} </dev/null; echo status $?`;
  assert.match(await shell(own, ask), /hello from outsidestatus 0/);
  own.change({ boot, network: { ...network, isolated: true } });
  own.vm.reboot();
  // What the first boot said at its start is in the log no more.
  await own.ready();
  await serveInside();
  assert.match(await shell(own, ask), /status 1/, 'an isolated guest gets nowhere, and answers all the same');
});

test('Vm waits when there is no room for its disk, says so, and goes on by itself', async (t) => {
  const small = mkdtempSync(join(tmpdir(), 'porthole-small-'));
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=4M,mode=711', 'none', small]).status !== 0)
    return t.skip('mounting a small file system needs root');
  try {
    await using own = await OwnVm.make();
    const path = join(small, 'disk.qcow2');
    await ensureDisk({ path, sizeBytes: 64 * 1024 * 1024, uid: testUid });
    own.change({ disks: [{ path, format: 'qcow2' }] });
    own.vm.start();
    await own.ready();
    const { socket } = own.attach();
    socket.write('dd if=/dev/urandom of=/dev/vda bs=64k count=128 conv=fsync; echo dd is done\n');
    await own.vm.until(({ reason }) => reason.startsWith('paused'), limit());
    assert.equal(own.vm.state.status, 'running');
    assert.equal(
      own.vm.state.reason,
      "paused: there is no room for its disk's data on this machine; it goes on by itself when that is mended",
    );
    execFileSync('mount', ['-o', 'remount,size=64M', small]);
    await until('the write', () => own.console.includes('\ndd is done'), bootLimitMs);
    socket.destroy();
    await own.vm.until(({ reason }) => reason === '', limit());
    assert.equal(own.vm.state.status, 'running');
    assert.equal(own.boots.length, 1);
  } finally {
    execFileSync('umount', [small]);
    rmSync(small, { recursive: true });
  }
});

/** A boot sector that writes what follows it to the first serial port, and halts. */
const serialSector = Buffer.concat([
  Buffer.from('fa31c08ed8be177cfcac84c07406baf803eeebf5f4ebfd', 'hex'),
  Buffer.from('hello from the disk\r\n\0', 'latin1'),
]);

test('Vm boots from its disk, by firmware', async (t) => {
  if (process.arch !== 'x64') return t.skip('the sector is x86 code');
  await using own = await OwnVm.make({ options: { groups: [imagesGid] } });
  const store = new ImageStore({ directory: join(own.dir, 'images'), sandboxUid: 700_125, gid: imagesGid });
  const raw = join(own.dir, 'raw');
  const sector = Buffer.alloc(512);
  serialSector.copy(sector);
  sector.writeUInt16LE(0xaa55, 510);
  writeFileSync(raw, sector);
  truncateSync(raw, 1024 * 1024);
  const base = await store.addDisk({ file: raw, format: 'raw' });
  const path = own.paths.disk;
  own.create = async () => {
    await ensureDisk({ path, base, uid: testUid, groups: [imagesGid] });
  };
  own.change({
    boot: { from: 'disk' },
    disks: [{ path, format: 'qcow2', base: { path: base.path, format: 'qcow2' } }],
  });
  own.vm.start();
  await until('the words of the disk', () => own.console.includes('hello from the disk'), bootLimitMs);
});
