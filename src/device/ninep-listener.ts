/** A socket for 9P clients, and the connections on it: each carries a session of its own. */
import { BlockList, isIPv6 } from 'node:net';
import { close, EPOLLIN, EPOLLOUT, listenTcp, read, send, type TcpAddress, tcpPeer, tuneTcp } from '../sys/index.ts';
import type { TreeFileSystem } from '../tree/index.ts';
import { EAGAIN, EINTR, EIO, errnoName } from '../wire/index.ts';
import { ConnectionListener } from './connection-listener.ts';
import type { LinkNinep, LinkNinepTcp } from './link-messages.ts';
import { openListeningSocket } from './listening-socket.ts';
import type { Loop, Served } from './loop.ts';
import { isPrivileged, type NinepPeer } from './ninep-admission.ts';
import { type ByteStream, NinepConnection } from './ninep-connection.ts';

/** Connections of one socket. A guest's kernel takes one for each mount. */
const MAX_CONNECTIONS = 16;
/** Of those, for peers that nobody vouches for. */
const MAX_UNPRIVILEGED = 4;
/** Programs come and go, as a VM's device does not. */
const CONNECTIONS_PER_SECOND = 100;
/** How long such a peer may stay without attaching. */
const UNATTACHED_MS = 10_000;
/** What one client may be read from at a time. */
const READ_BYTES = 64 * 1024;

/** All connections of this process are read into it: a session copies what it takes. */
const room = new Uint8Array(new ArrayBuffer(READ_BYTES));

export interface NinepListenerOptions {
  readonly socket: LinkNinep;
  readonly loop: Loop;
  /** A new one for each connection. */
  readonly fileSystem: () => TreeFileSystem;
  /** Whether the policy of now knows a uid. */
  readonly isUser: (uid: number) => boolean;
  readonly onEvent: (what: 'connected' | 'disconnected' | 'refused' | 'broken', detail: string) => void;
}

interface Open {
  readonly connection: NinepConnection;
  readonly peer: NinepPeer;
  readonly sinceMs: number;
}

export class NinepListener implements Served {
  readonly servedCount = 0;
  readonly #options: NinepListenerOptions;
  readonly #listener: ConnectionListener;
  readonly #allowed: BlockList | undefined;
  readonly #open = new Set<Open>();
  /** Of connections that ended. */
  readonly #ended = new Map<string, number>();
  #unattached = 0;

  /** Listens; throws, in words for people, when that is not possible. */
  constructor(options: NinepListenerOptions) {
    this.#options = options;
    const { socket, loop } = options;
    if (isTcp(socket)) this.#allowed = allowList(socket.allow);
    const fd = isTcp(socket) ? openTcp(socket) : openListeningSocket(socket);
    this.#listener = new ConnectionListener(fd, loop, (connected) => this.#connect(connected), CONNECTIONS_PER_SECOND);
    loop.serve(this);
  }

  process(): boolean {
    return false;
  }

  suppressKicks(): boolean {
    return false;
  }

  nextDeadlineMs(): number {
    let next = Number.POSITIVE_INFINITY;
    for (const open of this.#open) next = Math.min(next, open.connection.nextDeadlineMs(), this.#leaveMs(open));
    return next;
  }

  tick(nowMs: number): void {
    for (const open of this.#open) {
      if (this.#leaveMs(open) <= nowMs) this.#refuse(open);
      else if (open.connection.nextDeadlineMs() <= nowMs) open.connection.tick(nowMs);
    }
  }

  *counters(): Generator<readonly [name: string, value: number]> {
    yield ['9p.connections', this.#open.size];
    yield* this.#ended;
    for (const { connection } of this.#open) yield* connection.session.counters();
  }

  close(): void {
    this.#listener.close();
    this.#options.loop.unserve(this);
    for (const { connection } of this.#open) connection.close();
  }

  /** When a peer that nobody vouches for, and that has not attached, must go. */
  #leaveMs({ connection, peer, sinceMs }: Open): number {
    return isPrivileged(peer) || connection.hasAttached ? Number.POSITIVE_INFINITY : sinceMs + UNATTACHED_MS;
  }

  #refuse({ connection }: Open): void {
    this.#count('9p.unattached', 1);
    connection.close();
  }

  #connect(fd: number): void {
    const { fileSystem, isUser, loop, onEvent } = this.#options;
    const from = this.#peerOf(fd);
    if (typeof from === 'string') {
      close(fd);
      this.#count('9p.refusedConnections', 1);
      return onEvent('refused', from);
    }
    const { peer, name } = from;
    const privileged = isPrivileged(peer);
    const stream = fdStream(fd, loop, () => opened.connection);
    const opened: Open = {
      peer,
      sinceMs: performance.now(),
      connection: new NinepConnection({
        stream,
        peer,
        fileSystem: fileSystem(),
        isUser,
        log: (message) => onEvent('broken', message),
        onClosed: (malformation) => {
          this.#open.delete(opened);
          if (!privileged) this.#unattached--;
          this.#keepCounters(opened.connection);
          if (malformation !== undefined) onEvent('broken', `${name}: ${malformation}`);
          onEvent('disconnected', name);
        },
      }),
    };
    this.#open.add(opened);
    if (!privileged) this.#unattached++;
    return onEvent('connected', name);
  }

  /** Who connected, or why nobody may. */
  #peerOf(fd: number): { readonly peer: NinepPeer; readonly name: string } | string {
    const { socket } = this.#options;
    if (this.#open.size >= MAX_CONNECTIONS) return `there are ${MAX_CONNECTIONS} connections already`;
    if (!isTcp(socket)) return { peer: { kind: 'hypervisor' }, name: 'a client' };
    const address = tcpPeer(fd);
    if (typeof address === 'number') return `a connection whose peer is not known: ${errnoName(-address)}`;
    if (!isAllowed(this.#allowed, address)) return `${address.address} may not connect`;
    const peer: NinepPeer = { kind: 'program', sourcePort: address.port };
    if (!isPrivileged(peer) && this.#unattached >= MAX_UNPRIVILEGED)
      return `port ${address.port} of ${address.address}: ${MAX_UNPRIVILEGED} connections from ports above 1023 are there already`;
    tuneTcp(fd);
    return { peer, name: `port ${address.port} of ${address.address}` };
  }

  #count(name: string, value: number): void {
    this.#ended.set(name, (this.#ended.get(name) ?? 0) + value);
  }

  /** What was counted stays when the connection goes; what was held does not. */
  #keepCounters({ session }: NinepConnection): void {
    for (const [name, value] of session.counters()) if (!held.has(name) && value > 0) this.#count(name, value);
  }
}

/** Counters that are amounts of now. */
const held = new Set(['9p.fids', '9p.requests', '9p.requestBytes', '9p.xattrBytes']);

const isTcp = (socket: LinkNinep): socket is LinkNinepTcp => 'port' in socket;

const familyOf = (address: string): 'ipv4' | 'ipv6' => (isIPv6(address) ? 'ipv6' : 'ipv4');

function allowList(allow: readonly string[]): BlockList {
  const list = new BlockList();
  list.addSubnet('127.0.0.0', 8, 'ipv4');
  list.addAddress('::1', 'ipv6');
  for (const each of allow) {
    const [address = '', bits] = each.split('/');
    if (bits === undefined) list.addAddress(address, familyOf(address));
    else list.addSubnet(address, Number(bits), familyOf(address));
  }
  return list;
}

const isAllowed = (list: BlockList | undefined, { address }: TcpAddress): boolean =>
  list?.check(address, familyOf(address)) === true;

function openTcp({ path, address, port }: LinkNinepTcp): number {
  const fd = listenTcp({ address, port });
  if (fd < 0) throw new Error(`listening on "${path}" failed: ${errnoName(-fd)}`);
  return fd;
}

/** A connected socket, which `close` closes. Level-triggered: a client that sends without pause has its turn among others. */
function fdStream(fd: number, loop: Loop, connection: () => NinepConnection): ByteStream {
  let isRead = true;
  const onReady = (events: number): void => {
    if ((events & EPOLLOUT) !== 0) connection().writable();
    if ((events & ~EPOLLOUT) === 0 || connection().isClosed) return;
    // Nobody asked for what comes, so it is the end.
    if (isRead) take();
    else if ((events & EPOLLIN) === 0) connection().close();
  };
  const take = (): void => {
    const got = read(fd, room);
    if (got === -EAGAIN || got === -EINTR) return;
    if (got <= 0) connection().close();
    else connection().receive(got === room.length ? room : room.subarray(0, got));
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
      loop.unwatch(fd);
      close(fd);
    },
  };
}
