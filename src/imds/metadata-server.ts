/** The metadata server of one VM: HTTP on whatever reaches that VM and no other. */
import { chmodSync, chownSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerOptions, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { isIP, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import {
  AnonymousView,
  type AuditSink,
  type Clock,
  type Mutation,
  type Replica,
  type Settle,
  TreeFileSystem,
  type Way,
  ways,
} from '../tree/index.ts';
import { drained, readBody } from './body.ts';
import { ec2Facade } from './ec2.ts';
import { type Facade, FacadeTree } from './facade.ts';
import type { FacadeName } from './facade-row.ts';
import { gceFacade } from './gce.ts';
import { GuestAttributes } from './guest-attributes.ts';
import { HeldBytes, type Holding } from './held-bytes.ts';
import { defaultLimits, RateLimits, Rejection, type RejectReason, rejectReasons, type ServerLimits } from './limits.ts';
import { NativeApi } from './native.ts';
import { nocloudFacade } from './nocloud.ts';
import { openstackFacade } from './openstack.ts';
import { failure, notFound, type Reply, type Request, type StreamReply } from './reply.ts';
import { SessionTokens } from './session-token.ts';
import { asSocketLike } from './socket-like.ts';
import { parseTarget } from './target.ts';
import type { TokenDesk } from './token.ts';

export interface MetadataServerOptions {
  readonly vm: string;
  /** Of this server alone: `once` values are not in it. Fed by whoever made it. */
  readonly replica: Replica;
  /** Has a change decided and kept. A mutation that comes again with the same `sequence` has its effect once. */
  readonly commit: (mutation: Mutation, way: Way, sequence: number | undefined, settle: Settle) => void;
  readonly audit: AuditSink;
  readonly clock: Clock;
  /** Without one there is no native API. */
  readonly tokens?: TokenDesk | undefined;
  /** Default: all. */
  readonly facades?: readonly FacadeName[] | undefined;
  /** EC2's first version, without session tokens. Default: refused. */
  readonly allowImdsV1?: boolean | undefined;
  /** Under which EC2 session tokens hold: another one ends them all. */
  readonly sessionSecret: () => Uint8Array;
  /** Further names under which it may be asked over TCP; addresses and the clouds' own names always. */
  readonly hostNames?: readonly string[] | undefined;
  readonly limits?: Partial<ServerLimits> | undefined;
  /** PEM. All TCP connections are TLS then. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  /** Told of what is a bug. */
  readonly onError: (error: unknown) => void;
}

/** Where a connection comes from, as whoever accepted it says. */
export interface Channel {
  readonly kind: 'unix' | 'tcp' | 'vsock' | 'virtio-serial';
  /** It takes root in the guest to open it. */
  readonly privileged: boolean;
  /** Of those over the same channel at once, where they are fewer than of all. */
  readonly connections?: number;
}

export type MetadataAddress =
  | {
      readonly unix: string;
      /** Default 0600. */
      readonly mode?: number;
      readonly gid?: number;
      /** What connects is a relay for what only the guest's root may open. Default false. */
      readonly privileged?: boolean;
    }
  | { readonly host: string; readonly port: number };

/** Source ports below this one take privilege in the guest (ip(7), vsock(7)). */
const FIRST_FREE_PORT = 1024;

const cloudNames = [
  'localhost',
  'metadata',
  'metadata.google.internal',
  'metadata.google.internal.',
  'instance-data',
  'instance-data.ec2.internal',
] as const;

const forwarded = [
  'x-forwarded-for',
  'x-forwarded-host',
  'x-forwarded-proto',
  'forwarded',
  'x-real-ip',
  'via',
] as const;

interface Connection {
  readonly channel: Channel;
  outstanding: number;
  /** Of those what is a stream, or comes when something changes. */
  readonly waiting: Set<ServerResponse>;
}

export class MetadataServer implements AsyncDisposable {
  readonly #options: MetadataServerOptions;
  readonly #limits: ServerLimits;
  readonly #rates: RateLimits;
  readonly #facades: readonly Facade[];
  readonly #native: NativeApi | undefined;
  readonly #fileSystems: readonly TreeFileSystem[];
  readonly #servers = new Set<Server>();
  /** For connections that are handed in. */
  readonly #handedIn: Server;
  readonly #connections = new Map<Duplex, Connection>();
  readonly #rejects = new Map<RejectReason, number>();
  readonly #hostNames: ReadonlySet<string>;
  readonly #inFlight = new Set<ServerResponse>();
  readonly #held = new HeldBytes();
  #requests = 0;

  constructor(options: MetadataServerOptions) {
    const { replica, vm, audit, clock, tokens } = options;
    this.#options = options;
    this.#limits = { ...defaultLimits, ...options.limits };
    this.#rates = new RateLimits(this.#limits, clock.monotonicMs);
    this.#hostNames = new Set([...cloudNames, ...(options.hostNames ?? [])]);
    const view = new AnonymousView({ replica, audit, vm, clock });
    const anonymous = this.#fileSystem(ways.facade);
    const agent = tokens === undefined ? undefined : this.#fileSystem(ways.agent);
    this.#fileSystems = [anonymous, ...(agent === undefined ? [] : [agent])];
    const tree = (name: FacadeName): FacadeTree => new FacadeTree(view, name);
    const all: Record<FacadeName, () => Facade> = {
      // First: it takes "/" where a client says that it is one of Google's.
      gce: () =>
        gceFacade({
          tree: tree('gce'),
          attributes: new GuestAttributes(anonymous),
          onRefused: () => this.#count('no-flavor'),
        }),
      openstack: () => openstackFacade(tree('openstack')),
      nocloud: () => nocloudFacade(tree('nocloud')),
      ec2: () =>
        ec2Facade({
          tree: tree('ec2'),
          sessions: new SessionTokens(options.sessionSecret, clock.wallMs),
          allowV1: options.allowImdsV1 ?? false,
          onRefused: () => this.#count('no-session'),
        }),
    };
    const wanted = options.facades ?? (Object.keys(all) as FacadeName[]);
    this.#facades = (Object.keys(all) as FacadeName[])
      .filter((name) => wanted.includes(name))
      .map((name) => all[name]());
    this.#native =
      tokens === undefined || agent === undefined
        ? undefined
        : new NativeApi({
            vm,
            replica,
            fileSystem: agent,
            commit: (mutation, sequence, settle) => options.commit(mutation, ways.agent, sequence, settle),
            tokens,
            rates: this.#rates,
            limits: this.#limits,
            onReject: (reason) => this.#count(reason),
          });
    this.#handedIn = this.#server(false);
    // It never listens, and node:http looks after slow clients only once a server does.
    this.#handedIn.emit('listening');
  }

  #fileSystem(way: Way): TreeFileSystem {
    const { replica, audit, vm, clock, commit } = this.#options;
    const submit = (mutation: Mutation, settle: Settle): void => commit(mutation, way, undefined, settle);
    return new TreeFileSystem({ replica, way, upstream: { submit }, audit, vm, clock });
  }

  /** Listens at one more address; resolves with the port, or 0 for a socket with a path. Rejects as `listen` of `node:net`. */
  async listen(address: MetadataAddress): Promise<number> {
    const isTls = 'host' in address && this.#options.tls !== undefined;
    const server = this.#server(isTls);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once('error', reject);
    if ('unix' in address) {
      const before = process.umask(0o177);
      try {
        server.listen(address.unix, resolve);
      } finally {
        process.umask(before);
      }
    } else server.listen({ host: address.host, port: address.port }, resolve);
    await promise;
    server.off('error', reject);
    server.on('error', this.#options.onError);
    this.#servers.add(server);
    if ('unix' in address) {
      if (address.gid !== undefined) chownSync(address.unix, -1, address.gid);
      chmodSync(address.unix, address.mode ?? 0o600);
      const channel: Channel = { kind: 'unix', privileged: address.privileged === true };
      server.on('connection', (socket: Socket) => this.#take(socket, channel));
      return 0;
    }
    const privileged = ({ remotePort = FIRST_FREE_PORT }: Socket): boolean => remotePort < FIRST_FREE_PORT;
    server.prependListener(isTls ? 'secureConnection' : 'connection', (socket: Socket) =>
      this.#take(socket, { kind: 'tcp', privileged: privileged(socket) }),
    );
    return (server.address() as { readonly port: number }).port;
  }

  /** Serves a connection that somebody else accepted: of a vsock port, of a virtio-serial port. */
  accept(stream: Duplex, channel: Channel): void {
    if (this.#take(asSocketLike(stream), channel)) this.#handedIn.emit('connection', stream);
  }

  /** How often each reason refused something, and how many requests there were. */
  counters(): Readonly<Record<string, number>> {
    return {
      requests: this.#requests,
      connections: this.#connections.size,
      inFlight: this.#inFlight.size,
      heldBytes: this.#held.bytes,
      ...Object.fromEntries(rejectReasons.map((reason) => [`rejected.${reason}`, this.#rejects.get(reason) ?? 0])),
    };
  }

  /** Resolves with true once every connected agent has applied a commit, with false when one has not within `withinMs`. */
  applied(revision: number, withinMs: number): Promise<boolean> {
    return this.#native?.applied(revision, withinMs) ?? Promise.resolve(true);
  }

  /** The VM was booted anew: streams of before end. */
  endStreams(): void {
    this.#native?.endStreams();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#native?.[Symbol.dispose]();
    const closed = [...this.#servers].map((server) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      server.close(() => resolve());
      return promise;
    });
    for (const stream of this.#connections.keys()) stream.destroy();
    this.#handedIn.close();
    await Promise.all(closed);
    for (const fileSystem of this.#fileSystems) fileSystem.close();
  }

  #server(isTls: boolean): Server {
    const { tls } = this.#options;
    const { headerBytes, headers, headersMs, requestMs, idleMs } = this.#limits;
    const options: ServerOptions = {
      maxHeaderSize: headerBytes,
      headersTimeout: headersMs,
      requestTimeout: requestMs,
      keepAliveTimeout: idleMs,
      connectionsCheckingInterval: Math.min(1_000, headersMs),
      insecureHTTPParser: false,
      joinDuplicateHeaders: true,
      requireHostHeader: true,
      noDelay: true,
    };
    const server =
      isTls && tls !== undefined
        ? createTlsServer({ ...options, ...tls, handshakeTimeout: headersMs })
        : createServer(options);
    server.maxHeadersCount = headers;
    // A relay ends its half when its client has: the answer is still wanted.
    Object.assign(server, { httpAllowHalfOpen: true });
    server.maxConnections = this.#limits.connections;
    server.setTimeout(idleMs);
    server.on('request', (request, response) => void this.#serve(request, response));
    // Nothing is upgraded, tunnelled or asked whether it may come.
    for (const event of ['upgrade', 'connect'] as const)
      server.on(event, (_request: IncomingMessage, stream: Duplex) => this.#refuseRaw(stream, 400, 'malformed'));
    server.on('checkContinue', (request, response) => {
      response.writeContinue();
      void this.#serve(request, response);
    });
    server.on('clientError', (error: NodeJS.ErrnoException, stream) => {
      if (error.code === 'HPE_HEADER_OVERFLOW') return this.#refuseRaw(stream, 431, 'header-size');
      if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT') return this.#refuseRaw(stream, 408, 'slow');
      if (error.code === 'ECONNRESET' || !stream.writable) return stream.destroy();
      return this.#refuseRaw(stream, 400, 'malformed');
    });
    return server;
  }

  /** False: there are too many, and it is gone. */
  #take(stream: Duplex, channel: Channel): boolean {
    const { connections: most } = this.#limits;
    const open = this.#connections.size;
    const isFull =
      open >= (channel.privileged ? most : sharedPart(most)) ||
      (channel.connections !== undefined && this.#openOver(channel) >= channel.connections);
    if (isFull) {
      this.#count('connections');
      stream.destroy();
      return false;
    }
    this.#connections.set(stream, { channel, outstanding: 0, waiting: new Set() });
    stream.once('close', () => this.#connections.delete(stream));
    stream.once('end', () => this.#ended(stream));
    // One that resets is told of by its `close`.
    stream.on('error', () => {});
    return true;
  }

  #openOver(channel: Channel): number {
    let count = 0;
    for (const connection of this.#connections.values()) if (connection.channel === channel) count++;
    return count;
  }

  /** Whoever sends no more is answered what was asked, and no more told of what changes: most have gone. */
  #ended(stream: Duplex): void {
    const connection = this.#connections.get(stream);
    if (!stream.readableEnded || connection === undefined) return;
    if (connection.waiting.size > 0) stream.destroy();
    else if (connection.outstanding === 0) stream.end();
  }

  #waits({ socket }: IncomingMessage, outgoing: ServerResponse): void {
    this.#connections.get(socket)?.waiting.add(outgoing);
    this.#ended(socket);
  }

  #refuseRaw(stream: Duplex, status: number, reason: RejectReason): void {
    this.#count(reason);
    const words = `HTTP/1.1 ${status} Refused\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`;
    if (stream.writable) stream.end(words, () => stream.destroy());
    else stream.destroy();
  }

  #count(reason: RejectReason): void {
    this.#rejects.set(reason, (this.#rejects.get(reason) ?? 0) + 1);
  }

  async #serve(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const connection = this.#connections.get(incoming.socket);
    if (connection === undefined) return void incoming.socket.destroy();
    this.#requests++;
    this.#inFlight.add(outgoing);
    connection.outstanding++;
    const gone = new AbortController();
    const { heldBytes } = this.#limits;
    const holding = this.#held.begin(connection.channel.privileged ? heldBytes : sharedPart(heldBytes));
    outgoing.once('close', () => {
      holding.settle(0);
      this.#inFlight.delete(outgoing);
      connection.outstanding--;
      connection.waiting.delete(outgoing);
      gone.abort();
      this.#ended(incoming.socket);
    });
    try {
      if (connection.outstanding > this.#limits.pipelined) {
        this.#count('pipelined');
        return void incoming.socket.destroy();
      }
      const reply = await this.#answer(incoming, outgoing, connection.channel, holding, gone.signal);
      if (!gone.signal.aborted) await this.#write(incoming, outgoing, reply, holding);
    } catch (error) {
      await this.#fail(incoming, outgoing, error);
    }
  }

  async #answer(
    incoming: IncomingMessage,
    outgoing: ServerResponse,
    channel: Channel,
    holding: Holding,
    signal: AbortSignal,
  ): Promise<Reply | StreamReply> {
    const { inFlight } = this.#limits;
    const { size } = this.#inFlight;
    if (size > inFlight || (!channel.privileged && size > sharedPart(inFlight)))
      throw new Rejection(503, 'in-flight', 'too many requests are being answered; try again');
    const { headers, method = '' } = incoming;
    // Whoever sends one was sent here by somebody who is not in this machine.
    if (forwarded.some((name) => headers[name] !== undefined))
      throw new Rejection(403, 'forwarded', 'requests that were forwarded are not answered');
    if (channel.kind === 'tcp' && !this.#isOwnName(headers.host ?? ''))
      throw new Rejection(403, 'host', 'this is not the server of that name');
    const target = parseTarget(incoming.url ?? '');
    if (target === undefined) throw new Rejection(400, 'target', 'the path or the query makes no sense');
    const request: Request = {
      method,
      ...target,
      header: (name) => {
        const value = headers[name];
        return typeof value === 'object' ? value.join(', ') : value;
      },
      body: async (maxBytes) => {
        const most = Math.min(maxBytes, this.#limits.bodyBytes);
        holding.take(Math.min(Number(headers['content-length'] ?? most), most));
        return readBody(incoming, most);
      },
      hold: holding.take,
      waits: () => this.#waits(incoming, outgoing),
      signal,
    };
    if (target.names[0] === 'porthole') {
      return this.#native === undefined ? notFound : this.#native.answer(request, channel);
    }
    this.#rates.anonymous();
    holding.take(0);
    for (const facade of this.#facades) {
      const reply = facade.answer(request);
      if (reply === undefined) continue;
      // A long poll may be silent for longer than others.
      if (reply instanceof Promise) setIdle(incoming.socket, 0);
      return reply;
    }
    return notFound;
  }

  /** A browser that was lured to a name of its attacker's sends that name; an address is nobody's to give. */
  #isOwnName(host: string): boolean {
    const name = host.replace(/:\d{1,5}$/, '').toLowerCase();
    return isIP(name.replace(/^\[(.*)\]$/, '$1')) !== 0 || this.#hostNames.has(name);
  }

  async #write(
    incoming: IncomingMessage,
    outgoing: ServerResponse,
    reply: Reply | StreamReply,
    holding: Holding,
  ): Promise<void> {
    setIdle(incoming.socket, this.#limits.idleMs);
    const { status, headers = {}, body } = reply;
    const common = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff', ...headers };
    if ('stream' in reply) {
      setIdle(incoming.socket, 0);
      outgoing.writeHead(status, common);
      outgoing.flushHeaders();
      reply.stream(outgoing);
      return this.#waits(incoming, outgoing);
    }
    const bytes = typeof body === 'string' ? Buffer.from(body) : (body ?? new Uint8Array());
    holding.settle(bytes.length);
    const isSpent = isSpentBody(incoming);
    outgoing.writeHead(status, {
      ...common,
      'content-length': String(bytes.length),
      // What is left of a body that nobody read would be taken for the next request.
      ...(!isSpent && { connection: 'close' }),
    });
    return this.#end(incoming, outgoing, bytes, isSpent);
  }

  /** A connection that is closed with something unread is reset, and the answer may be lost: that is read away first. */
  async #end(incoming: IncomingMessage, outgoing: ServerResponse, bytes: Uint8Array, isSpent: boolean): Promise<void> {
    if (!isSpent) {
      if (bytes.length > 0) outgoing.write(bytes);
      else outgoing.flushHeaders();
      this.#inFlight.delete(outgoing);
      await drained(incoming, this.#limits.bodyBytes);
    }
    outgoing.end(isSpent ? bytes : undefined);
  }

  async #fail(incoming: IncomingMessage, outgoing: ServerResponse, error: unknown): Promise<void> {
    if (error instanceof Rejection) this.#count(error.reason);
    else this.#options.onError(error);
    if (outgoing.destroyed || outgoing.headersSent) return void incoming.socket.destroy();
    const reply = error instanceof Rejection ? failure(error.status, error.message) : failure(500);
    const body = Buffer.from(reply.body ?? '');
    outgoing.writeHead(reply.status, {
      ...reply.headers,
      ...(reply.status === 429 || reply.status === 503 ? { 'retry-after': '1' } : {}),
      'content-length': String(body.length),
      connection: 'close',
    });
    return this.#end(incoming, outgoing, body, isSpentBody(incoming));
  }
}

/** The rest is for privileged channels alone: what any program in the guest opens must not shut out its agent. */
const sharedPart = (limit: number): number => Math.ceil(limit * 0.75);

/** Nothing of it is to come. */
const isSpentBody = ({ complete, headers }: IncomingMessage): boolean =>
  complete || (headers['content-length'] === undefined && headers['transfer-encoding'] === undefined);

const setIdle = (stream: Duplex, ms: number): void => {
  asSocketLike(stream).setTimeout(ms);
};
