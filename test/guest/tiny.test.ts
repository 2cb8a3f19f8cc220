/** The guest itself: its users, its control channel, its lives. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { after, before, describe, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { Guest } from '../../images/tiny/guest.ts';

describe('one guest', () => {
  let guest: Guest;
  before(async () => {
    guest = await Guest.start({ allowReset: true, allowKexec: true, numbers: true });
  });
  after(() => guest[Symbol.asyncDispose]());

  test('Guest.start is ready for commands when it returns', async (t) => {
    t.diagnostic(`from starting QEMU to the first command: ${Math.round(guest.bootMs)} ms`);
    assert.equal(await guest.sh('echo ready'), 'ready\n');
  });

  test('run gives a job the uid, gid and groups asked for, and no others', async () => {
    const ids = (options: object): Promise<string> => guest.sh('id -u; id -g; id -G; pwd; umask', options);
    assert.equal(await ids({}), '0\n0\n0\n/\n0022\n');
    assert.equal(await ids({ uid: 1000 }), '1000\n1000\n1000\n/\n0022\n');
    assert.equal(await ids({ uid: 1001, gid: 115, groups: [1000, 1002] }), '1001\n115\n115 1000 1002\n/\n0022\n');
    const status = await guest.sh('grep -E "^(CapEff|Uid)" /proc/self/status', { uid: 114 });
    assert.match(status, /Uid:\t114\t114\t114\t114\nCapEff:\t0000000000000000\n/);
  });

  test('the guest knows the users and groups of the examples by name', async () => {
    assert.match(await guest.sh('id postgres'), /^uid=114\(postgres\) gid=114\(postgres\)/);
    assert.match(await guest.sh('id app'), /^uid=1000\(app\) gid=1000\(app\) groups=1000\(app\),115\(ssl-cert\)/);
    assert.equal(await guest.sh('grep ssl-cert /etc/group'), 'ssl-cert:x:115:app\n');
  });

  test('run returns exit codes and signals as a shell does', async () => {
    assert.equal((await guest.run('exit 7')).exitCode, 7);
    const killed = await guest.run('kill -TERM $$');
    assert.deepEqual([killed.exitCode, killed.signal], [143, 15]);
    await assert.rejects(guest.sh('echo why >&2; exit 3'), /exited with 3: why/);
  });

  test('run carries standard input, output and error byte by byte', async () => {
    const stdin = randomBytes(1_000_003);
    const { stdout, stderr } = await guest.run('cat; echo aside >&2', { stdin });
    assert.ok(stdout.equals(stdin));
    assert.equal(stderr.toString(), 'aside\n');
    assert.equal(await guest.sh('wc -c'), '0\n');
  });

  test('run ends with its first process although another holds its output open', async () => {
    const text = await guest.sh('sleep 1000 & echo $!');
    await guest.sh(`kill ${text.trim()}`);
  });

  test('run serves many jobs at once', async () => {
    await guest.sh('mkfifo /tmp/one /tmp/two');
    const [first, second] = await Promise.all([
      guest.sh('read x </tmp/one; echo "$x back" >/tmp/two'),
      guest.sh('echo there >/tmp/one; cat /tmp/two'),
    ]);
    assert.deepEqual([first, second], ['', 'there back\n']);
    const numbers = Array.from({ length: 40 }, (_, index) => index);
    assert.deepEqual(
      await Promise.all(numbers.map((number) => guest.sh(`echo ${number}`))),
      numbers.map((number) => `${number}\n`),
    );
  });

  test('run kills a job that takes too long, and tells what it had printed', async () => {
    const late = guest.run('echo started; sleep 4321 & sleep 4321', { timeoutMs: 1000 });
    await assert.rejects(late, /no end after 1000 ms\nstandard output so far: started\n/);
    await guest.sh('while pgrep -f "sleep 4321"; do :; done');
  });

  test('spawn runs a job that can be fed, watched and killed', async () => {
    await using job = guest.spawn('trap "echo bye; exit 5" TERM; while read line; do echo "got $line"; done');
    assert.match(await guest.sh(`cat /proc/${await job.pid}/comm`), /sh/);
    job.write('a\n');
    await job.waitForOutput(/got a\n/);
    job.write('b\n');
    await job.waitForOutput(/got b\n/);
    job.kill();
    job.endInput();
    const { exitCode, text } = await job.done;
    assert.deepEqual([exitCode, text], [5, 'got a\ngot b\nbye\n']);
    await assert.rejects(job.waitForOutput(/never/), /the job ended; standard output "got a/);
  });

  test('run has both shells, and the tools for ACLs and attributes', async () => {
    assert.equal(await guest.sh('echo $BASH_VERSION | cut -c1', { shell: 'bash' }), '5\n');
    assert.equal(await guest.sh('readlink -f /bin/sh; readlink /proc/$$/exe'), '/usr/bin/dash\n/usr/bin/dash\n');
    assert.equal(await guest.sh('readlink /proc/$$/exe', { shell: 'ash' }), '/bin/busybox\n');
    const acl = await guest.sh('touch /tmp/acl; setfacl -m u:114:r /tmp/acl; getfacl -cn /tmp/acl; ls -l /tmp/acl');
    assert.match(acl, /^user::rw-\nuser:114:r--\n[^]*-rw-r--r--\+/);
    const hex = await guest.sh('getfattr --only-values -n system.posix_acl_access /tmp/acl | wc -c');
    assert.equal(hex, '44\n');
    assert.equal(await guest.sh('stat -c "%a %U" /etc/passwd'), '644 root\n');
  });

  test('qmp stops and continues the guest', async () => {
    await guest.qmp('stop');
    assert.deepEqual(await guest.qmp('query-status'), { running: false, singlestep: false, status: 'paused' });
    let ended = false;
    const job = guest.spawn('echo on');
    const watch = job.done.then(() => {
      ended = true;
      return ended;
    });
    await guest.qmp('query-status');
    assert.equal(ended, false);
    await guest.qmp('cont');
    assert.equal(await watch, true);
    await assert.rejects(guest.qmp('no-such-command'), /"no-such-command" failed: The command no-such-command has not/);
  });

  test('sendNumber reaches the file that keeps the last number', async () => {
    await using keeper = await guest.keepNumbers('/tmp/floor');
    assert.ok((await keeper.pid) > 1);
    for (let number = 1; number <= 2000; number++) guest.sendNumber(number);
    await guest.sh('until [ "$(od -An -tu8 /tmp/floor | tr -d " ")" = 2000 ]; do :; done');
  });

  test('shell lends the console to a terminal and returns the shell’s exit code', async () => {
    const [input, output] = [new PassThrough(), new PassThrough()];
    let seen = '';
    output.setEncoding('utf8').on('data', (text: string) => {
      seen += text;
    });
    input.write('echo $((6 * 7)); tty; exit 3\n');
    assert.equal(await guest.shell(input, output), 3);
    assert.match(seen, /\r\n42\r\n\/dev\/tty\w+\r\n/);
  });

  test('modules for 9P and vsock load when asked for', async () => {
    await guest.sh('modprobe 9pnet_fd && modprobe vmw_vsock_virtio_transport && modprobe vsock_loopback');
    assert.match(await guest.sh('modprobe 9p && cat /proc/filesystems'), /nodev\t9p\n/);
    assert.equal(await guest.sh('test -c /dev/vsock && echo yes'), 'yes\n');
  });

  test('reset boots the guest again, and jobs of before are lost', async () => {
    const job = guest.spawn('sleep 1000');
    await job.pid;
    const before = await guest.sh('touch /tmp/mark; cat /proc/sys/kernel/random/boot_id');
    await guest.reset();
    await assert.rejects(job.done, /guest job lost: the guest was reset/);
    assert.notEqual(await guest.sh('cat /proc/sys/kernel/random/boot_id'), before);
    assert.equal((await guest.run('test -e /tmp/mark')).exitCode, 1);
  });

  test('kexec starts a new kernel without a reset of the machine', async (t) => {
    const before = await guest.sh('cat /proc/sys/kernel/random/boot_id');
    const started = performance.now();
    await guest.kexec();
    t.diagnostic(`kexec until the next command: ${Math.round(performance.now() - started)} ms`);
    assert.notEqual(await guest.sh('cat /proc/sys/kernel/random/boot_id'), before);
    assert.equal(await guest.sh('id -u', { uid: 1000 }), '1000\n');
  });
});

test('Guest.start gives the memory asked for, beyond 4 GiB too', async () => {
  await using guest = await Guest.start({ memory: '6G', cpus: 2 });
  assert.match(await guest.sh('grep RAM /proc/iomem'), /^100000000-1ffffffff : System RAM$/m);
  assert.equal(await guest.sh('nproc'), '2\n');
});

test('Guest.start tells QEMU’s words when QEMU refuses', async () => {
  await assert.rejects(
    Guest.start({ qemuArgs: ['-device', 'no-such-device'] }),
    /did not become ready[^]*'no-such-device' is not a valid device model name/,
  );
});

test('Guest.start tells the console when the kernel panics', async () => {
  await assert.rejects(
    Guest.start({ kernelArgs: ['rdinit=/absent', 'root=/dev/absent'] }),
    /did not become ready[^]*Kernel panic/,
  );
});

test('powerOff ends QEMU, and disposal leaves no process', async () => {
  const guest = await Guest.start();
  const { qemuPid } = guest;
  assert.ok(existsSync(`/proc/${qemuPid}`));
  await guest.powerOff();
  await guest[Symbol.asyncDispose]();
  assert.equal(existsSync(`/proc/${qemuPid}`), false);
  await assert.rejects(guest.run('true'), /guest job after QEMU ended: true/);
});

test('QEMU ends when the process that started it is killed', async () => {
  const face = new URL('../../images/tiny/guest.ts', import.meta.url).href;
  const script = `import { Guest } from ${JSON.stringify(face)};
    const guest = await Guest.start();
    process.stdout.write(String(guest.qemuPid), () => process.kill(process.pid, 'SIGKILL'));`;
  const dir = mkdtempSync(join(tmpdir(), 'porthole-killed-'));
  const { stdout, signal } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
    env: { ...process.env, TMPDIR: dir },
  });
  rmSync(dir, { recursive: true });
  assert.equal(signal, 'SIGKILL');
  const cmdline = `/proc/${Number(stdout)}/cmdline`;
  const isRunning = (): boolean => existsSync(cmdline) && readFileSync(cmdline, 'utf8').includes('qemu-system');
  const deadline = performance.now() + 60_000;
  while (isRunning() && performance.now() < deadline) await setImmediate();
  assert.equal(isRunning(), false);
});
