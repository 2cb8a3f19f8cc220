/** Listens: on a unix socket, where the kernel says who is there, and on TCP, where a key does. */
import { chmodSync, chownSync, lstatSync, unlinkSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerOptions, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { connect, isIP, type Socket } from 'node:net';
import { getRequestListener } from '@hono/node-server';
import { defaultAccount, type Role } from '../records/index.ts';
import { peerCredentials, peerGroups } from '../sys/index.ts';
import { type Connection, createApp } from './app.ts';
import { Deadlines } from './deadlines.ts';
import { FailedKeys } from './failed-keys.ts';
import type { Identity } from './identity.ts';
import type { Manager } from './manager.ts';
import { Metrics } from './metrics.ts';
import { ApiError, problemResponse } from './problem.ts';
import * as routes from './routes/index.ts';
import type { Site } from './site.ts';
import { Streams, type StreamTiming } from './streams.ts';

export interface TcpOptions {
  /** An address; loopback unless `tls` is given. */
  readonly host: string;
  /** 0: any that is free. */
  readonly port: number;
  /** PEM. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  /** Names under which clients reach it, as they stand in Host headers without a port. */
  readonly names?: readonly string[] | undefined;
}

export interface ListenOptions {
  readonly manager: Manager;
  readonly version: string;
  readonly socketPath?: string | undefined;
  /** Members of this group may use the socket too, in this role. Root and the daemon's own user are admins. */
  readonly socketGroup?: { readonly gid: number; readonly role: Role } | undefined;
  readonly tcp?: TcpOptions | undefined;
  readonly origins?: readonly string[] | undefined;
  /** The console, as `readSite` has it; undefined: there is none. */
  readonly site?: Site | undefined;
  /** How long requests may go on after `close`. Default 5 s. */
  readonly closeMs?: number | undefined;
  readonly streamTiming?: StreamTiming | undefined;
  /** Limits of `node:http`, for tests of them. */
  readonly limits?: Partial<HttpLimits> | undefined;
}

/**
 * A client gets so long to send its headers, and so long for the whole request. One that neither sends nor takes anything
 * for `idleMs` is cut off.
 */
export interface HttpLimits {
  readonly idleMs: number;
  readonly headersTimeoutMs: number;
  readonly requestTimeoutMs: number;
  readonly connections: number;
}

export type ListenErrorCode = 'API_TLS_REQUIRED' | 'API_ADDRESS_IN_USE' | 'API_BAD_ADDRESS' | 'API_LISTEN_FAILED';

export class ListenError extends Error {
  readonly code: ListenErrorCode;

  constructor(code: ListenErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'ListenError';
    this.code = code;
  }
}

export interface ApiServer extends AsyncDisposable {
  /** Of TCP: what to give to clients. */
  readonly url: string | undefined;
  readonly metrics: Metrics;
  /** Ends streams, lets requests end, then cuts off what is left. */
  close(): Promise<void>;
}

const defaultLimits: HttpLimits = {
  idleMs: 60_000,
  headersTimeoutMs: 10_000,
  requestTimeoutMs: 30_000,
  connections: 1_024,
};
const keepAliveMs = 5_000;
const headerBytes = 16 * 1024;
const headersMost = 100;
const socketPathBytes = 107;
const closeMsDefault = 5_000;

/** ListenError. */
export const listen = async (options: ListenOptions): Promise<ApiServer> => {
  const { manager, socketPath, tcp } = options;
  if (tcp !== undefined) checkTcp(tcp);
  const metrics = new Metrics(manager);
  const streams = new Streams(metrics.streams, options.streamTiming ?? {});
  const connections = new WeakMap<Socket, Connection>();
  const deadlines = new Deadlines({ ...defaultLimits, ...options.limits }.requestTimeoutMs, refuseMalformed);
  const app = createApp({
    expectLong: ({ incoming, outgoing }) => {
      deadlines.lift(incoming);
      if (expectsContinue(incoming)) (outgoing as ServerResponse).writeContinue();
    },
    manager,
    metrics,
    streams,
    failedKeys: new FailedKeys(),
    version: options.version,
    origins: new Set(options.origins),
    site: options.site,
    connectionOf: ({ socket }) => {
      const known = connections.get(socket);
      if (known === undefined) throw new Error('a request came on a connection that was never told');
      return known;
    },
  });
  const listener = getRequestListener(app.fetch, {
    hostname: 'localhost',
    errorHandler: (error) => {
      manager.kit.log.warn({ err: error }, 'a request could not be read');
      return problemResponse(new ApiError('BAD_REQUEST', 'the request could not be read'), 'none');
    },
  });
  const limits = { ...defaultLimits, ...options.limits };
  const httpOptions: ServerOptions = {
    maxHeaderSize: headerBytes,
    headersTimeout: limits.headersTimeoutMs,
    // `deadlines` holds it, because a few may take longer.
    requestTimeout: 0,
    keepAliveTimeout: keepAliveMs,
    connectionsCheckingInterval: Math.min(1_000, limits.headersTimeoutMs),
    insecureHTTPParser: false,
    joinDuplicateHeaders: false,
    noDelay: true,
  };
  const servers: { readonly server: Server; readonly kind: 'unix' | 'tcp' }[] = [];
  const take = (server: Server, kind: 'unix' | 'tcp', describe: (socket: Socket) => Connection): Server => {
    server.maxHeadersCount = headersMost;
    server.maxConnections = limits.connections;
    server.setTimeout(limits.idleMs);
    server.on(kind === 'tcp' && tcp?.tls !== undefined ? 'secureConnection' : 'connection', (socket: Socket) =>
      connections.set(socket, describe(socket)),
    );
    const answer = (incoming: IncomingMessage, outgoing: ServerResponse): void => {
      deadlines.set(incoming, outgoing);
      void listener(incoming, outgoing);
    };
    server.on('request', answer);
    server.on('checkContinue', (incoming: IncomingMessage, outgoing: ServerResponse) => {
      // Of a body that is long, whoever sends it is told to when all else has been checked.
      if (incoming.url?.split('?', 1)[0] !== routes.uploadFile.path) outgoing.writeContinue();
      answer(incoming, outgoing);
    });
    server.on('clientError', refuseMalformed);
    servers.push({ server, kind });
    return server;
  };

  try {
    if (socketPath !== undefined) {
      const server = take(createServer(httpOptions), 'unix', (socket) => unixConnection(socket, options));
      await listenUnix(server, socketPath, options.socketGroup);
    }
    let url: string | undefined;
    if (tcp !== undefined) {
      const scheme = tcp.tls === undefined ? 'http' : 'https';
      const hosts = new Set(['localhost', ...(tcp.names ?? [])].map((name) => name.toLowerCase()));
      const server = take(
        tcp.tls === undefined
          ? createServer(httpOptions)
          : createTlsServer({ ...httpOptions, ...tcp.tls, minVersion: 'TLSv1.2' }),
        'tcp',
        ({ remoteAddress = '' }) => ({ peer: undefined, address: remoteAddress, hosts, scheme }),
      );
      await started(server, () => server.listen({ host: tcp.host, port: tcp.port }), `${tcp.host}:${tcp.port}`);
      const { port } = server.address() as { port: number };
      url = `${scheme}://${isIP(tcp.host) === 6 ? `[${tcp.host}]` : tcp.host}:${port}`;
    }
    const close = once(async () => {
      streams.closeAll();
      const closed = servers.map(({ server }) => new Promise<void>((resolve) => server.close(() => resolve())));
      for (const { server } of servers) server.closeIdleConnections();
      const cutOff = setTimeout(() => {
        for (const { server } of servers) server.closeAllConnections();
      }, options.closeMs ?? closeMsDefault);
      await Promise.all(closed);
      clearTimeout(cutOff);
      metrics.registry.clear();
    });
    return { url, metrics, close, [Symbol.asyncDispose]: close };
  } catch (error) {
    for (const { server } of servers) server.close();
    throw error;
  }
};

/** Also of the upload, whose body is waited for: HTTP/1.1 has no other expectation. */
const expectsContinue = ({ headers }: IncomingMessage): boolean => headers.expect?.toLowerCase() === '100-continue';

const once = (run: () => Promise<void>): (() => Promise<void>) => {
  let done: Promise<void> | undefined;
  return () => (done ??= run());
};

const isLoopback = (host: string): boolean =>
  /^127(\.\d{1,3}){3}$/.test(host) || host === '::1' || host === 'localhost';

const checkTcp = ({ host, port, tls }: TcpOptions): void => {
  if (isIP(host) === 0 && host !== 'localhost')
    throw new ListenError('API_BAD_ADDRESS', `cannot listen on "${host}": give an IP address of this machine`);
  if (!Number.isInteger(port) || port < 0 || port > 65_535)
    throw new ListenError('API_BAD_ADDRESS', `cannot listen on port ${port}: give a number from 0 to 65535`);
  if (tls === undefined && !isLoopback(host))
    throw new ListenError(
      'API_TLS_REQUIRED',
      `listening on "${host}" needs TLS, or keys and secrets would cross the network in the clear; give a certificate and its key, or listen on 127.0.0.1`,
    );
};

/** Node gives no other way to it. −1 when it is not there (any more): then the kernel names nobody, and nobody is let in. */
const descriptorOf = (socket: Socket): number => {
  const { _handle: handle } = socket as unknown as { readonly _handle?: { readonly fd?: number } };
  return handle?.fd ?? -1;
};

/** The kernel's word on who connected. Whoever cannot be named is refused. */
const unixConnection = (socket: Socket, { socketGroup }: ListenOptions): Connection => {
  const connection = { address: 'unix', hosts: undefined, scheme: 'http' } as const;
  const fd = descriptorOf(socket);
  const peer = peerCredentials(fd);
  if (typeof peer === 'number')
    return { ...connection, peer: new ApiError('FORBIDDEN', 'the kernel does not say who you are') };
  const identity = (role: Role): Identity => ({
    account: defaultAccount,
    role,
    vms: undefined,
    key: undefined,
    uid: peer.uid,
    ended: undefined,
  });
  if (peer.uid === 0 || peer.uid === process.getuid?.()) return { ...connection, peer: identity('admin') };
  if (socketGroup !== undefined) {
    const groups = peerGroups(fd);
    if (peer.gid === socketGroup.gid || (typeof groups === 'object' && groups.includes(socketGroup.gid)))
      return { ...connection, peer: identity(socketGroup.role) };
  }
  const words = `uid ${peer.uid} may not use this socket; only root, the daemon's user and the group of --socket-group may`;
  return { ...connection, peer: new ApiError('FORBIDDEN', words) };
};

/** Refuses a path that is too long, or at which somebody listens; removes a socket that nobody listens on any more. ListenError. */
export const claimSocket = async (path: string): Promise<void> => {
  const { length } = new TextEncoder().encode(path);
  if (length > socketPathBytes)
    throw new ListenError(
      'API_BAD_ADDRESS',
      `the socket path "${path}" has ${length} bytes; ${socketPathBytes} are allowed; give a shorter --run directory`,
    );
  await removeStale(path);
};

const listenUnix = async (server: Server, path: string, group: ListenOptions['socketGroup']): Promise<void> => {
  await claimSocket(path);
  await started(server, () => server.listen({ path }), path);
  // Who may connect at all; who is let in is decided by what the kernel says of them.
  chmodSync(path, group === undefined ? 0o600 : 0o660);
  if (group !== undefined) chownSync(path, process.getuid?.() ?? -1, group.gid);
};

/** Removes a socket that nobody listens on any more. */
const removeStale = async (path: string): Promise<void> => {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket())
    throw new ListenError(
      'API_BAD_ADDRESS',
      `cannot listen at "${path}": something that is no socket is there; move it away`,
    );
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const probe = connect(path, () => resolve(true)).on('error', () => resolve(false));
  const isAlive = await promise;
  probe.destroy();
  if (isAlive)
    throw new ListenError(
      'API_ADDRESS_IN_USE',
      `another process listens at "${path}"; stop it, or give another directory`,
    );
  unlinkSync(path);
};

const started = async (server: Server, start: () => void, where: string): Promise<void> => {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('listening', resolve).once('error', reject);
  try {
    start();
    await promise;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EADDRINUSE')
      throw new ListenError(
        'API_ADDRESS_IN_USE',
        `another process listens on ${where}; stop it, or give another port`,
        error,
      );
    throw new ListenError('API_LISTEN_FAILED', `listening on ${where} failed: ${code ?? String(error)}`, error);
  } finally {
    server.off('listening', resolve).off('error', reject);
  }
};

const statusOfParserError: Readonly<Record<string, readonly [number, string]>> = {
  HPE_HEADER_OVERFLOW: [431, 'Request Header Fields Too Large'],
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'Request Timeout'],
};

/** What is no HTTP, too large a head, or too slow: nothing was read that could be answered otherwise. */
const refuseMalformed = (error: NodeJS.ErrnoException, socket: Socket): void => {
  const [status, title] = statusOfParserError[error.code ?? ''] ?? [400, 'Bad Request'];
  if (!socket.writable || error.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const body = JSON.stringify({ type: 'about:blank', title, status });
  socket.end(
    `HTTP/1.1 ${status} ${title}\r\nConnection: close\r\nContent-Type: application/problem+json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    () => socket.destroy(),
  );
};
