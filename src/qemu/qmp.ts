/**
 * A client of QEMU's machine protocol (QMP, docs/interop/qmp-spec.rst): JSON lines over a unix socket, to a QEMU that this
 * process or an earlier one started. What QEMU says is foreign: lines are bounded and their shape is checked.
 */
import type { Socket } from 'node:net';
import { printable } from '../wire/index.ts';
import { connectToItself } from './connect.ts';
import { messageOf, QemuError } from './error.ts';

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };
export type JsonObject = { readonly [key: string]: Json };

export interface QmpEvent {
  readonly event: string;
  readonly data: JsonObject;
  /** Milliseconds since 1970, by QEMU's clock. */
  readonly timeMs: number;
}

/** QEMU refused a command. */
export class QmpError extends Error {
  readonly command: string;
  /** `GenericError`, `CommandNotFound`, `DeviceNotFound` … */
  readonly errorClass: string;
  readonly description: string;

  constructor(command: string, errorClass: string, description: string) {
    super(`QMP command "${command}" failed: ${description}`);
    this.name = 'QmpError';
    this.command = command;
    this.errorClass = errorClass;
    this.description = description;
  }
}

export interface ExecuteOptions {
  /** 10,000 unless given. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
}

interface Waiting {
  readonly command: string;
  readonly resolve: (value: Json) => void;
  readonly reject: (error: Error) => void;
}

/** The longest line that is taken; `query-qmp-schema` gives some 200 KB. */
const lineBytes = 4 * 1024 * 1024;
/** Events that nobody took are kept up to this number, then the oldest is dropped. */
const eventsKept = 1_024;
const defaultTimeoutMs = 10_000;

const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export class Qmp implements AsyncDisposable {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #closed = Promise.withResolvers<void>();
  readonly #greeted = Promise.withResolvers<void>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #pieces: Buffer[] = [];
  #pieceBytes = 0;
  #nextId = 1;
  #failure: QemuError | undefined;

  /** Takes over a connected socket; `negotiate` before anything else. */
  constructor(socket: Socket) {
    this.#socket = socket;
    this.#greeted.promise.catch(() => {});
    socket.on('data', (bytes: Buffer) => this.#receive(bytes));
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#fail(new QemuError('QMP_LOST', 'QEMU closed its monitor'));
      this.#closed.resolve();
    });
  }

  /** Connects to the socket of `-chardev socket,…,server=on` and negotiates. Each such socket serves one client at a time. */
  static async connect(path: string, options: ExecuteOptions = {}): Promise<Qmp> {
    let connecting: Socket | undefined;
    let socket: Socket;
    try {
      socket = connecting = connectToItself(path);
      await new Promise<void>((resolve, reject) => {
        const abort = (): void => reject(options.signal?.reason);
        options.signal?.addEventListener('abort', abort, { once: true });
        socket.once('connect', resolve);
        socket.once('error', reject);
        if (options.signal?.aborted) abort();
      });
    } catch (error) {
      connecting?.destroy();
      throw new QemuError('QMP_LOST', `connecting to QEMU's monitor "${path}" failed: ${messageOf(error)}`, error);
    }
    const client = new Qmp(socket);
    try {
      await client.negotiate(options);
      return client;
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  /** Waits for the greeting and leaves negotiation; to be called once. */
  async negotiate(options: ExecuteOptions = {}): Promise<void> {
    const timeoutMs = options.timeoutMs ?? defaultTimeoutMs;
    const timer = setTimeout(
      () => this.#greeted.reject(new QemuError('QMP_TIMEOUT', `QEMU's monitor did not greet within ${timeoutMs} ms`)),
      timeoutMs,
    );
    const abort = (): void => this.#greeted.reject(options.signal?.reason);
    options.signal?.addEventListener('abort', abort, { once: true });
    if (options.signal?.aborted) abort();
    try {
      await this.#greeted.promise;
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', abort);
    }
    await this.execute('qmp_capabilities', undefined, options);
  }

  /** Resolves when the connection is gone. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  /**
   * Runs a command and returns what QEMU returns. Rejects with `QmpError` where QEMU refuses, with QMP_TIMEOUT when it does
   * not answer in time (an answer that comes later is dropped), and with QMP_LOST when it is gone.
   */
  execute(command: string, args?: JsonObject, options: ExecuteOptions = {}): Promise<Json> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (options.signal?.aborted) return Promise.reject(options.signal.reason);
    const id = this.#nextId++;
    const timeoutMs = options.timeoutMs ?? defaultTimeoutMs;
    return new Promise((resolve, reject) => {
      const finish = (act: () => void): void => {
        clearTimeout(timer);
        options.signal?.removeEventListener('abort', abort);
        this.#waiting.delete(id);
        act();
      };
      const abort = (): void => finish(() => reject(options.signal?.reason));
      const timer = setTimeout(
        () =>
          finish(() =>
            reject(new QemuError('QMP_TIMEOUT', `QEMU did not answer QMP command "${command}" within ${timeoutMs} ms`)),
          ),
        timeoutMs,
      );
      options.signal?.addEventListener('abort', abort, { once: true });
      this.#waiting.set(id, {
        command,
        resolve: (value) => finish(() => resolve(value)),
        reject: (error) => finish(() => reject(error)),
      });
      this.#socket.write(`${JSON.stringify({ execute: command, id, ...(args && { arguments: args }) })}\n`);
    });
  }

  /** Calls `listener` for each event until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Events from now on; ends when the connection does or `signal` is aborted. */
  events(signal?: AbortSignal): AsyncIterable<QmpEvent> {
    const queue: QmpEvent[] = [];
    let wake = (): void => {};
    let over = false;
    const end = (): void => {
      over = true;
      wake();
    };
    const off = this.onEvent((event) => {
      queue.push(event);
      if (queue.length > eventsKept) queue.shift();
      wake();
    });
    signal?.addEventListener('abort', end, { once: true });
    if (signal?.aborted) over = true;
    void this.closed.then(end);
    return (async function* () {
      try {
        for (;;) {
          const event = queue.shift();
          if (event !== undefined) yield event;
          else if (over) return;
          else
            await new Promise<void>((resolve) => {
              wake = resolve;
            });
        }
      } finally {
        off();
        signal?.removeEventListener('abort', end);
      }
    })();
  }

  close(): void {
    this.#socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.closed;
  }

  #receive(bytes: Buffer): void {
    let at = 0;
    for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10, at)) {
      this.#pieces.push(bytes.subarray(at, end));
      const line = Buffer.concat(this.#pieces).toString('utf8').trim();
      this.#pieces = [];
      this.#pieceBytes = 0;
      at = end + 1;
      if (line !== '') this.#takeLine(line);
      if (this.#failure !== undefined) return;
    }
    if (at === bytes.length) return;
    this.#pieces.push(bytes.subarray(at));
    this.#pieceBytes += bytes.length - at;
    if (this.#pieceBytes > lineBytes) this.#break(`a line of more than ${lineBytes} bytes`);
  }

  #takeLine(line: string): void {
    let message: Json;
    try {
      message = JSON.parse(line) as Json;
    } catch {
      this.#break(`a line that is no JSON: "${printable(line.slice(0, 80))}"`);
      return;
    }
    if (!isObject(message)) this.#break('a line that is no object');
    else if (isObject(message['QMP'])) this.#greeted.resolve();
    else if (typeof message['event'] === 'string') this.#takeEvent(message['event'], message);
    else this.#takeAnswer(message);
  }

  #takeEvent(event: string, message: JsonObject): void {
    const data = isObject(message['data']) ? message['data'] : {};
    const { seconds, microseconds } = isObject(message['timestamp']) ? message['timestamp'] : {};
    const timeMs = Number(seconds ?? 0) * 1000 + Math.floor(Number(microseconds ?? 0) / 1000);
    for (const listener of this.#listeners) listener({ event, data, timeMs });
  }

  #takeAnswer(message: JsonObject): void {
    const id = message['id'];
    const waiting = typeof id === 'number' ? this.#waiting.get(id) : undefined;
    if (waiting === undefined) return;
    const error = message['error'];
    if (isObject(error))
      waiting.reject(
        new QmpError(
          waiting.command,
          printable(String(error['class'])),
          printable(String(error['desc'])).slice(0, 500),
        ),
      );
    else waiting.resolve(message['return'] ?? null);
  }

  #break(what: string): void {
    this.#fail(new QemuError('QMP_BROKEN', `QEMU's monitor said ${what}`));
    this.#socket.destroy();
  }

  #fail(error: QemuError): void {
    this.#failure ??= error;
    this.#greeted.reject(this.#failure);
    for (const { reject } of [...this.#waiting.values()]) reject(this.#failure);
  }
}
