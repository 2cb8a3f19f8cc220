/** A host's store and a manager's, with a real HTTP/2 connection between them that can be cut. */
import { connect, createServer, type Http2Server, type ServerHttp2Session } from 'node:http2';
import { type AddressInfo, connect as connectSocket, type Socket } from 'node:net';
import type { Store } from '../../src/store/index.ts';
import { answerCalls, Caller, sessionOptions } from '../../src/uplink/calls.ts';
import { RemoteStore, type RemoteStoreOptions } from '../../src/uplink/remote-store.ts';
import { storeCalls } from '../../src/uplink/store-calls.ts';
import { storeHandlers } from '../../src/uplink/store-service.ts';

export class Pair implements AsyncDisposable {
  readonly remote: RemoteStore;
  readonly #server: Http2Server;
  readonly #sessions = new Set<ServerHttp2Session>();
  readonly #sockets = new Set<Socket>();
  readonly #onBug: (call: string, error: unknown) => void;
  #isOver = false;

  constructor(store: Store, { host = 'h1', ...options }: RemoteStoreOptions & { host?: string } = {}) {
    this.remote = new RemoteStore(options);
    this.remote.hurry();
    this.#onBug = (call, error) => {
      console.error(call, error);
    };
    this.#server = createServer(sessionOptions);
    this.#server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    this.#server.on('session', (session: ServerHttp2Session) => {
      this.#sessions.add(session);
      session.once('close', () => this.#sessions.delete(session));
      answerCalls(session, {
        table: storeCalls,
        handlers: storeHandlers({
          store,
          region: 'test',
          host,
          manager: 'm1',
          onHello: async () => {},
          renew: async () => '',
          lease: async () => ({ id: '0'.repeat(16), seconds: 15 }),
        }),
        onBug: this.#onBug,
      });
    });
  }

  static async open(store: Store, options?: RemoteStoreOptions & { host?: string }): Promise<Pair> {
    const pair = new Pair(store, options);
    await new Promise<void>((resolve) => void pair.#server.listen(0, '127.0.0.1', resolve));
    await pair.connect();
    return pair;
  }

  async connect(): Promise<void> {
    const { port } = this.#server.address() as AddressInfo;
    const socket = connectSocket(port, '127.0.0.1');
    const session = connect(`http://127.0.0.1:${port}`, { ...sessionOptions, createConnection: () => socket });
    session.on('error', () => {});
    const caller = new Caller(session, socket, storeCalls);
    session.once('close', () => {
      this.remote.disconnect(caller);
    });
    const hello = await caller.ask('hello', { instance: this.remote.instance, facts: { version: 'test' } });
    if (this.#isOver) caller.end();
    else this.remote.connect(caller, hello);
  }

  /** Nothing that is on its way arrives. `politely`: and the host is told so (GOAWAY). */
  cut(politely = false): void {
    if (politely) for (const session of this.#sessions) session.destroy();
    else for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    this.remote.close();
    this.cut();
    await new Promise<void>((resolve) => void this.#server.close(() => resolve()));
  }
}
