/** A server under measurement: its processes, when it is ready, on which CPU it runs, and its end. */
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';

const READY_LIMIT_MS = 20_000;
const END_LIMIT_MS = 10_000;
const run = promisify(execFile);

/** Runs a program to its end; its standard output. */
export async function output(program: string, args: readonly string[]): Promise<string> {
  return (await run(program, args)).stdout;
}

/** The process and its descendants. */
export function family(pid: number): number[] {
  const parents = new Map<number, number>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
    } catch {
      // gone meanwhile
    }
  }
  const found = [pid];
  for (const parent of found) for (const [child, its] of parents) if (its === parent) found.push(child);
  return found;
}

export class Server implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #name: string;
  readonly #cleanUp: () => void;
  #said = '';

  private constructor(name: string, child: ChildProcess, cleanUp: () => void) {
    this.#name = name;
    this.#child = child;
    this.#cleanUp = cleanUp;
    for (const stream of [child.stdout, child.stderr])
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.#said = (this.#said + text).slice(-16_384);
      });
  }

  /** Starts `command` and waits until `ready`; throws with what the server said when it ends or takes 20 s. */
  static async start(
    name: string,
    command: readonly [string, ...string[]],
    ready: () => boolean,
    cleanUp: () => void = () => {},
  ): Promise<Server> {
    const [program, ...args] = command;
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    await once(child, 'spawn');
    const server = new Server(name, child, cleanUp);
    const deadline = Date.now() + READY_LIMIT_MS;
    while (!ready()) {
      const ended = child.exitCode !== null || child.signalCode !== null;
      if (ended || Date.now() > deadline) {
        await server[Symbol.asyncDispose]();
        throw new Error(`${name} ${ended ? 'ended before' : 'took too long until'} it was ready:\n${server.#said}`);
      }
      await delay(20);
    }
    return server;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Binds every thread of the server to one CPU. */
  pin(cpu: number): void {
    for (const pid of family(this.pid)) spawnSync('taskset', ['-a', '-p', '-c', String(cpu), String(pid)]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const child = this.#child;
    if (child.exitCode === null && child.signalCode === null) {
      const members = family(this.pid);
      const gone = once(child, 'exit');
      child.kill('SIGINT');
      await Promise.race([gone, delay(END_LIMIT_MS, undefined, { ref: false })]);
      if (child.exitCode === null && child.signalCode === null) {
        for (const pid of members) process.kill(pid, 'SIGKILL');
        await gone;
        console.error(`${this.#name} did not end within ${END_LIMIT_MS / 1000} s of SIGINT and was killed`);
      }
    }
    this.#cleanUp();
  }
}
