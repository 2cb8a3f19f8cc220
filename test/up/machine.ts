/** A host daemon as people run it, in directories of its own, and what a test asks of it and of its guests. */
import assert from 'node:assert/strict';
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import type { TestContext } from 'node:test';
import { Up, type UpEvent, type UpOptions } from '../../src/cli/up.ts';
import { Client } from '../../src/cluster/index.ts';
import { until } from '../until.ts';
import { type Begun, consoleOf, done, typeTo, untilReady } from './guests.ts';

export { bootLimitMs } from './guests.ts';

const porthole = path.join(import.meta.dirname, '../../porthole');
const tinyRecipe = path.join(import.meta.dirname, '../../images/tiny/recipe.ts');
export class UpMachine {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'ph-up-'));
  readonly events: UpEvent[] = [];
  readonly client = new Client({ socketPath: path.join(this.directory, 'run/api.sock') });
  #up: Up | undefined;
  /** Of the last start, for the one that cleans up. */
  #options: Partial<UpOptions> = {};
  #daemon: ChildProcessByStdio<null, Readable, Readable> | undefined;

  constructor(t: Pick<TestContext, 'after'>) {
    // VMs run as users of their own.
    chmodSync(this.directory, 0o711);
    t.after(async () => {
      await this.#end();
      rmSync(this.directory, { recursive: true, force: true });
    });
  }

  /** What `spawn` runs: this Porthole, unless a test says another. */
  program = porthole;

  /** The daemon as a process of its own, as people run it; what it says goes to `said`. */
  async spawn(...more: readonly string[]): Promise<void> {
    const args = [
      'up',
      '--state',
      path.join(this.directory, 'state'),
      '--run',
      path.join(this.directory, 'run'),
      '--json',
      ...more,
    ];
    const child = spawn(this.program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#daemon = child;
    let isUp = false;
    createInterface({ input: child.stdout }).on('line', (line) => {
      const event = JSON.parse(line) as UpEvent;
      this.events.push(event);
      if (event.event === 'up') isUp = true;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.said += text;
    });
    await until(
      'the host daemon',
      () => {
        const hasEnded = child.exitCode !== null || child.signalCode !== null;
        if (hasEnded) this.#daemon = undefined;
        assert.ok(!hasEnded, `it ended: ${this.said}`);
        return isUp;
      },
      60_000,
    );
    if (this.#goneAtMs !== undefined) this.awaysMs.push(performance.now() - this.#goneAtMs);
    this.#goneAtMs = undefined;
  }

  said = '';
  /** From each end of a daemon to the start of the next. */
  readonly awaysMs: number[] = [];
  #goneAtMs: number | undefined;

  get daemonPid(): number {
    return this.#daemon!.pid!;
  }

  /** Ends the daemon, and nothing else. */
  async kill(signal: NodeJS.Signals): Promise<void> {
    const daemon = this.#daemon!;
    this.#daemon = undefined;
    this.#goneAtMs = performance.now();
    const exit = once(daemon, 'exit');
    daemon.kill(signal);
    await exit;
  }

  /** The process that serves a VM's device. */
  devicePid(name: string): number | undefined {
    const link = path.join(this.directory, 'run/vms', name, 'device/link.sock');
    return processesWith(`--link\0${link}\0`)[0];
  }

  /** The process that holds what device processes have, for all VMs. */
  get keeperPid(): number | undefined {
    return processesWith(`\0${path.join(this.directory, 'run/keeper.sock')}\0`)[0];
  }

  qemuPid(name: string): number | undefined {
    return processesWith(path.join(this.directory, 'run/vms', name, 'qemu/qmp.sock')).find((pid) =>
      readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('qemu'),
    );
  }

  /** Processes that were started for this machine and have a path in its run directory on their command line. */
  pidsWith(file: string): number[] {
    return processesWith(path.join(this.directory, 'run', file));
  }

  /** Processes that have a text in their command line. */
  pidsWithin(text: string): number[] {
    return processesWith(text);
  }

  /** All that was started for this machine and knows of its directories: daemon, keepers, device processes, QEMU. */
  get pids(): readonly number[] {
    return processesWith(this.directory);
  }

  get up(): Up {
    return this.#up!;
  }

  async start(options: Partial<UpOptions> = this.#options): Promise<void> {
    this.#options = options;
    this.#up = await Up.start({
      stateDirectory: path.join(this.directory, 'state'),
      runDirectory: path.join(this.directory, 'run'),
      uidBase: process.getuid?.() === 0 ? 'free' : undefined,
      auditDays: 90,
      auditBytes: 64 * 1024 * 1024,
      version: 'test',
      recipes: { tiny: [process.execPath, tinyRecipe] },
      onEvent: (event) => this.events.push(event),
      ...options,
    });
  }

  /** The daemon goes; what it started stays. */
  async release(): Promise<void> {
    await this.#up?.release();
    this.#up = undefined;
  }

  async #end(): Promise<void> {
    if (this.#up === undefined && this.#daemon === undefined) await this.start();
    const { vms } = await this.client.call('listVms', {});
    for (const { name } of vms) await this.client.call('deleteVm', { params: { name } });
    await until('every VM to be gone', async () => (await this.client.call('listVms', {})).vms.length === 0, 60_000);
    await this.release();
    if (this.#daemon !== undefined) await this.kill('SIGTERM');
    const left = (): number[] => processesWith(this.directory);
    await until('nothing to be left', () => left().length === 0).catch((error: unknown) => {
      const commands = left().map((pid) => `${pid}: ${commandOf(pid).replaceAll('\0', ' ')}`);
      throw new Error([...commands, ...this.events.map((event) => JSON.stringify(event))].join('\n'), { cause: error });
    });
  }

  /** Follows an operation to its end; fails with its error. */
  done(begun: Begun): Promise<void> {
    return done(this.client, begun);
  }

  async tinyImage(): Promise<void> {
    await this.done(
      await this.client.call('addImage', {
        body: { name: 'tiny', version: '1', recipe: 'tiny' },
      }),
    );
  }

  console(name: string): Promise<string> {
    return consoleOf(this.client, name);
  }

  /** Runs one line in the guest's shell on its console; gives back what it printed. */
  type(name: string, line: string): Promise<string> {
    return typeTo(this.client, name, line);
  }

  untilReady(name: string): Promise<void> {
    return untilReady(this.client, name);
  }
}

/** Processes that have `text` in their command line, whose words end with NUL. */
const processesWith = (text: string): number[] =>
  readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) return [];
    return commandOf(Number(name)).includes(text) ? [Number(name)] : [];
  });

/** '' of a process that has ended. */
const commandOf = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
};
