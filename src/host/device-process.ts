/** One device process, as the host daemon sees it: started, told, listened to, ended. */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import { encodeMessage, LinkError, readerOnHost, type ToDevice, type ToHost } from '../device/index.ts';
import { commandOf, partEnvironment } from '../parts/index.ts';
import { printable } from '../wire/index.ts';

interface DeviceProcessOptions {
  /** Program and arguments. Default: the device process of this Porthole. */
  readonly command?: readonly [string, ...string[]];
  /** Where its keeper answers. */
  readonly keeper?: string | undefined;
  /** `send` is that of this process, the same in each call. */
  readonly onMessage: (message: ToHost, send: (message: ToDevice) => void) => void;
  /** Called once, when the process is gone. `reason` is for people; undefined when it ended as it was told. */
  readonly onEnd: (reason: string | undefined) => void;
}

/** What may wait to be read by a device process; one that falls behind by more is stuck. */
const waitingBytes = 512 * 1024 * 1024;
const wordsKept = 2_000;
const endWithinMs = 5_000;
const killAfterMs = 2_000;

/** Starts at once. */
export class DeviceProcess {
  readonly #child: ChildProcess;
  readonly #link: Socket;
  readonly #onEnd: DeviceProcessOptions['onEnd'];
  readonly #ended: Promise<void>;
  #lastWords = '';
  #failure: string | undefined;
  #told = false;

  constructor(options: DeviceProcessOptions) {
    this.#onEnd = options.onEnd;
    const [program, ...given] = options.command ?? commandOf('device');
    const args = options.keeper === undefined ? given : [...given, '--keeper', options.keeper];
    // A session of its own: Ctrl-C is for the daemon, which ends it in order. Nothing of our environment: it may hold secrets.
    this.#child = spawn(program, args, {
      stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      env: partEnvironment(),
      detached: true,
      cwd: '/',
    });
    this.#link = this.#child.stdio[3] as Socket;
    const reader = readerOnHost();
    this.#link.on('data', (chunk: Uint8Array) => {
      if (this.#failure !== undefined) return;
      try {
        for (const message of reader.feed(chunk)) options.onMessage(message, this.send);
      } catch (error) {
        if (!(error instanceof LinkError)) throw error;
        this.lied(error.message);
      }
    });
    // The process's end tells more than an error of its socket.
    this.#link.on('error', () => {});
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#lastWords = (this.#lastWords + text).slice(-wordsKept);
    });
    this.#ended = new Promise((resolve) => {
      let over = false;
      const end = (reason: string | undefined): void => {
        if (over) return;
        over = true;
        resolve();
        this.#onEnd(reason);
      };
      this.#child.once('error', (error) => end(`starting it failed: ${error.message}`));
      this.#child.once('close', (code, signal) => end(this.#reason(code, signal)));
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Resolves when the process is gone. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /** Queues a message; they arrive in order. To a process that is gone or given up it does nothing. */
  readonly send = (message: ToDevice): void => {
    if (this.#failure !== undefined || !this.#link.writable) return;
    this.#link.write(encodeMessage(message));
    if (this.#link.writableLength > waitingBytes) this.#abandon('it does not read what it is sent');
  };

  /** Has it unmount and remove its sockets; kills it when it does not end in time, or at once when `signal` is aborted. */
  async stop(signal?: AbortSignal): Promise<void> {
    this.#told = true;
    this.send({ type: 'shutdown' });
    const force = (): void => this.#kill('SIGKILL');
    signal?.addEventListener('abort', force, { once: true });
    if (signal?.aborted === true) force();
    const term = setTimeout(() => this.#kill('SIGTERM'), endWithinMs);
    const kill = setTimeout(force, endWithinMs + killAfterMs);
    await this.#ended;
    clearTimeout(term);
    clearTimeout(kill);
    signal?.removeEventListener('abort', force);
  }

  /** It said, to this or elsewhere, what it must not: it is ended. */
  lied(what: string): void {
    this.#abandon(`it said what no device process may (${what}); a guest may have taken it over`);
  }

  #abandon(reason: string): void {
    this.#failure = reason;
    this.#kill('SIGKILL');
  }

  #kill(signal: NodeJS.Signals): void {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.#child.kill(signal);
  }

  #reason(code: number | null, signal: NodeJS.Signals | null): string | undefined {
    if (this.#told && (code === 0 || signal !== null)) return undefined;
    if (this.#failure !== undefined) return this.#failure;
    const how = signal === null ? `it ended with exit code ${code}` : `it was killed by ${signal}`;
    const words = this.#lastWords.trim();
    if (words === '') return how;
    const lines = words.split('\n').map((line) => `  ${printable(line)}`);
    return `${how}; its last words:\n${lines.join('\n')}`;
  }
}
