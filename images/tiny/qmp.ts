/** A client of QEMU's machine protocol (QMP, docs/interop/qmp-spec.rst): JSON lines over a socket that QEMU connected. */
import type { Socket } from 'node:net';

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, Json>>;
}

interface Waiting {
  readonly resolve: (value: Json) => void;
  readonly reject: (error: Error) => void;
}

interface QmpMessage {
  readonly QMP?: object;
  readonly id?: number;
  readonly return?: Json;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly event?: string;
  readonly data?: Readonly<Record<string, Json>>;
}

export class Qmp {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #text = '';
  #nextId = 1;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#receive(text));
    socket.on('error', () => {});
    socket.on('close', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error('QMP: QEMU closed the connection'));
      this.#waiting.clear();
    });
  }

  /** Leaves QMP's negotiation mode; to be called once, before anything else. */
  async negotiate(): Promise<void> {
    await this.execute('qmp_capabilities');
  }

  /** Runs a command and returns what QEMU returns; rejects with QEMU's own description of an error. */
  execute(command: string, args?: Readonly<Record<string, Json>>): Promise<Json> {
    if (this.#socket.destroyed) return Promise.reject(new Error(`QMP: "${command}" after QEMU closed the connection`));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, {
        resolve,
        reject: (error) => reject(new Error(`QMP command "${command}" failed: ${error.message}`)),
      });
      this.#socket.write(`${JSON.stringify({ execute: command, id, ...(args && { arguments: args }) })}\n`);
    });
  }

  /** Calls `listener` for each event until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #receive(text: string): void {
    const lines = (this.#text + text).split('\n');
    this.#text = lines.pop() ?? '';
    for (const line of lines) if (line.trim() !== '') this.#handle(JSON.parse(line));
  }

  #handle(message: QmpMessage): void {
    if (message.event !== undefined) {
      for (const listener of this.#listeners) listener({ event: message.event, data: message.data ?? {} });
      return;
    }
    const waiting = message.id === undefined ? undefined : this.#waiting.get(message.id);
    if (message.id === undefined || waiting === undefined) return;
    this.#waiting.delete(message.id);
    if (message.error) waiting.reject(new Error(message.error.desc));
    else waiting.resolve(message.return ?? null);
  }
}
