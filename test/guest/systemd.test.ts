/** Processes as transient units of a real systemd, in namespaces of its own on this machine. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { tinyImage } from '../../images/tiny/image.ts';

const spaces = ['--mount', '--pid', '--uts', '--ipc', '--cgroup', '--fork', '--kill-child'];

/** Why there can be no such namespaces here; empty where there can. */
function obstacle(): string {
  if (process.getuid?.() !== 0) return 'starting systemd in namespaces needs root';
  if (!existsSync('/lib/systemd/systemd')) return 'systemd is not installed';
  const script =
    'd=$(mktemp -d) && mount -t tmpfs none $d && mkdir $d/u $d/w $d/r && \
    mount -t overlay -o lowerdir=/,upperdir=$d/u,workdir=$d/w none $d/r && mount -t cgroup2 none $d/r/mnt';
  const { status, stderr } = spawnSync('unshare', [...spaces, 'sh', '-c', script], { encoding: 'utf8' });
  return status === 0 ? '' : `this machine gives no overlay or cgroup2: ${stderr.trim()}`;
}

test('SystemdLauncher makes units, and a VM in them goes on under another daemon', async (t) => {
  const why = obstacle();
  if (why !== '') return t.skip(why);
  await tinyImage();
  const out = mkdtempSync(join(tmpdir(), 'porthole-systemd-'));
  try {
    mkdirSync(join(out, 'mnt'));
    const here = import.meta.dirname;
    const command = [process.execPath, join(here, 'systemd/inside.ts')];
    const child = spawn('unshare', [...spaces, 'sh', join(here, 'systemd/boot.sh'), out, ...command], {
      env: { PATH: process.env['PATH'], PWD_INSIDE: process.cwd() },
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    const limit = setTimeout(() => child.kill('SIGKILL'), 300_000);
    await once(child, 'exit');
    clearTimeout(limit);
    const log = readFileSync(join(out, 'log'), 'utf8');
    const last = log.trim().split('\n').at(-1) ?? '';
    assert.match(last, /^\{/, log);
    check(JSON.parse(last) as Found);
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
});

interface Found {
  readonly [key: string]: unknown;
  readonly status: string;
  readonly units: string;
  readonly refused: { readonly words: string };
  readonly statistics: { readonly cpu: { readonly seconds: number } };
}

function check(found: Found): void {
  assert.equal(found['kind'], 'systemd');
  assert.equal(found['unit'], 'ph-first.service');
  for (const line of [/^Uid:\t700300\t700300\t/m, /^Groups:\t700301 $/m, /^NoNewPrivs:\t1$/m, /^CapBnd:\t0+$/m])
    assert.match(found.status, line);
  assert.equal(found['group'], '/porthole.slice/ph-first.service');
  assert.deepEqual(found['properties'], [
    'LimitNOFILE=77',
    'MemoryMax=100000000',
    'Slice=porthole.slice',
    'TasksMax=9',
  ]);
  assert.equal(found['words'], 'a $PATH %n "q"', 'arguments reach the program as they are');
  assert.deepEqual(found['killed'], { how: 'signal', signal: 'SIGKILL' });
  assert.deepEqual(found['exited'], { how: 'exit', status: 3 });
  assert.match(found.refused.words, /failed to execute \/no\/such\/program: No such file/);
  assert.match(found.units, /porthole-vm-tiny-[0-9a-f]{8}\.service +loaded active running Porthole: VM tiny\n/);
  assert.match(found.units, /porthole-watch-tiny-[0-9a-f]{8}\.service +loaded active running/);
  assert.equal(found['isSame'], true);
  assert.ok(found.statistics.cpu.seconds > 0);
  assert.deepEqual(found['story'], ['starting', 'running', 'stopping', 'stopped: the guest powered off when asked to']);
}
