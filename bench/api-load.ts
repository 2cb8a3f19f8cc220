/**
 * Clients that write metadata through the API, each as soon as it has its answer: `api-load.ts SOCKET VM BYTES`. For each
 * line `CLIENTS MILLISECONDS` on standard input it writes for so long, and prints what a `Sample` has. A process of its own,
 * with next to no HTTP of its own: what is measured is the server.
 */
import { Buffer } from 'node:buffer';
import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { createInterface } from 'node:readline';

const [socketPath, vm, bytes] = process.argv.slice(2) as [string, string, string];
const headEnd = Buffer.from('\r\n\r\n');

/** One connection with one request under way. */
class Writer {
  readonly #socket: Socket;
  readonly #request: Buffer;
  readonly #bodyAt: number;
  #received: Buffer = Buffer.alloc(0);
  #answered: (() => void) | undefined;
  #failed: ((error: Error) => void) | undefined;
  #count = 0;

  constructor(socket: Socket, key: string) {
    this.#socket = socket;
    const body = Buffer.alloc(Number(bytes), 'x');
    const head = `PUT /v1/vms/${vm}/metadata/${key} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: ${body.length}\r\n\r\n`;
    this.#bodyAt = Buffer.byteLength(head);
    this.#request = Buffer.concat([Buffer.from(head), body]);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', (error) => this.#failed?.(error));
    socket.on('close', () => this.#failed?.(new Error('the server closed the connection')));
  }

  /** Another value each time: the same bytes again change nothing. */
  write(): Promise<void> {
    this.#request.write(String(++this.#count).padStart(12, '0'), this.#bodyAt);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#answered = resolve;
    this.#failed = reject;
    this.#socket.write(this.#request);
    return promise;
  }

  #take(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
    const at = this.#received.indexOf(headEnd);
    if (at < 0) return;
    const head = this.#received.toString('latin1', 0, at);
    const [, length] = /\r\ncontent-length: (\d+)/i.exec(head) ?? [];
    if (!head.startsWith('HTTP/1.1 200 ') || length === undefined)
      return this.#failed?.(new Error(`the server answered: ${this.#received.toString()}`));
    if (this.#received.length < at + headEnd.length + Number(length)) return;
    const text = this.#received.toString('utf8', at + headEnd.length);
    this.#received = Buffer.alloc(0);
    if (text.includes('"changes":0,') || !text.includes('"notApplied":[]'))
      return this.#failed?.(new Error(`a write changed nothing, or was not seen: ${text}`));
    this.#answered?.();
  }
}

const writers: Writer[] = [];

const measure = async (clients: number, forMs: number): Promise<object> => {
  while (writers.length < clients) {
    const socket = createConnection(socketPath);
    await once(socket, 'connect');
    writers.push(new Writer(socket, `bench/k${writers.length}`));
  }
  const start = performance.now();
  const end = start + forMs;
  let n = 0;
  await Promise.all(
    writers.slice(0, clients).map(async (writer) => {
      while (performance.now() < end) {
        await writer.write();
        n++;
      }
    }),
  );
  return { n, p50: (n * 1000) / (performance.now() - start) };
};

console.log('ready');
for await (const line of createInterface({ input: process.stdin })) {
  const [clients, forMs] = line.split(' ').map(Number) as [number, number];
  console.log(JSON.stringify(await measure(clients, forMs)));
}
process.exit(0);
