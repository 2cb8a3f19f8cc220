/** A host daemon for `npm start`, in a directory of its own that goes with it, as does all that it started. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { text as textOf } from 'node:stream/consumers';
import { setTimeout as pause } from 'node:timers/promises';
import type { UpEvent } from '../../src/cli/up.ts';
import { Client } from '../../src/cluster/client/index.ts';

const endLimitMs = 30_000;
const lookEveryMs = 20;

/** What a command printed, on both of its outputs, and how it ended. */
export interface Ran {
  readonly text: string;
  readonly exitCode: number | null;
}

export class StartDaemon implements AsyncDisposable {
  /** Everything of this run is in it. */
  readonly directory = mkdtempSync(path.join(tmpdir(), 'ph-start-'));
  readonly socket = path.join(this.directory, 'run/api.sock');
  readonly client = new Client({ socketPath: this.socket });
  #child: ChildProcess | undefined;

  constructor() {
    // VMs run as users of their own, who must get to their directories in it.
    chmodSync(this.directory, 0o711);
  }

  /** What others need to reach it. */
  get environment(): NodeJS.ProcessEnv {
    return { ...process.env, PORTHOLE_API: `unix:${this.socket}`, PORTHOLE_KEY_FILE: '' };
  }

  /** Resolves when the API answers; fails with what the daemon said. `onTrouble` is told what it complains of. */
  async up(onTrouble: (what: string) => void): Promise<Extract<UpEvent, { event: 'up' }>> {
    const args = ['up', '--state', path.join(this.directory, 'state'), '--run', path.join(this.directory, 'run')];
    // It ends when this process is killed, and Ctrl-C on the terminal is not for it.
    const child = spawn('setpriv', ['--pdeathsig', 'SIGTERM', './porthole', ...args, '--json'], {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    this.#child = child;
    let said = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    const isUp = Promise.withResolvers<Extract<UpEvent, { event: 'up' }>>();
    child.once('error', isUp.reject);
    child.once('close', (code) => isUp.reject(new Error(`porthole up ended with exit code ${code}: ${said.trim()}`)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      const event = JSON.parse(line) as UpEvent;
      if (event.event === 'up') isUp.resolve(event);
      if (event.event === 'trouble') onTrouble(event.what);
    });
    return isUp.promise;
  }

  /** Runs a line as a shell does, in the checkout, before this daemon's API. */
  async sh(line: string, stderr: 'pipe' | 'inherit' = 'pipe'): Promise<Ran> {
    const child = spawn('sh', ['-c', stderr === 'pipe' ? `{ ${line}; } 2>&1` : line], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: this.environment,
    });
    const [text] = await Promise.all([textOf(child.stdout), once(child, 'close')]);
    return { text, exitCode: child.exitCode };
  }

  /** Gives the terminal to a line until it ends. */
  async shOnTerminal(line: string): Promise<void> {
    await once(spawn('sh', ['-c', line], { stdio: 'inherit', env: this.environment }), 'close');
  }

  /** Waits until a denial at a path is on record, which is a moment after the guest was answered. */
  async untilDenied(vm: string, at: string): Promise<void> {
    const query = { vm, path: at, verdict: 'denied' } as const;
    for (const untilMs = performance.now() + endLimitMs; performance.now() < untilMs; await pause(lookEveryMs))
      if ((await this.client.call('queryAudit', { query })).events.length > 0) return;
    throw new Error(`no denial at "${at}" was recorded within ${endLimitMs / 1000} s`);
  }

  /** Deletes every VM, ends the daemon and what outlives it, and removes the directory. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      if (this.#child !== undefined && this.#child.exitCode === null) await this.#endVms();
    } finally {
      await this.#endProcesses();
      this.client[Symbol.dispose]();
      rmSync(this.directory, { recursive: true, force: true });
    }
  }

  async #endVms(): Promise<void> {
    const signal = AbortSignal.timeout(endLimitMs);
    try {
      const { vms } = await this.client.call('listVms', { signal });
      for (const { name } of vms) {
        const { operation } = await this.client.call('deleteVm', { params: { name }, signal });
        await this.client.finished(operation.id, { signal });
      }
    } catch (error) {
      // What is left of it ends below.
      console.error(`deleting the VM failed: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  /** The daemon first, which would start anew what ends; then what is left: the keeper, which has no other end. */
  async #endProcesses(): Promise<void> {
    const child = this.#child;
    if (child !== undefined && child.exitCode === null && child.signalCode === null) {
      const closed = once(child, 'close');
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), endLimitMs);
      await closed;
      clearTimeout(timer);
    }
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      for (const pid of this.#processes()) process.kill(pid, signal);
      const untilMs = performance.now() + endLimitMs / 6;
      while (this.#processes().length > 0 && performance.now() < untilMs) await pause(lookEveryMs);
    }
  }

  /** Those that were started with a path below the directory of what runs. */
  #processes(): number[] {
    const below = path.join(this.directory, 'run/');
    return readdirSync('/proc').flatMap((name) => {
      if (!/^\d+$/.test(name)) return [];
      try {
        return readFileSync(`/proc/${name}/cmdline`, 'utf8').includes(below) ? [Number(name)] : [];
      } catch {
        return []; // it ended meanwhile
      }
    });
  }
}
