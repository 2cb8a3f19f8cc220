/** Connections of a guest that end in unix sockets of the host, in the form that Firecracker and Cloud Hypervisor have. */
import { randomBytes } from 'node:crypto';
import {
  close,
  connectUnixFrom,
  EPOLLET,
  EPOLLIN,
  EPOLLOUT,
  POLLHUP,
  peerName,
  pollOne,
  read,
  send,
  shutdown,
} from '../../sys/index.ts';
import { EADDRINUSE, EAGAIN, EINTR } from '../../wire/index.ts';
import type { FdWatcher } from '../back-end.ts';
import type { Connection } from './connection.ts';
import type { PendingEnd, VsockMux } from './mux.ts';

/** `<path>_<port>` is where connections of the guest to a port arrive. */
export const portPath = (path: string, port: number): string => `${path}_${port}`;

const NAME = 'porthole-vsock';
const namePattern = new RegExp(`^${NAME}/(\\d{1,10})/(\\d{1,10})/[0-9a-f]+$`);
const U32_END = 2 ** 32;

/**
 * Of a unix socket that a service accepted at `<path>_<port>`: which guest's program is at the other end. Undefined where the
 * peer did not say (another hypervisor, or any program of this machine): its port is not known then. Any program that may
 * connect to the service can say what it likes, so the service's socket lets nobody connect but who serves the guest.
 */
export function vsockPeer(fd: number): { readonly guestCid: number; readonly sourcePort: number } | undefined {
  const name = peerName(fd);
  const match = typeof name === 'string' ? namePattern.exec(name) : null;
  if (match === null) return undefined;
  const guestCid = Number(match[1]);
  const sourcePort = Number(match[2]);
  return guestCid < U32_END && sourcePort < U32_END ? { guestCid, sourcePort } : undefined;
}

/**
 * Connects to the service of the host at `<path>_<port>`, from an address that tells it the guest's CID and port. Returns a
 * non-blocking socket, or the negative errno.
 */
export function connectToService(path: string, port: number, guestCid: number, sourcePort: number): number {
  for (;;) {
    const name = `${NAME}/${guestCid}/${sourcePort}/${randomBytes(8).toString('hex')}`;
    const fd = connectUnixFrom(name, portPath(path, port));
    if (fd !== -EADDRINUSE) return fd;
  }
}

/** A unix socket as the host's end of a connection. Owns `fd`. */
export class UnixEnd implements PendingEnd {
  readonly #fd: number;
  readonly #watcher: FdWatcher;
  readonly #mux: VsockMux;
  readonly #asked: boolean;
  #connection: Connection | undefined;
  #isFull = false;

  /** `asked`: the program at the other end asked for the connection, and is told when it is there. */
  constructor(fd: number, watcher: FdWatcher, mux: VsockMux, asked: boolean) {
    this.#fd = fd;
    this.#watcher = watcher;
    this.#mux = mux;
    this.#asked = asked;
  }

  attach(connection: Connection): void {
    this.#connection = connection;
    try {
      this.#watch(EPOLLIN);
    } catch {
      this.#mux.broken(connection);
    }
  }

  #watch(events: number): void {
    this.#watcher.watch(this.#fd, this.#look, events | EPOLLET);
  }

  /** What an event says is not asked for: one may be of another socket that had the same number. */
  readonly #look = (): void => {
    const connection = this.#connection;
    if (connection === undefined) return;
    if (this.#isFull) this.#mux.writable(connection);
    if (this.#connection !== undefined) this.#mux.readable(connection);
  };

  take(bytes: Uint8Array, count: number): number {
    const sent = send(this.#fd, bytes, count);
    if (sent < 0 && sent !== -EAGAIN && sent !== -EINTR) return sent;
    const isFull = sent !== count;
    if (isFull !== this.#isFull) {
      this.#isFull = isFull;
      this.#watch(isFull ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
    return Math.max(0, sent);
  }

  give(into: Uint8Array, most: number): number {
    for (;;) {
      const got = read(this.#fd, into, most);
      if (got !== -EINTR) return got;
    }
  }

  isGone(): boolean {
    return (pollOne(this.#fd, 0, 0) & POLLHUP) !== 0;
  }

  opened(hostPort: number): void {
    // There is room: nothing was sent before.
    if (this.#asked) send(this.#fd, new TextEncoder().encode(`OK ${hostPort}\n`));
  }

  endOfGuest(): void {
    shutdown(this.#fd, 'write');
  }

  guestIsDeaf(): void {
    shutdown(this.#fd, 'read');
  }

  over(): void {
    if (this.#connection !== undefined) this.#watcher.unwatch(this.#fd);
    this.#connection = undefined;
    close(this.#fd);
  }
}
