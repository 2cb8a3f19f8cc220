/** A TCP proxy before one server whose connections can be cut, held and lost. */
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';

interface Connection {
  readonly client: Socket;
  readonly server: Socket;
  /** What was not passed on to the server. */
  readonly held: Buffer[];
}

export class CuttingProxy implements AsyncDisposable {
  readonly #listener: Server;
  readonly #connections = new Set<Connection>();
  #isOpen = true;
  #holdsRequests = false;
  #losesAnswers = false;
  #answers = 0;
  #cutIn: number | undefined;

  private constructor(targetPort: number) {
    this.#listener = createServer((client) => this.#accept(client, targetPort));
  }

  static async start(targetPort: number): Promise<CuttingProxy> {
    const proxy = new CuttingProxy(targetPort);
    proxy.#listener.listen(0, '127.0.0.1');
    await once(proxy.#listener, 'listening');
    return proxy;
  }

  get endpoint(): string {
    return `127.0.0.1:${(this.#listener.address() as { readonly port: number }).port}`;
  }

  /** All connections end; new ones are taken. */
  cut(): void {
    for (const { client, server } of this.#connections) {
      client.resetAndDestroy();
      server.resetAndDestroy();
    }
    this.#connections.clear();
  }

  /** Cut before the so manieth piece from now on is passed on, in either direction. */
  cutAt(piece: number): void {
    this.#cutIn = piece;
  }

  /** Cut, and none are taken until it is open again. */
  close(): void {
    this.#isOpen = false;
    this.cut();
  }

  open(): void {
    this.#isOpen = true;
  }

  /** What clients send from now on is kept back; their connections may end meanwhile, the server does not know. */
  holdRequests(): void {
    this.#holdsRequests = true;
  }

  get heldBytes(): number {
    return [...this.#connections].reduce(
      (sum, { held }) => sum + held.reduce((bytes, chunk) => bytes + chunk.length, 0),
      0,
    );
  }

  /** Cuts the clients' side only. */
  cutClients(): void {
    for (const { client } of this.#connections) client.resetAndDestroy();
  }

  releaseRequests(): void {
    this.#holdsRequests = false;
    for (const { server, held } of this.#connections) for (const chunk of held.splice(0)) server.write(chunk);
  }

  /** What the server sends from now on goes nowhere; to be cut before that ends. */
  loseAnswers(isLosing: boolean): void {
    this.#losesAnswers = isLosing;
  }

  /** Pieces that the server sent. */
  get answers(): number {
    return this.#answers;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    const closed = once(this.#listener, 'close');
    this.#listener.close();
    await closed;
  }

  #isCutNow(): boolean {
    if (this.#cutIn === undefined || --this.#cutIn > 0) return false;
    this.#cutIn = undefined;
    this.cut();
    return true;
  }

  #accept(client: Socket, targetPort: number): void {
    if (!this.#isOpen) {
      client.resetAndDestroy();
      return;
    }
    const server = connect(targetPort, '127.0.0.1');
    const connection: Connection = { client, server, held: [] };
    this.#connections.add(connection);
    const end = (): void => {
      // The server learns of its client's end after what is held, or never.
      if (connection.held.length > 0 || this.#holdsRequests) return;
      this.#connections.delete(connection);
      client.destroy();
      server.destroy();
    };
    client.on('data', (chunk: Buffer) => {
      if (this.#isCutNow()) return;
      if (this.#holdsRequests) connection.held.push(chunk);
      else server.write(chunk);
    });
    server.on('data', (chunk) => {
      if (this.#isCutNow()) return;
      this.#answers++;
      if (!this.#losesAnswers) client.write(chunk);
    });
    for (const socket of [client, server]) {
      socket.on('error', () => {});
      socket.on('close', end);
    }
  }
}
