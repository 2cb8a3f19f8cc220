/** The guest's serial console: kept for error messages, and lent to a terminal. */
import type { Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import type { ReadStream } from 'node:tty';

const keptChars = 64 * 1024;

export class ConsoleLog {
  readonly #connection: Promise<Socket>;
  #text = '';
  #output: Writable | undefined;

  constructor(connection: Promise<Socket>) {
    this.#connection = connection;
    void this.#follow();
  }

  /** The last 64 Ki characters that the guest printed. */
  get text(): string {
    return this.#text;
  }

  /** Connects a terminal, raw if it is one, until the returned function is called. */
  async attach(input: ReadStream | Readable, output: Writable): Promise<() => void> {
    const socket = await this.#connection;
    const raw = (on: boolean): void => {
      if ('setRawMode' in input && input.isTTY) input.setRawMode(on);
    };
    raw(true);
    this.#output = output;
    const send = (data: Buffer): void => {
      socket.write(data);
    };
    input.on('data', send);
    input.resume();
    return () => {
      input.off('data', send);
      input.pause();
      this.#output = undefined;
      raw(false);
    };
  }

  async #follow(): Promise<void> {
    const socket = await this.#connection;
    socket.on('error', () => {});
    socket.on('data', (data: Buffer) => this.#receive(data));
  }

  #receive(data: Buffer): void {
    this.#text = (this.#text + data.toString('latin1')).slice(-keptChars);
    this.#output?.write(data);
  }
}
