/** A socket for 9P clients, and the connections on it: each carries a session of its own. */
import { unlinkSync } from 'node:fs';
import { close, EPOLLIN, EPOLLOUT, listenTcp, read, send, tcpPeer, tuneTcp } from '../sys/index.ts';
import { vsockPeer } from '../virtio/index.ts';
import { EAGAIN, EINTR, EIO, errnoName } from '../wire/index.ts';
import { AllowList } from './allow-list.ts';
import { ConnectionListener } from './connection-listener.ts';
import { type LinkNinepTcp, type LinkVhostUser, vsockPortOf } from './link-messages.ts';
import { openListeningSocket } from './listening-socket.ts';
import type { Loop } from './loop.ts';
import type { NinepPeer } from './ninep-admission.ts';
import { NinepClients, type NinepPlace, type PolledStream } from './ninep-clients.ts';
import { type ByteStream, NinepConnection } from './ninep-connection.ts';

/** Programs come and go, as a VM's device does not. */
const CONNECTIONS_PER_SECOND = 100;
/** What one client may be read from at a time. */
const READ_BYTES = 64 * 1024;

/** All connections of this process are read into it: a session copies what it takes. */
const room = new Uint8Array(new ArrayBuffer(READ_BYTES));

export interface NinepListenerOptions extends NinepPlace {
  readonly socket: LinkVhostUser | LinkNinepTcp;
  readonly loop: Loop;
}

export class NinepListener {
  readonly #options: NinepListenerOptions;
  readonly #listener: ConnectionListener;
  readonly #allowed: AllowList | undefined;
  readonly #clients: NinepClients;

  /** Listens; throws, in words for people, when that is not possible. */
  constructor(options: NinepListenerOptions) {
    this.#options = options;
    const { socket, loop } = options;
    this.#clients = new NinepClients(options.onEvent);
    if (isTcp(socket)) this.#allowed = new AllowList(socket.allow);
    const fd = isTcp(socket) ? openTcp(socket) : openListeningSocket(socket);
    this.#listener = new ConnectionListener(fd, loop, (connected) => this.#connect(connected), CONNECTIONS_PER_SECOND);
    loop.serve(this.#clients);
  }

  counters(): Iterable<readonly [name: string, value: number]> {
    return this.#clients.counters();
  }

  close(): void {
    this.#listener.close();
    this.#options.loop.unserve(this.#clients);
    this.#clients.close();
    const { socket } = this.#options;
    if (isTcp(socket)) return;
    try {
      unlinkSync(socket.path);
    } catch {
      // Somebody removed it, which is what we wanted.
    }
  }

  #connect(fd: number): void {
    const { fileSystem, isUser, uidOfMount, token, loop, onEvent, socket } = this.#options;
    const from = isTcp(socket) ? this.#tcpPeer(fd) : unixPeer(fd, socket.path);
    if (from === undefined || !this.#clients.hasRoomFor(from.peer, from.name)) {
      close(fd);
      return;
    }
    if (isTcp(socket)) tuneTcp(fd);
    const client: NinepConnection = new NinepConnection({
      stream: fdStream(fd, loop, this.#clients, () => client),
      peer: from.peer,
      token,
      fileSystem: fileSystem(),
      isUser,
      uidOfMount,
      log: (message) => onEvent('broken', message),
      onClosed: (malformation) => this.#clients.remove(client, malformation),
    });
    this.#clients.add(client, from.name);
  }

  /** Undefined: it may not connect, which was told. */
  #tcpPeer(fd: number): From | undefined {
    const address = tcpPeer(fd);
    if (typeof address === 'number') this.#clients.refuse(`a connection from nowhere: ${errnoName(-address)}`);
    else if (this.#allowed?.allows(address.address) !== true)
      this.#clients.refuse(`${address.address} may not connect`);
    else
      return {
        peer: { kind: 'program', sourcePort: address.port },
        name: `port ${address.port} of ${address.address}`,
      };
    return undefined;
  }
}

interface From {
  readonly peer: NinepPeer;
  /** For people. */
  readonly name: string;
}

/**
 * A socket's name says what comes by it: from a guest's vsock anybody may. Devices of ours tell the port that they come from,
 * Firecracker and Cloud Hypervisor hide it.
 */
function unixPeer(fd: number, path: string): From {
  if (vsockPortOf(path) === undefined) return { peer: { kind: 'hypervisor' }, name: 'a client' };
  const sourcePort = vsockPeer(fd)?.sourcePort;
  const name = sourcePort === undefined ? 'a program of the guest' : `vsock port ${sourcePort} of the guest`;
  return { peer: { kind: 'program', sourcePort }, name };
}

const isTcp = (socket: LinkVhostUser | LinkNinepTcp): socket is LinkNinepTcp => 'port' in socket;

function openTcp({ path, address, port }: LinkNinepTcp): number {
  const fd = listenTcp({ address, port });
  if (fd < 0) throw new Error(`listening on "${path}" failed: ${errnoName(-fd)}`);
  return fd;
}

/** A connected socket, which `close` closes. Level-triggered: a client that sends without pause has its turn among others. */
function fdStream(fd: number, loop: Loop, clients: NinepClients, connection: () => NinepConnection): ByteStream {
  let isRead = true;
  const onReady = (events: number): void => {
    if ((events & EPOLLOUT) !== 0) connection().writable();
    if ((events & ~EPOLLOUT) === 0 || connection().isClosed) return;
    // Nobody asked for what comes, so it is the end.
    if (isRead) clients.wake(stream);
    else if ((events & EPOLLIN) === 0) connection().close();
  };
  const stream: PolledStream = {
    take: () => {
      if (!isRead) return false;
      const got = read(fd, room);
      if (got === -EAGAIN || got === -EINTR) return false;
      if (got <= 0) connection().close();
      else connection().receive(got === room.length ? room : room.subarray(0, got));
      return true;
    },
  };
  loop.watch(fd, onReady);
  return {
    write: (bytes) => {
      const wrote = send(fd, bytes);
      return wrote === -EAGAIN || wrote === -EINTR ? 0 : wrote === 0 ? -EIO : wrote;
    },
    want: (reading, writing) => {
      isRead = reading;
      loop.watch(fd, onReady, (reading ? EPOLLIN : 0) | (writing ? EPOLLOUT : 0));
    },
    close: () => {
      isRead = false;
      loop.unwatch(fd);
      clients.forget(stream);
      close(fd);
    },
  };
}
