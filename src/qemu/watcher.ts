/**
 * Watches one boot of one VM from a process of its own, which outlives the daemon: the guest's console goes to a log of bounded
 * size and to whoever is attached, and the reason of QEMU's end to a file.
 */
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { trimLog } from './bounded-log.ts';
import { connectToItself } from './connect.ts';
import { ConsoleLog, readConsole } from './console-log.ts';
import { messageOf } from './error.ts';
import { type LastWords, withEvent, writeLastWords } from './last-words.ts';
import { Qmp } from './qmp.ts';

/** Passed to the process as JSON in a file, so that no limit of arguments is met. */
export interface WatcherConfig {
  readonly bootId: string;
  /** QEMU's second monitor and serial port, where it listens. */
  readonly qmpSocket: string;
  readonly serialSocket: string;
  /** Where clients attach to the console. */
  readonly consoleSocket: string;
  readonly consoleLog: string;
  /** Of the log's newer piece; as much again is kept in the one before. */
  readonly consoleLogBytes: number;
  /** What an attaching client is shown of the past. */
  readonly replayBytes: number;
  readonly lastWordsFile: string;
  /** Logs of other processes, to be kept short meanwhile. */
  readonly trim: readonly { readonly path: string; readonly limitBytes: number }[];
  /** How long QEMU may take to listen. */
  readonly connectWithinMs: number;
}

const retryEveryMs = 20;
const trimEveryMs = 2_000;
/** What may wait for a client that does not read; then it is dropped. */
const clientWaitingBytes = 1024 * 1024;
/** What may wait for a guest that does not read its console; then clients are not read either. */
const inputWaitingBytes = 64 * 1024;
const clientsMost = 64;

export class Watcher {
  readonly #config: WatcherConfig;
  readonly #log: ConsoleLog;
  readonly #clients = new Set<Socket>();
  readonly #server: Server;
  #recent: Buffer;
  #words: LastWords;
  #serial: Socket | undefined;

  /** Creates or goes on with the console log. */
  constructor(config: WatcherConfig) {
    this.#config = config;
    this.#log = new ConsoleLog(config.consoleLog, config.consoleLogBytes);
    this.#recent = Buffer.from(readConsole(config.consoleLog, -config.replayBytes, config.replayBytes).bytes);
    this.#words = { bootId: config.bootId, watcherPid: process.pid };
    this.#server = createServer((client) => this.#attach(client));
  }

  /** Resolves when QEMU has ended; rejects when it could not be reached in time or `signal` was aborted. */
  async run(signal?: AbortSignal): Promise<void> {
    const config = this.#config;
    const trimmer = setInterval(() => {
      for (const { path, limitBytes } of config.trim) trimLog(path, limitBytes);
    }, trimEveryMs);
    try {
      const deadline = performance.now() + config.connectWithinMs;
      const serial = await connectBy(config.serialSocket, deadline, signal);
      this.#serial = serial;
      const serialClosed = new Promise<void>((resolve) => serial.once('close', () => resolve()));
      serial.on('error', () => {});
      serial.on('data', (bytes: Buffer) => this.#print(bytes));
      const qmp = new Qmp(await connectBy(config.qmpSocket, deadline, signal));
      qmp.onEvent((event) => this.#say(withEvent(this.#words, event)));
      await qmp.negotiate();
      await this.#listen();
      this.#say({ ...this.#words, attachedAtMs: Date.now() });
      const aborted = new Promise<void>((resolve) =>
        signal?.addEventListener('abort', () => resolve(), { once: true }),
      );
      if (signal?.aborted !== true) await Promise.race([Promise.all([qmp.closed, serialClosed]), aborted]);
      if (signal?.aborted !== true) this.#say({ ...this.#words, endedAtMs: Date.now() });
      qmp.close();
    } finally {
      clearInterval(trimmer);
      this.#serial?.destroy();
      for (const client of this.#clients) client.end();
      this.#server.close();
      this.#log.close();
    }
  }

  async #listen(): Promise<void> {
    rmSync(this.#config.consoleSocket, { force: true });
    const before = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#server.once('error', reject);
        this.#server.listen(this.#config.consoleSocket, resolve);
      });
    } finally {
      process.umask(before);
    }
  }

  #say(words: LastWords): void {
    if (words === this.#words) return;
    this.#words = words;
    writeLastWords(this.#config.lastWordsFile, words);
  }

  #print(bytes: Buffer): void {
    this.#log.append(bytes);
    const both = Buffer.concat([this.#recent, bytes]);
    this.#recent = both.subarray(Math.max(0, both.length - this.#config.replayBytes));
    for (const client of this.#clients) {
      client.write(bytes);
      if (client.writableLength > clientWaitingBytes) client.destroy();
    }
  }

  #attach(client: Socket): void {
    if (this.#clients.size >= clientsMost) {
      client.end();
      return;
    }
    this.#clients.add(client);
    client.on('error', () => {});
    client.on('close', () => this.#clients.delete(client));
    client.write(Buffer.from(this.#recent));
    client.on('data', (bytes: Buffer) => {
      const serial = this.#serial;
      if (serial === undefined || !serial.writable) return;
      serial.write(bytes);
      if (serial.writableLength <= inputWaitingBytes) return;
      client.pause();
      serial.once('drain', () => client.resume());
    });
  }
}

/** Connects as soon as somebody listens there. */
async function connectBy(path: string, deadline: number, signal?: AbortSignal): Promise<Socket> {
  for (;;) {
    signal?.throwIfAborted();
    let connecting: Socket | undefined;
    try {
      const socket = connectToItself(path);
      connecting = socket;
      await once(socket, 'connect');
      return socket;
    } catch (error) {
      connecting?.destroy();
      const { code } = error as NodeJS.ErrnoException;
      const isTooEarly = code === 'ENOENT' || code === 'ECONNREFUSED';
      if (!isTooEarly || performance.now() > deadline)
        throw new Error(`connecting to "${path}" failed: ${messageOf(error)}`, { cause: error });
    }
    await new Promise((resolve) => setTimeout(resolve, retryEveryMs));
  }
}
