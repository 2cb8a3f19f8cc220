/** HTTP connections to a metadata server over what a hypervisor gives its guest, of which Node knows no sockets. */
import { randomBytes } from 'node:crypto';
import { constants, openSync } from 'node:fs';
import { type AgentOptions, Agent as HttpAgent } from 'node:http';
import type { Duplex } from 'node:stream';
import { SerialMux, SYNC_BYTES } from '../imds/index.ts';
import { connectVsock } from '../sys/index.ts';
import { EADDRINUSE, errnoName } from '../wire/index.ts';
import { FdStream, type StreamLoop } from './fd-stream.ts';
import { privilegedPort } from './privileged-port.ts';
import type { GuestPort } from './server-address.ts';

/** Source ports that are tried; others of ours may have some. */
const ATTEMPTS = 16;
/** The host answers at once where there is one; QEMU connects to it again within a second. */
const SYNC_MS = 5_000;

type Connected = (error: Error | null, stream?: Duplex) => void;

/** Failed before anything was sent. */
const unreached = (why: string): Error => Object.assign(new Error(why), { syscall: 'connect' });

/** Keeps connections as `node:http` does. */
export class GuestPortAgent extends HttpAgent {
  readonly #port: GuestPort;
  readonly #loop: StreamLoop;
  #mux: Promise<SerialMux> | undefined;
  #portStream: FdStream | undefined;

  constructor(port: GuestPort, loop: StreamLoop, options: AgentOptions) {
    super(options);
    this.#port = port;
    this.#loop = loop;
  }

  override createConnection(_options: object, connected: Connected): undefined {
    this.#connect().then(
      (stream) => connected(null, asSocket(stream)),
      (error: unknown) => connected(error instanceof Error ? error : unreached(String(error))),
    );
  }

  override destroy(): void {
    super.destroy();
    this.#portStream?.destroy();
  }

  async #connect(): Promise<Duplex> {
    const port = this.#port;
    if (port.kind === 'vsock') return this.#vsock(port.cid, port.port);
    const opening = (this.#mux ??= this.#serial(port.path));
    opening.catch(() => this.#forget(opening));
    const mux = await opening;
    try {
      return mux.open();
    } catch (error) {
      throw unreached((error as Error).message);
    }
  }

  #vsock(cid: number, port: number): Duplex {
    for (let attempt = 1; ; attempt++) {
      const fd = connectVsock(cid, port, privilegedPort());
      if (fd >= 0) return new FdStream(fd, this.#loop, true);
      if (fd !== -EADDRINUSE || attempt === ATTEMPTS) throw unreached(errnoName(-fd));
    }
  }

  /** The next connection opens the port anew. */
  #forget(mux: Promise<SerialMux>): void {
    if (this.#mux === mux) this.#mux = undefined;
  }

  /** Opens the port, and resolves when the host has answered on it. */
  #serial(path: string): Promise<SerialMux> {
    const { promise, resolve, reject } = Promise.withResolvers<SerialMux>();
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK | constants.O_NOCTTY);
    } catch (error) {
      reject(unreached((error as Error).message));
      return promise;
    }
    const stream = new FdStream(fd, this.#loop);
    this.#portStream = stream;
    const silence = setTimeout(() => stream.destroy(), SYNC_MS);
    stream.once('close', () => {
      clearTimeout(silence);
      this.#forget(promise);
      reject(unreached(`nobody answers on ${path}`));
    });
    const mux = new SerialMux(stream, {
      onSynced: () => {
        clearTimeout(silence);
        resolve(mux);
      },
    });
    mux.sync(randomBytes(SYNC_BYTES));
    return promise;
  }
}

/** What `node:http` asks of a client's socket beyond a stream. */
const asSocket = (stream: Duplex): Duplex => {
  const same = (): Duplex => stream;
  return Object.assign(stream, { setKeepAlive: same, setNoDelay: same, setTimeout: same, ref: same, unref: same });
};
