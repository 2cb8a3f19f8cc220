/** The console of one VM, as managers see it: the log that its watcher writes, and the watcher's socket for what is typed. */
import { once } from 'node:events';
import { watch } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { readConsole } from '../qemu/index.ts';
import type { ConsoleLog, ConsolePiece, ConsolePort } from '../records/index.ts';
import { HostRefusal } from './host-error.ts';

interface ConsolePaths {
  readonly consoleLog: string;
  /** Where the watcher listens while the VM runs. */
  readonly console: string;
}

export interface VmConsolePortOptions {
  readonly paths: ConsolePaths;
  /** While it says yes a watcher that is not there, or does not listen, is waited for: another may be taking its place. */
  readonly isRunning: () => boolean;
  readonly hasWatcher: () => boolean;
}

interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

const pieceBytes = 64 * 1024;
/** A look without an event, should one have been missed. */
const lookEveryMs = 1_000;
const connectWithinMs = 15_000;
const connectEveryMs = 50;
/** How long the connection for input is kept after the last of it. */
const idleMs = 60_000;

export class VmConsolePort implements ConsolePort {
  readonly #paths: ConsolePaths;
  readonly #isRunning: () => boolean;
  readonly #hasWatcher: () => boolean;
  readonly #ended = new AbortController();
  #input: Promise<Socket> | undefined;
  #idle: NodeJS.Timeout | undefined;

  constructor({ paths, isRunning, hasWatcher }: VmConsolePortOptions) {
    this.#paths = paths;
    this.#isRunning = isRunning;
    this.#hasWatcher = hasWatcher;
  }

  async log(options: {
    readonly offset?: number | undefined;
    readonly tailBytes?: number | undefined;
    readonly mostBytes: number;
  }): Promise<ConsoleLog> {
    const { offset, tailBytes, mostBytes } = options;
    const from = offset ?? (tailBytes === undefined ? 0 : -Math.max(1, tailBytes));
    if (offset === undefined && tailBytes === 0) return this.log({ offset: Number.MAX_SAFE_INTEGER, mostBytes });
    return readConsole(this.#paths.consoleLog, from, mostBytes);
  }

  async stream(
    options: CallOptions & { readonly offset?: number | undefined },
  ): Promise<{ readonly offset: number; readonly pieces: AsyncIterable<ConsolePiece> }> {
    const { offset } = readConsole(this.#paths.consoleLog, options.offset ?? Number.MAX_SAFE_INTEGER, 0);
    const { signal: ended } = this.#ended;
    const signal = options.signal === undefined ? ended : AbortSignal.any([options.signal, ended]);
    return { offset, pieces: this.#follow(offset, signal) };
  }

  async write(bytes: Uint8Array, { signal }: CallOptions = {}): Promise<void> {
    signal?.throwIfAborted();
    this.#input ??= this.#connect();
    let socket: Socket;
    try {
      socket = await this.#input;
    } catch (error) {
      this.#input = undefined;
      throw new HostRefusal('HOST_WRONG_STATE', 'nothing can be typed: the VM does not run; start it first', {
        cause: error,
      });
    }
    this.#idle ??= setTimeout(() => this.close(), idleMs).unref();
    this.#idle.refresh();
    if (!socket.write(bytes)) await once(socket, 'drain', signal === undefined ? {} : { signal });
  }

  /** The VM is gone: another may come to have its name, and its paths. Streams end with the error. */
  end(error: Error): void {
    this.#ended.abort(error);
    this.close();
  }

  close(): void {
    clearTimeout(this.#idle);
    this.#idle = undefined;
    const input = this.#input;
    this.#input = undefined;
    input?.then(
      (socket) => socket.destroy(),
      () => {},
    );
  }

  async #connect(): Promise<Socket> {
    const deadline = performance.now() + connectWithinMs;
    for (;;) {
      let failure: unknown = new Error('its watcher has ended');
      if (this.#hasWatcher()) {
        const socket = createConnection(this.#paths.console);
        try {
          await once(socket, 'connect');
          return this.#connected(socket);
        } catch (error) {
          socket.destroy();
          failure = error;
        }
      }
      if (!this.#isRunning() || performance.now() > deadline) throw failure;
      await pause(connectEveryMs);
    }
  }

  #connected(socket: Socket): Socket {
    socket.on('error', () => {});
    // What the guest says is read from the log.
    socket.resume();
    socket.once('close', () => this.close());
    return socket;
  }

  async *#follow(from: number, signal: AbortSignal): AsyncGenerator<ConsolePiece> {
    let wake = Promise.withResolvers<void>();
    const look = (): void => {
      wake.resolve();
      wake = Promise.withResolvers();
    };
    const watcher = watch(dirname(this.#paths.consoleLog), look);
    watcher.on('error', look);
    const timer = setInterval(look, lookEveryMs);
    signal.addEventListener('abort', look, { once: true });
    try {
      for (let next = from; ; ) {
        signal.throwIfAborted();
        const changed = wake.promise;
        const { offset, bytes } = readConsole(this.#paths.consoleLog, next, pieceBytes);
        next = offset + bytes.length;
        if (bytes.length > 0) yield { offset, bytes };
        else await changed;
      }
    } finally {
      signal.removeEventListener('abort', look);
      clearInterval(timer);
      watcher.close();
    }
  }
}
