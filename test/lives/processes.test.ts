/** The ends of the processes on this machine: what was acknowledged stays, what was mounted comes back or goes. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
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
const isMounted = (directory: string): boolean => readFileSync('/proc/self/mounts', 'utf8').includes(` ${directory} `);
const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}`);
const childrenOf = (pid: number): number[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number);
/** Its other child keeps what the next device process needs. */
const deviceOf = (serve: ChildProcess): number => {
  const devices = childrenOf(serve.pid!).filter((pid) =>
    readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('src/device/main.ts'),
  );
  assert.equal(devices.length, 1);
  return devices[0]!;
};

/** `porthole serve` on one directory, with state, as people run it. */
class Machine {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'porthole-processes-'));
  readonly mountPoint = path.join(this.directory, 'mnt');
  readonly socket = path.join(this.directory, 'socket');
  #serve: ChildProcess | undefined;

  constructor(t: TestContext) {
    mkdirSync(this.mountPoint);
    writeFileSync(
      path.join(this.directory, 'vm.yaml'),
      'porthole: 1\nmetadata: { instance: { id: i-1 }, app: { settings: old }, guest: {} }\npolicy: [{ path: /app/settings, mode: "0644" }]\n',
    );
    t.after(async () => {
      if (this.#serve !== undefined && this.#serve.exitCode === null && this.#serve.signalCode === null) {
        this.#serve.kill('SIGTERM');
        await once(this.#serve, 'exit');
      }
      rmSync(this.directory, { recursive: true, force: true });
    });
  }

  readonly events: { readonly event: string; readonly target?: { readonly kind: string } }[] = [];
  #errors = '';

  async serve(): Promise<ChildProcess> {
    this.events.length = 0;
    const args = ['vm.yaml', '--mount', 'mnt', '--vhost-user', 'socket', '--state', 'state', '--json'];
    const child = spawn(process.execPath, [porthole, 'serve', ...args], {
      cwd: this.directory,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#serve = child;
    createInterface({ input: child.stdout! }).on('line', (line) =>
      this.events.push(JSON.parse(line) as { event: string }),
    );
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#errors += text;
    });
    child.once('exit', () => {
      // One that was killed may be told of after its successor was started.
      if (child === this.#serve) this.events.push({ event: 'exit' });
    });
    await this.ready();
    return child;
  }

  /** Resolves when both targets are ready since the events were emptied last. */
  async ready(): Promise<void> {
    await until('both targets to be ready', () => {
      if (this.events.some(({ event }) => event === 'exit')) throw new Error(`serve ended: ${this.#errors}`);
      return this.events.filter(({ event }) => event === 'ready').length === 2;
    });
  }

  file(name: string): string {
    return path.join(this.mountPoint, name);
  }
}

/** Appends numbered lines to a file until it may not; answers how many it was told are written. */
async function append(
  file: string,
  untilTold: number,
): Promise<{ told: () => number; ended: Promise<unknown>; child: ChildProcess }> {
  const script = `i=0; while i=$((i+1)); do echo $i >> '${file}' || exit 3; echo $i; done`;
  const child = spawn('dash', ['-c', script], { stdio: ['ignore', 'pipe', 'ignore'] });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    text += piece;
  });
  const told = (): number => text.split('\n').length - 1;
  const ended = once(child, 'close');
  await until(`${untilTold} lines`, () => told() >= untilTold);
  return { told, ended, child };
}

function checkLines(text: string, told: number): void {
  const lines = text.split('\n').slice(0, -1);
  assert.deepEqual(
    lines,
    Array.from({ length: lines.length }, (_, i) => String(i + 1)),
  );
  assert.ok(lines.length === told || lines.length === told + 1, `told of ${told}, kept ${lines.length}`);
}

test('a device process that is killed under a mount is replaced, and what was acknowledged is kept', async (t) => {
  const machine = new Machine(t);
  const serve = await machine.serve();
  const writers = [await append(machine.file('guest/a'), 20), await append(machine.file('guest/b'), 20)];
  const { ino } = statSync(machine.file('guest/a'));
  const device = deviceOf(serve);
  machine.events.length = 0;
  process.kill(device, 'SIGKILL');
  await machine.ready();
  // One that wrote while nothing was mounted has ended by itself; one that came back in time goes on.
  for (const { child, ended } of writers) {
    child.kill('SIGKILL');
    await ended;
  }
  assert.notEqual(deviceOf(serve), device);
  checkLines(readFileSync(machine.file('guest/a'), 'utf8'), writers[0]!.told());
  checkLines(readFileSync(machine.file('guest/b'), 'utf8'), writers[1]!.told());
  assert.equal(statSync(machine.file('guest/a')).ino, ino);
  writeFileSync(machine.file('guest/c'), 'after');
  assert.equal(readFileSync(machine.file('guest/c'), 'utf8'), 'after');
});

test('serve that is killed takes its device process and mount along, and the next one has everything', async (t) => {
  const machine = new Machine(t);
  const first = await machine.serve();
  const children = childrenOf(first.pid!);
  writeFileSync(machine.file('app/settings'), 'by a program');
  const writer = await append(machine.file('guest/a'), 30);
  const inos = ['instance/id', 'app/settings', 'guest/a'].map((name) => statSync(machine.file(name)).ino);
  first.kill('SIGKILL');
  await until('the device process and its keeper to end', () => !children.some(isAlive));
  assert.equal(isMounted(machine.mountPoint), false);
  assert.equal(existsSync(machine.socket), false);
  // Its file is gone with the mount, or it writes into the empty directory below.
  writer.child.kill('SIGKILL');
  await writer.ended;
  const below = existsSync(machine.file('guest'));
  assert.equal(below, false);

  await machine.serve();
  checkLines(readFileSync(machine.file('guest/a'), 'utf8'), writer.told());
  assert.equal(readFileSync(machine.file('app/settings'), 'utf8'), 'by a program');
  assert.deepEqual(
    ['instance/id', 'app/settings', 'guest/a'].map((name) => statSync(machine.file(name)).ino),
    inos,
  );
});

test('Ctrl-C leaves no mount, no socket and no process, also while programs write', async (t) => {
  const machine = new Machine(t);
  const serve = await machine.serve();
  const processes = [serve.pid!, ...childrenOf(serve.pid!)];
  assert.equal(processes.length, 3, 'itself, the device process and its keeper');
  const writer = await append(machine.file('guest/a'), 10);
  const exit = once(serve, 'exit');
  serve.kill('SIGINT');
  assert.deepEqual(await exit, [0, null]);
  await writer.ended;
  assert.equal(isMounted(machine.mountPoint), false);
  await until('nothing to run', () => !processes.some(isAlive));
  assert.deepEqual(readdirSync(machine.directory).toSorted(), ['mnt', 'state', 'vm.yaml']);
  assert.deepEqual(readdirSync(machine.mountPoint), []);
});
