/** 9P in a guest by every way there: the mount helper, and programs that connect by themselves. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Guest } from '../../images/tiny/guest.ts';
import { qemuVsockArguments } from '../../src/host/index.ts';
import { ninepArguments } from '../../src/qemu/index.ts';
import { compile } from '../compile.ts';
import { mountHelper } from '../ninep/guest-mount.ts';
import { ServedNinep } from '../ninep/served.ts';

const spec = `porthole: 1
metadata:
  instance: { id: i-1 }
  secrets: { db-password: hunter2, of-root: x }
  guest: {}
users: { postgres: 114, app: 1000 }
policy:
  - { path: /secrets/db-password, owner: postgres, mode: "0400" }
ninep: { mountUser: postgres }
`;

const attacker = path.join(import.meta.dirname, '../ninep/attach-as-root.c');
const MOUNT = '/run/metadata';
const PORT = 564;

describe('9P in a guest', () => {
  let served: ServedNinep;
  let guest: Guest;

  before(async () => {
    served = await ServedNinep.start(spec, { vsockPort: PORT, http: true });
    guest = await Guest.start({
      shares: [
        { tag: 'helper', path: path.dirname(mountHelper()) },
        { tag: 'attacker', path: path.dirname(compile(attacker, ['-static'])) },
      ],
      qemuArgs: [
        ...ninepArguments(served.socket),
        ...qemuVsockArguments(`${served.vsock}.vhost-user`),
        ...['-netdev', 'user,id=net', '-device', 'virtio-net-pci,netdev=net,romfile='],
      ],
    });
    await guest.sh(`
      modprobe virtio_net && ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0
      modprobe vmw_vsock_virtio_transport && mkdir -p ${MOUNT}
      for tag in helper attacker; do
        mkdir -p /run/$tag && mount -t 9p -o trans=virtio,version=9p2000.L,ro $tag /run/$tag
      done`);
  });
  after(async () => {
    await guest?.[Symbol.asyncDispose]();
    await served[Symbol.asyncDispose]();
  });

  /** What a program that runs as `uid` and attaches as root gets of postgres's secret. */
  const attach = async (uid: number, where: string): Promise<string> =>
    (await guest.sh(`/run/attacker/attach-as-root ${uid} ${where} secrets db-password`)).trim();
  const helper = (source: string, options = '') =>
    guest.run(`/run/helper/mount.porthole ${source} ${MOUNT} ${options}`, { timeoutMs: 60_000 });
  /** Reads the secret as different users, through the mount that is there. */
  async function assertMounted(): Promise<void> {
    for (const [uid, expected] of [
      [0, 'hunter2'],
      [114, 'hunter2'],
      [1000, 'Permission denied'],
      [2000, 'Permission denied'],
    ] as const) {
      const said = await guest.run(`setpriv --reuid ${uid} cat ${MOUNT}/secrets/db-password 2>&1`);
      assert.match(said.text, new RegExp(`${expected}$`, 'm'), `uid ${uid}`);
    }
    assert.match(await guest.sh(`grep ' ${MOUNT} ' /proc/mounts`), / 9p rw,.*nosuid,nodev,.*access=user,/);
    assert.equal(await guest.sh(`echo told >${MOUNT}/guest/inside && cat ${MOUNT}/guest/inside`), 'told\n');
  }

  test('uid 1000 that connects by itself and attaches as root gets nothing, on the console, by vsock and by TCP', async () => {
    const tcp = `tcp:10.0.2.2:${served.port}`;
    assert.equal(await attach(1000, 'console:/dev/hvc1'), 'open EACCES');
    assert.equal(await attach(1000, `vsock:${PORT}`), 'attach EACCES');
    assert.equal(await attach(1000, `vsock:${PORT}:1000`), 'bind EACCES');
    assert.equal(await attach(1000, tcp), 'attach EACCES');
    // Nor root, whose port the user-mode network hides, or who takes one that everybody may have.
    assert.equal(await attach(0, tcp), 'attach EACCES');
    assert.equal(await attach(0, `vsock:${PORT}:5000`), 'attach EACCES');
    // Root by a privileged port is who it says.
    assert.equal(await attach(0, `vsock:${PORT}:1000`), 'read hunter2');
    assert.equal(await attach(0, 'console:/dev/hvc1'), 'read hunter2');
  });

  test('mount.porthole mounts over the console, again and again, whatever was left on the line', async () => {
    for (const left of [
      '',
      '',
      String.raw`printf '\200\377\0\0\104half a frame' >/dev/hvc1`,
      'echo hello >/dev/hvc1',
    ]) {
      await guest.sh(`stty raw -echo -F /dev/hvc1; ${left}`);
      const { exitCode, errorText } = await helper('hvc1');
      assert.deepEqual([exitCode, errorText], [0, ''], left);
      await assertMounted();
      const second = await helper('/dev/hvc1');
      assert.equal(second.exitCode, 32);
      assert.match(second.errorText, /\/dev\/hvc1 is in use; is it mounted already\?/);
      await guest.sh(`umount ${MOUNT}`);
    }
    assert.equal((await guest.sh('stat -c %a:%u:%g /dev/hvc1')).trim(), '600:0:0');
  });

  test('mount.porthole mounts over vsock, as often as one likes', async () => {
    for (let i = 0; i < 2; i++) {
      const { exitCode, errorText } = await helper(`vsock:${PORT}`, '-o rw,noatime');
      assert.deepEqual([exitCode, errorText], [0, '']);
      await assertMounted();
      await guest.sh(`umount ${MOUNT}`);
    }
  });

  test('mount.porthole mounts with this boot’s token where no port vouches for it, and shows it to nobody', async () => {
    // The user-mode network hides which port a connection comes from.
    const tcp = `tcp:10.0.2.2:${served.port}`;
    const without = await helper(tcp);
    assert.equal(without.exitCode, 32);
    assert.match(without.errorText, /the host lets nobody attach from here; with this boot's token it may/);
    const token = await served.claimToken();
    await guest.sh(`umask 077; echo ${token} >/run/token; echo ${token}x >/run/other; echo >/run/none`);
    for (const source of [tcp, `vsock:${PORT}`]) {
      const { exitCode, errorText } = await helper(source, '-o token-file=/run/token');
      assert.deepEqual([exitCode, errorText], [0, ''], source);
      await assertMounted();
      assert.doesNotMatch(await guest.sh('cat /proc/mounts; dmesg'), new RegExp(token));
      await guest.sh(`umount ${MOUNT}`);
    }
    await guest.sh('cp /run/token /run/open; chmod 644 /run/open');
    for (const [file, code, words] of [
      ['/run/other', 32, /does not know the token in \/run\/other; it is good for one boot/],
      ['/run/open', 1, /\/run\/open can be read by others than root/],
      ['/run/none', 1, /\/run\/none holds no token/],
      ['/run/nowhere', 1, /opening the token's file \/run\/nowhere failed/],
    ] as const) {
      const { exitCode, errorText } = await helper(tcp, `-o token-file=${file}`);
      assert.equal(exitCode, code, `${file}: ${errorText}`);
      assert.match(errorText, words);
    }
    assert.ok(!JSON.stringify(served.events).includes(token), 'nobody is told of it on the host');
  });

  test('a mount that attaches once is the user that the spec says', async () => {
    const { exitCode, errorText } = await helper('hvc1', '-o access=any');
    assert.deepEqual([exitCode, errorText], [0, '']);
    const read = async (uid: number, name: string): Promise<string> =>
      (await guest.run(`setpriv --reuid ${uid} cat ${MOUNT}/secrets/${name} 2>&1`)).text.trim().split(': ').at(-1)!;
    // The guest's kernel lets its root pass; the host sees postgres.
    assert.equal(await read(0, 'db-password'), 'hunter2');
    assert.equal(await read(0, 'of-root'), 'Permission denied');
    assert.equal(await read(114, 'db-password'), 'hunter2');
    assert.equal(await read(1000, 'db-password'), 'Permission denied');
    await guest.sh(`umount ${MOUNT}`);
  });

  test('mount.porthole says what is wrong', async () => {
    for (const [args, code, words] of [
      ['', 1, /usage: mount.porthole/],
      [`hvc7 ${MOUNT}`, 2, /there is no console \/dev\/hvc7: the machine was started without one for 9P/],
      [`/dev/null ${MOUNT}`, 1, /\/dev\/null is no console; give one like \/dev\/hvc1, vsock:PORT or tcp:ADDRESS:PORT/],
      [`vsock:777 ${MOUNT}`, 2, /nobody serves 9P on vsock port 777: Connection reset by peer/],
      ['hvc1 /no/such', 1, /\/no\/such is no directory; make it first/],
      [`hvc1 ${MOUNT} -o cache=loose`, 1, /"cache=loose": 9P tells nobody of changes/],
      [`hvc1 ${MOUNT} -o acces=user`, 1, /unknown option "acces=user"/],
      [`hvc1 ${MOUNT} -o aname=token=x`, 1, /everybody could read the token in \/proc\/mounts; give it by token-file=/],
      [`tcp:10.0.2.2 ${MOUNT}`, 1, /"tcp:10.0.2.2" is no address and port; write tcp:192.0.2.1:564/],
      [`tcp:10.0.2.2:1 ${MOUNT}`, 2, /nobody serves 9P on tcp:10.0.2.2:1: Connection refused/],
      [`hvc1 ${MOUNT} -o msize=1`, 1, /"msize=1": give 4096 to 262144/],
      [`hvc0 ${MOUNT} -o timeout=1`, 32, /nobody speaks 9P2000.L on \/dev\/hvc0/],
    ] as const) {
      const { exitCode, errorText } = await guest.run(`/run/helper/mount.porthole ${args}`);
      assert.equal(exitCode, code, `${args}: ${errorText}`);
      assert.match(errorText, words);
    }
    const asUser = await guest.run(`setpriv --reuid 1000 /run/helper/mount.porthole hvc1 ${MOUNT}`);
    assert.deepEqual([asUser.exitCode, asUser.errorText.trim()], [1, 'mount.porthole: mounting needs root']);
  });
});
