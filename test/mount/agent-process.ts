/** `porthole serve` and `porthole agent` as processes, and a manager of the agent that keeps descriptors as systemd does. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { POLLIN, pollOne, receiveWithFds } from '../../src/sys/index.ts';
import * as libc from '../../src/sys/libc.ts';
import { until } from '../until.ts';

const AF_UNIX = 1;
const SOCK_DGRAM = 2;

export const porthole = path.join(import.meta.dirname, '../../src/cli/main.ts');

export interface Event {
  readonly event: string;
  readonly why?: string;
  readonly tokenReturned?: boolean;
  readonly resumed?: boolean;
}

/** One `porthole` that runs, and what it has told. */
export class Running {
  readonly child: ChildProcess;
  readonly events: Event[] = [];
  errors = '';

  /** `kept`: descriptors of this process that it has from 3 on, and their names. `by`: what starts it. */
  constructor(
    directory: string,
    args: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    kept: ReadonlyMap<string, number> = new Map(),
    by: readonly string[] = [],
  ) {
    const command = [...by, process.execPath, porthole, ...args, '--json'];
    // Only the process itself knows its number in time.
    const program = kept.size === 0 ? command : ['sh', '-c', 'LISTEN_PID=$$ exec "$@"', 'sh', ...command];
    const names = { LISTEN_FDS: String(kept.size), LISTEN_FDNAMES: [...kept.keys()].join(':') };
    this.child = spawn(program[0]!, program.slice(1), {
      cwd: directory,
      stdio: ['ignore', 'pipe', 'pipe', ...kept.values()],
      env: { ...process.env, ...environment, ...(kept.size > 0 && names) },
    });
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.errors += text;
    });
    createInterface({ input: this.child.stdout! }).on('line', (line) => this.events.push(JSON.parse(line) as Event));
  }

  async told(event: string, count = 1): Promise<Event> {
    await until(`"${event}"`, () => {
      const told = this.events.filter((one) => one.event === event);
      if (told.length < count && this.child.exitCode !== null) throw new Error(`it ended: ${this.errors}`);
      return told.length >= count;
    });
    return this.events.filter((one) => one.event === event)[count - 1]!;
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const gone = once(this.child, 'exit');
      this.child.kill(signal);
      await gone;
    }
    return this.child.exitCode;
  }
}

/** `vm.yaml` in `directory`, for whoever comes by the privileged socket `server.sock` there. */
export async function serving(directory: string): Promise<Running> {
  const socket = path.join(directory, 'server.sock');
  const running = new Running(directory, [
    'serve',
    'vm.yaml',
    '--http',
    `unix:${socket},privileged`,
    '--state',
    'state',
  ]);
  await running.told('http');
  return running;
}

/** What a manager was told with one datagram (sd_notify(3)). */
const fieldOf = (words: string, key: string): string | undefined =>
  words
    .split('\n')
    .find((word) => word.startsWith(`${key}=`))
    ?.slice(key.length + 1);

export class Manager implements Disposable {
  readonly #socketPath: string;
  readonly #directory: string;
  readonly #fd: number;
  /** What it keeps, by name. */
  readonly kept = new Map<string, number>();
  /** All that it was told, but for what is to be kept. */
  readonly told: string[] = [];

  constructor(directory: string) {
    this.#directory = directory;
    this.#socketPath = path.join(directory, 'notify.sock');
    this.#fd = libc.socket(AF_UNIX, SOCK_DGRAM, 0);
    const address = new Uint8Array(new ArrayBuffer(110));
    address[0] = AF_UNIX;
    address.set(Buffer.from(this.#socketPath), 2);
    assert.equal(libc.bindSocket(this.#fd, address, 2 + this.#socketPath.length + 1), 0);
  }

  /** Takes what has arrived. */
  take(): void {
    while (pollOne(this.#fd, POLLIN, 0) > 0) {
      const bytes = new Uint8Array(new ArrayBuffer(4096));
      const fds: number[] = [];
      const length = receiveWithFds(this.#fd, bytes, bytes.length, fds);
      const words = Buffer.from(bytes.subarray(0, length)).toString();
      const name = fieldOf(words, 'FDNAME');
      if (name === undefined) {
        this.told.push(words);
        continue;
      }
      const before = this.kept.get(name);
      if (before !== undefined) closeSync(before);
      this.kept.delete(name);
      if (fieldOf(words, 'FDSTORE') !== undefined) this.kept.set(name, fds[0]!);
    }
  }

  /** Starts an agent with what its predecessor has left. */
  start(args: readonly string[]): Running {
    this.take();
    return new Running(this.#directory, ['agent', ...args], { NOTIFY_SOCKET: this.#socketPath }, this.kept);
  }

  [Symbol.dispose](): void {
    this.take();
    for (const fd of this.kept.values()) closeSync(fd);
    closeSync(this.#fd);
  }
}
