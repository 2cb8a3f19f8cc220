import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, readlinkSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { until } from '../../test/until.ts';
import { QemuError } from './error.ts';
import { endingInWords, identify, processStart } from './process-identity.ts';
import { killStrays } from './strays.ts';
import { type LaunchSpec, lastLine, SessionLauncher } from './units.ts';

const dir = mkdtempSync(join(tmpdir(), 'porthole-units-'));
after(() => rmSync(dir, { recursive: true }));
const launcher = new SessionLauncher();
let count = 0;
const spec = (command: readonly [string, ...string[]], more: Partial<LaunchSpec> = {}): LaunchSpec => {
  const name = `porthole-test-${process.pid}-${count++}`;
  return { name, description: 'a test', command, logFile: join(dir, name), ...more };
};
const sleep = ['sleep', '1000'] as const;

test('SessionLauncher starts a process in a session of its own, with none of our environment', async () => {
  process.env['PORTHOLE_TEST_SECRET'] = 'x';
  const process1 = await launcher.launch(spec(sleep, { environment: { GIVEN: '1' } }));
  const { pid } = process1.identity;
  assert.equal(process1.alive, true);
  await until('the program', () => readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('sleep'));
  assert.equal(
    execFileSync('ps', ['-o', 'sid=,pgid=', '-p', String(pid)], { encoding: 'utf8' })
      .trim()
      .split(/ +/)
      .join(),
    `${pid},${pid}`,
  );
  const environment = readFileSync(`/proc/${pid}/environ`, 'utf8');
  assert.match(environment, /GIVEN=1/);
  assert.doesNotMatch(environment, /PORTHOLE_TEST_SECRET/);
  assert.equal(readlinkSync(`/proc/${pid}/cwd`), '/');
  assert.equal(process1.signal('SIGTERM'), true);
  assert.deepEqual(await process1.ended, { how: 'signal', signal: 'SIGTERM' });
  assert.equal(process1.signal('SIGKILL'), false);
});

test('SessionLauncher holds limits and identity', async (t) => {
  if (process.getuid?.() !== 0) return t.skip('giving a process another user needs root');
  const limits = { addressSpaceBytes: 2 ** 30, openFiles: 99, processes: 7, othersOfUid: 5, memoryBytes: 2 ** 20 };
  const child = await launcher.launch(spec(sleep, { uid: 700_300, groups: [700_301], limits }));
  const { pid } = child.identity;
  await until('the program', () => readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('sleep'));
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  for (const line of [
    /^Uid:\t700300\t700300\t700300\t700300$/m,
    /^Gid:\t700300\t/m,
    /^Groups:\t700301 $/m,
    /^NoNewPrivs:\t1$/m,
    /^CapEff:\t0+$/m,
    /^CapBnd:\t0+$/m,
  ])
    assert.match(status, line);
  const held = readFileSync(`/proc/${pid}/limits`, 'utf8');
  for (const line of [
    /Max address space +1073741824 /,
    /Max open files +99 /,
    /Max processes +12 /,
    /Max core file size +0 /,
  ])
    assert.match(held, line);
  child.signal('SIGKILL');
  await child.ended;
});

test('SessionLauncher tells how a process ended, and keeps its words', async () => {
  const failing = spec(['sh', '-c', 'echo first; printf "bad \\033[2Jend\\n" >&2; exit 3']);
  const child = await launcher.launch(failing);
  const ending = await child.ended;
  assert.deepEqual(ending, { how: 'exit', status: 3 });
  assert.equal(endingInWords(ending), 'ended with status 3');
  assert.equal(lastLine(failing.logFile), 'bad \\u{1b}[2Jend');
  assert.equal(statSync(failing.logFile).mode & 0o777, 0o600);
  const absent = spec(['/no/such/program']);
  const child2 = await launcher.launch(absent);
  assert.deepEqual(await child2.ended, { how: 'exit', status: 127 });
  assert.match(lastLine(absent.logFile), /\/no\/such\/program.*No such file/);
  assert.equal(lastLine(join(dir, 'no-log')), '');
  const thrown = spec([process.execPath, '-e', 'throw new RangeError("too far")']);
  await (await launcher.launch(thrown)).ended;
  assert.equal(lastLine(thrown.logFile), 'RangeError: too far');
});

test('SessionLauncher refuses a name that is none, and a log that is a link', async () => {
  const named = (name: string) => launcher.launch(spec(sleep, { name }));
  for (const name of ['', '-a', 'a/b', 'a b', 'a.service'])
    await assert.rejects(named(name), (error) => error instanceof QemuError && error.code === 'MACHINE_INVALID');
  const target = join(dir, 'target');
  writeFileSync(target, 'kept');
  symlinkSync(target, join(dir, 'link'));
  await assert.rejects(launcher.launch(spec(sleep, { logFile: join(dir, 'link') })), /ELOOP/);
  assert.equal(readFileSync(target, 'utf8'), 'kept');
});

test('adopt finds a process that another process started, and outlives it', async () => {
  // A daemon of its own, which starts one and is killed.
  const program = `
    const { SessionLauncher } = await import(${JSON.stringify(join(import.meta.dirname, 'units.ts'))});
    const child = await new SessionLauncher().launch(${JSON.stringify(spec(sleep))});
    console.log(JSON.stringify(child.identity));
    setInterval(() => {}, 1000);`;
  const daemon = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(daemon.stdout.setEncoding('utf8'), 'data')) as [string];
  const identity = JSON.parse(line) as Parameters<SessionLauncher['adopt']>[0];
  daemon.kill('SIGKILL');
  await once(daemon, 'exit');
  const adopted = launcher.adopt(identity);
  assert.equal(adopted?.alive, true);
  assert.equal(adopted.signal('SIGTERM'), true);
  assert.deepEqual(await adopted.ended, { how: 'unknown' });
  assert.equal(launcher.adopt(identity), undefined);
});

test('adopt takes no other process for the one it looks for', async () => {
  const child = await launcher.launch(spec(sleep));
  const { identity } = child;
  assert.equal(launcher.adopt({ ...identity, startTicks: identity.startTicks - 1 }), undefined);
  assert.equal(launcher.adopt({ ...identity, machineBootId: 'another boot' }), undefined);
  assert.equal(launcher.adopt({ ...identity, pid: 2 ** 22 + 1 }), undefined);
  assert.deepEqual(identify(identity.pid), identity);
  assert.equal(processStart(2 ** 22 + 1), undefined);
  child.release();
  assert.equal(child.signal('SIGKILL'), false, 'what was let go is not signalled');
  const again = launcher.adopt(identity)!;
  again.signal('SIGKILL');
  await again.ended;
});

test('killStrays kills exactly those that have the argument', async () => {
  const mark = join(dir, 'mark');
  const start = (argument: string) => launcher.launch(spec(['tail', '-F', argument]));
  const [stray, other] = await Promise.all([start(mark), start(`${mark}-longer`)]);
  const hasBegun = (pid: number): boolean => readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('tail');
  await until('both', () => [stray, other].every(({ identity }) => hasBegun(identity.pid)));
  assert.equal(killStrays(mark), 1);
  assert.deepEqual(await stray.ended, { how: 'signal', signal: 'SIGKILL' });
  assert.equal(other.alive, true);
  other.signal('SIGKILL');
  await other.ended;
});
