import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { SlowKeeper } from '../../test/tree/keepers.ts';
import { World } from '../../test/tree/world.ts';
import { until } from '../../test/until.ts';
import { encodeMessage, monotonicMs } from '../device/index.ts';
import { readerOnDevice } from '../device/link.ts';
import { LINK_PROTOCOL } from '../device/link-messages.ts';
import { DeviceSession } from './device-session.ts';
import { VmDevice, type VmDeviceOptions } from './vm-device.ts';

const caller = { uid: 0, gid: 0, pid: 1 };

test('VmDevice.release leaves nothing committed and unanswered, and takes in nothing that comes later', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-vm-device-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const linkPath = join(directory, 'link.sock');
  const keeper = new SlowKeeper();
  const { authority } = new World({ content: { guest: {} } }, { persist: keeper.persist });
  keeper.succeed();
  await authority.settled();

  // The device process, as far as it speaks over the link.
  const connected = Promise.withResolvers<Socket>();
  const server = createServer((socket) => connected.resolve(socket)).listen(linkPath);
  await once(server, 'listening');
  t.after(() => server.close());

  const config = { type: 'config', vm: 'web', vhostUser: [{ path: '/s', mode: 0o600 }], mounts: [] } as const;
  const session = new DeviceSession({
    authority,
    config: () => ({ ...config, options: { spinMicros: 0, allowUnsealedMemory: false } }),
    onEvent: () => {},
    onAuditWaiting: () => {},
  });
  const process1 = { ended: new Promise(() => {}), alive: true, look() {}, release() {}, signal: () => assert.fail() };
  const device = new VmDevice({
    vm: 'web',
    launcher: { adopt: () => process1 },
    launch: { command: ['none'], logFile: '' },
    linkPath,
    uid: process.getuid!(),
    session,
    prepare: () => {},
    onServing: () => {},
    onTrouble: assert.fail,
  } as unknown as VmDeviceOptions);
  device.start();
  const socket = await connected.promise;
  const reader = readerOnDevice();
  const answered: number[] = [];
  socket.on('data', (chunk: Uint8Array) => {
    for (const message of reader.feed(chunk)) if (message.type === 'outcome') answered.push(message.sequence);
  });
  socket.on('error', () => {});
  const closed = new Promise((resolve) => socket.once('close', resolve));
  const parentIno = authority.snapshot.resolve('/guest')!.ino;
  const make = (sequence: number): void => {
    const mutation = { op: 'create', caller, parentIno, name: `n${sequence}`, mode: 0o600, umask: 0 } as const;
    socket.write(
      encodeMessage({ type: 'mutation', sequence, way: 'virtiofs', mutation, expiresMs: monotonicMs() + 600_000 }),
    );
  };
  socket.write(encodeMessage({ type: 'hello', protocol: LINK_PROTOCOL, holder: randomUUID(), pid: 1 }));
  make(1);
  await until('the first to be on its way to the disk', () => keeper.batch.length > 0);
  device.hush();
  make(2);
  keeper.succeed();
  await authority.settled();
  await device.release();
  await closed;
  assert.deepEqual(answered, [1]);
  assert.ok(authority.snapshot.resolve('/guest/n1'));
  assert.equal(authority.snapshot.resolve('/guest/n2'), undefined);
});
