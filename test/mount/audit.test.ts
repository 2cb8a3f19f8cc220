/** No secret is read without its record, whatever becomes of the log's disk, the device process and the daemon. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { until } from '../until.ts';

const porthole = path.join(import.meta.dirname, '../../src/cli/main.ts');
const VALUE = 'a value that is secret';

interface Line {
  readonly verdict: string;
  readonly path: string;
  readonly pid: number;
}

const childrenOf = (pid: number): number[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number);

/** `porthole serve` with a mount, an audit log and a state directory, each in a directory of its own. */
class Machine {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'porthole-audit-'));
  readonly mountPoint = path.join(this.directory, 'mnt');
  readonly logDirectory = path.join(this.directory, 'log');
  readonly log = path.join(this.logDirectory, 'audit.jsonl');
  readonly secret = path.join(this.mountPoint, 'secrets/key');
  readonly troubles: string[] = [];
  #serve: ChildProcess | undefined;
  #hasSmallDisk = false;

  constructor(t: TestContext) {
    mkdirSync(this.mountPoint);
    mkdirSync(this.logDirectory);
    writeFileSync(path.join(this.directory, 'vm.yaml'), `porthole: 1\nmetadata: { secrets: { key: ${VALUE} } }\n`);
    t.after(async () => {
      await this.stop();
      if (this.#hasSmallDisk) execFileSync('umount', [this.logDirectory]);
      rmSync(this.directory, { recursive: true, force: true });
    });
  }

  /** Gives the log a disk of its own, or that disk another size. */
  logDisk(size: string): void {
    const how = this.#hasSmallDisk ? ['-o', `remount,size=${size}`] : ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs'];
    execFileSync('mount', [...how, this.logDirectory]);
    this.#hasSmallDisk = true;
  }

  async serve(): Promise<number> {
    const args = ['vm.yaml', '--mount', 'mnt', '--state', 'state', '--audit', 'log/audit.jsonl', '--json'];
    const child = spawn(process.execPath, [porthole, 'serve', ...args], {
      cwd: this.directory,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#serve = child;
    let errors = '';
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      errors += text;
    });
    createInterface({ input: child.stdout! }).on('line', (line) => {
      const { event, what } = JSON.parse(line) as { event: string; what?: string };
      if (event === 'trouble') this.troubles.push(what!);
    });
    await this.mounted(() => {
      if (child.exitCode !== null) throw new Error(`serve ended: ${errors}`);
    });
    return child.pid!;
  }

  mounted(check: () => void = () => {}): Promise<boolean> {
    return until('the mount', () => {
      check();
      return existsSync(path.join(this.mountPoint, 'instance')) || existsSync(path.dirname(this.secret));
    });
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const child = this.#serve;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill(signal);
    await gone;
  }

  lines(file = this.log): Line[] {
    const text = readFileSync(file, 'utf8');
    assert.ok(text === '' || text.endsWith('\n'), 'the last line is whole');
    return text
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Line);
  }

  /** Allowed openings of the secret by one process that the log has. */
  recorded(pid: number, file = this.log): number {
    return this.lines(file).filter(
      (line) => line.pid === pid && line.verdict === 'allowed' && line.path === '/secrets/key',
    ).length;
  }
}

/** Opens and reads the secret without pause, until its input ends; says then how often it got it and was refused. */
const readerScript = `
const fs = require('node:fs');
const [file, value] = process.argv.slice(1);
const told = new Int32Array(2);
let stopped = false;
process.stdin.on('end', () => { stopped = true; }).resume();
const turn = () => {
  for (let i = 0; i < 50; i++) {
    try {
      if (fs.readFileSync(file, 'utf8') !== value) throw new Error('another value');
      told[0]++;
    } catch (error) {
      if (error.code !== 'EIO') throw error;
      told[1]++;
    }
  }
  console.log(JSON.stringify([...told]));
  if (!stopped) setImmediate(turn);
};
turn();
`;

class Reader {
  readonly #child: ChildProcess;
  #told: readonly [got: number, refused: number] = [0, 0];
  #errors = '';

  constructor(t: TestContext, file: string) {
    this.#child = spawn(process.execPath, ['-e', readerScript, file, VALUE], { stdio: ['pipe', 'pipe', 'pipe'] });
    createInterface({ input: this.#child.stdout! }).on('line', (line) => {
      this.#told = JSON.parse(line) as [number, number];
    });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#errors += text;
    });
    t.after(() => this.#child.kill('SIGKILL'));
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get got(): number {
    assert.equal(this.#errors, '');
    return this.#told[0];
  }

  get refused(): number {
    assert.equal(this.#errors, '');
    return this.#told[1];
  }

  async stop(): Promise<void> {
    const closed = once(this.#child, 'close');
    this.#child.stdin!.end();
    await closed;
    assert.equal(this.#errors, '');
  }
}

test('a secret that is read while the log’s disk fills up has its record in the log when there is room again', async (t) => {
  const machine = new Machine(t);
  machine.logDisk('256k');
  await machine.serve();
  const readers = [new Reader(t, machine.secret), new Reader(t, machine.secret)];
  await until('refusals', () => readers.every(({ refused }) => refused > 100), 60_000);
  const before = readers.map(({ got }) => got);
  machine.logDisk('64m');
  await until('answers', () => readers.every(({ got }, i) => got > before[i]! + 200), 60_000);
  for (const reader of readers) await reader.stop();
  const got = readers.map((reader) => reader.got);
  await machine.stop();
  assert.deepEqual(
    readers.map(({ pid }) => machine.recorded(pid)),
    got,
    'as many records as answers',
  );
  assert.deepEqual(machine.troubles, [
    'the audit log cannot be written (ENOSPC): what must be recorded is refused until it can',
    'the audit log can be written again',
  ]);
  t.diagnostic(`${got.join(' and ')} answers, ${readers.map(({ refused }) => refused).join(' and ')} refusals`);
});

test('a record outlives a device process that is killed before the daemon has seen it', async (t) => {
  const machine = new Machine(t);
  const daemon = await machine.serve();
  process.kill(daemon, 'SIGSTOP');
  assert.equal(readFileSync(machine.secret, 'utf8'), VALUE);
  assert.equal(machine.recorded(process.pid), 0);
  process.kill(childrenOf(daemon)[0]!, 'SIGKILL');
  process.kill(daemon, 'SIGCONT');
  await until('the record', () => machine.recorded(process.pid) === 1);
  await until('the mount', () => {
    try {
      return readFileSync(machine.secret, 'utf8') === VALUE;
    } catch {
      return false;
    }
  });
  await machine.stop();
  assert.equal(machine.recorded(process.pid), 2);
});

test('a record outlives a daemon that is killed before it has seen it, and is in the log once after the next start', async (t) => {
  const machine = new Machine(t);
  for (let life = 1; life <= 3; life++) {
    const daemon = await machine.serve();
    const device = childrenOf(daemon)[0]!;
    process.kill(daemon, 'SIGSTOP');
    assert.equal(readFileSync(machine.secret, 'utf8'), VALUE);
    assert.equal(machine.recorded(process.pid), life - 1);
    await machine.stop('SIGKILL');
    await until('the device process to end', () => !existsSync(`/proc/${device}`));
    await machine.serve();
    assert.equal(machine.recorded(process.pid), life);
    await machine.stop();
    assert.equal(machine.recorded(process.pid), life);
  }
});

test('a daemon that is killed while secrets are read loses and repeats no record', async (t) => {
  const machine = new Machine(t);
  let sure = 0;
  let atMost = 0;
  for (let life = 0; life < 3; life++) {
    const daemon = await machine.serve();
    const device = childrenOf(daemon)[0]!;
    const counting = `
      const fs = require('node:fs');
      let got = 0;
      try { for (;;) { fs.readFileSync(process.argv[1]); got++; if (got === 500) fs.writeSync(1, 'going\\n'); } } catch {}
      console.log(got);`;
    const reader = spawn(process.execPath, ['-e', counting, machine.secret], { stdio: ['ignore', 'pipe', 'ignore'] });
    let said = '';
    reader.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    const closed = once(reader, 'close');
    await until('a few reads', () => said.includes('going'));
    await machine.stop('SIGKILL');
    await closed;
    await until('the device process to end', () => !existsSync(`/proc/${device}`));
    await machine.serve();
    await machine.stop();
    const got = Number(said.trim().split('\n').at(-1));
    const recorded = machine.recorded(reader.pid!);
    // An open that was recorded may have had its reading cut off.
    assert.ok(recorded === got || recorded === got + 1, `${got} answers, ${recorded} records`);
    sure += got;
    atMost += recorded;
  }
  t.diagnostic(`${sure} answers, ${atMost} records`);
});

test('serve opens its log again at SIGHUP, and nothing is lost when it was moved away', async (t) => {
  const machine = new Machine(t);
  const daemon = await machine.serve();
  const reader = new Reader(t, machine.secret);
  await until('reads', () => reader.got > 200);
  renameSync(machine.log, `${machine.log}.1`);
  process.kill(daemon, 'SIGHUP');
  await until('the new log', () => existsSync(machine.log) && statSync(machine.log).size > 0);
  assert.equal(statSync(machine.log).mode & 0o7777, 0o600);
  await reader.stop();
  await machine.stop();
  const moved = machine.recorded(reader.pid, `${machine.log}.1`);
  assert.ok(moved > 0);
  assert.equal(moved + machine.recorded(reader.pid), reader.got);
});

test('serve leaves no ring behind where nothing is to be kept', async (t) => {
  const machine = new Machine(t);
  const temporary = path.join(machine.directory, 'tmp');
  mkdirSync(temporary);
  const rings = (): string[] => readdirSync(temporary).filter((name) => name.startsWith('porthole-audit-ring-'));
  const child = spawn(process.execPath, [porthole, 'serve', 'vm.yaml', '--mount', 'mnt', '--audit', '-'], {
    cwd: machine.directory,
    env: { ...process.env, TMPDIR: temporary },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const gone = once(child, 'close');
  await until('the mount', () => said.includes('mounted on'));
  assert.equal(rings().length, 1);
  assert.equal(readFileSync(machine.secret, 'utf8'), VALUE);
  child.kill('SIGTERM');
  await gone;
  assert.match(said, /"path":"\/secrets\/key"/);
  assert.deepEqual(rings(), []);
});
