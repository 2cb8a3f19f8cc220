/** Where the metadata server of a VM is reached: sockets that lead to that VM and to no other. */
import { chmodSync, chownSync, mkdirSync, rmSync, symlinkSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:tls';
import { type Channel, type MetadataServer, SerialMux } from '../imds/index.ts';
import { makeSearchable } from '../qemu/index.ts';
import type { MetadataServerRecord } from '../records/index.ts';
import { close, listenTcp } from '../sys/index.ts';
import { vsockPeer } from '../virtio/index.ts';
import { errnoName } from '../wire/index.ts';
import type { DeviceOwner, DevicePaths } from './device-paths.ts';
import { fdOf } from './peer-of.ts';

/** Of HTTP, on vsock as on the network. */
export const metadataPort = 80;
/** Of HTTPS, on a tap device. */
export const metadataTlsPort = 443;
/** Where all clouds have it. */
export const metadataAddress = '169.254.169.254';

/** Source ports below this one take privilege in the guest (ip(7), vsock(7)). */
const FIRST_FREE_PORT = 1024;
/** Each is a process beside QEMU (ADR 13). */
const relayedConnections = 32;
/** IP's own default. */
const defaultHopLimit = 1;
/** Of TLS, under way at once: from privileged source ports, and from others. */
const handshakes = { most: 64, withinMs: 5_000 } as const;

export interface MetadataSocketsOptions {
  readonly server: MetadataServer;
  readonly paths: DevicePaths;
  readonly owner: DeviceOwner;
  readonly wish: MetadataServerRecord;
  /** The tap device of a VM that has one. */
  readonly tap: string | undefined;
  /** PEM. HTTPS on a tap device too. */
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  readonly onTrouble: (what: string) => void;
}

export class MetadataSockets implements AsyncDisposable {
  readonly #options: MetadataSocketsOptions;
  readonly #servers: Server[] = [];
  readonly #open = new Set<Socket>();
  readonly #openOnTap = new Set<Socket>();
  #serial: SerialMux | undefined;
  #taps: Server[] = [];
  #changing: Promise<void> = Promise.resolve();

  private constructor(options: MetadataSocketsOptions) {
    this.#options = options;
  }

  /** Listens at all that wait for nothing but a connection. Rejects as `listen` of `node:net`. */
  static async open(options: MetadataSocketsOptions): Promise<MetadataSockets> {
    const sockets = new MetadataSockets(options);
    const { server, paths, wish, tap } = options;
    const has = new Set(wish.ways);
    makeSearchable(paths.metadata.directory);
    try {
      if (has.has('vsock')) await sockets.#vsock();
      if (has.has('serial'))
        await sockets.#unix(paths.metadata.serial, (port) => {
          const channel = { kind: 'virtio-serial', privileged: true } as const;
          // A machine has one such port: what was there before is a QEMU that is gone.
          sockets.#serial?.destroy();
          sockets.#serial = new SerialMux(port, { onConnection: (stream) => server.accept(stream, channel) });
        });
      if (has.has('network') && tap === undefined) {
        const channel = { kind: 'tcp', privileged: false, connections: relayedConnections } as const;
        await sockets.#unix(paths.metadata.network, (socket) => server.accept(socket, channel));
      }
      if (has.has('socket')) {
        for (const [path, privileged] of [
          [paths.metadata.relay, false],
          [paths.metadata.privileged, true],
        ] as const)
          await sockets.#unix(path, (socket) => server.accept(socket, { kind: 'unix', privileged }));
      }
    } catch (error) {
      await sockets[Symbol.asyncDispose]();
      throw error;
    }
    return sockets;
  }

  /**
   * To be called before each boot, for the tap device may be another one of that name by then. Throws, in words for people,
   * where nothing can listen on it.
   */
  listenOnTap(): Promise<void> {
    const listening = this.#changing.then(() => this.#listenOnTap());
    this.#changing = listening.catch(() => {});
    return listening;
  }

  async #listenOnTap(): Promise<void> {
    const { tap: device, wish, tls, server } = this.#options;
    if (device === undefined || !wish.ways.includes('network')) return;
    // A guest that broke down said no goodbye on its connections.
    await this.#closeTaps();
    const accept = (socket: Socket): void => server.accept(socket, { kind: 'tcp', privileged: isPrivileged(socket) });
    const options = { allowHalfOpen: true, noDelay: true };
    await this.#listenOn(device, metadataPort, createServer(options, accept));
    if (tls === undefined) return;
    const secure = createTlsServer({ ...options, ...tls, handshakeTimeout: handshakes.withinMs }, accept);
    limitHandshakes(secure);
    await this.#listenOn(device, metadataTlsPort, secure);
  }

  async #listenOn(device: string, port: number, tap: Server): Promise<void> {
    const hopLimit = this.#options.wish.hopLimit ?? defaultHopLimit;
    const fd = listenTcp({ address: metadataAddress, port }, undefined, { device, hopLimit });
    if (fd < 0)
      throw new Error(
        `listening on ${metadataAddress} port ${port} of "${device}" failed: ${errnoName(-fd)}; make the device, and have nothing else listen on that port of all addresses`,
      );
    tap.on('connection', (socket: Socket) => keep(socket, this.#openOnTap));
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    tap.once('error', reject);
    try {
      tap.listen({ fd }, resolve);
      await promise;
    } catch (error) {
      close(fd);
      throw error;
    }
    tap.off('error', reject);
    tap.on('error', (error) => this.#options.onTrouble(`the metadata server on "${device}": ${error.message}`));
    this.#taps.push(tap);
  }

  async #closeTaps(): Promise<void> {
    await Promise.all(this.#taps.splice(0).map((tap) => closed(tap, this.#openOnTap)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#changing;
    await Promise.all([...this.#servers.map((server) => closed(server, this.#open)), this.#closeTaps()]);
  }

  /** The device process connects to a name in its own directory. What it may write there must not be what we change. */
  async #vsock(): Promise<void> {
    const { server, paths } = this.#options;
    await this.#unix(paths.metadata.vsock, (socket) => server.accept(socket, channelOf(socket)));
    const name = `${paths.vsock}_${metadataPort}`;
    mkdirSync(dirname(name), { recursive: true });
    rmSync(name, { force: true });
    symlinkSync(paths.metadata.vsock, name);
  }

  /** Below a directory that nobody else may write to. For who serves the VM alone. */
  async #unix(path: string, onConnection: (socket: Socket) => void): Promise<void> {
    const { owner, onTrouble } = this.#options;
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      keep(socket, this.#open);
      onConnection(socket);
    });
    server.on('error', (error) => onTrouble(`the metadata server at "${path}": ${error.message}`));
    rmSync(path, { force: true });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once('error', reject);
    const before = process.umask(0o177);
    try {
      server.listen(path, resolve);
    } finally {
      process.umask(before);
    }
    await promise;
    server.off('error', reject);
    this.#servers.push(server);
    const { uid, gid } = owner;
    if (uid !== undefined) chownSync(path, uid, gid ?? uid);
    else if (gid !== undefined) chownSync(path, -1, gid);
    if (gid !== undefined) chmodSync(path, 0o660);
  }
}

/** Of a connection of the guest's vsock: the device process tells which port it is from. */
const channelOf = (socket: Socket): Channel => {
  const fd = fdOf(socket);
  const port = fd === undefined ? undefined : vsockPeer(fd)?.sourcePort;
  return { kind: 'vsock', privileged: port !== undefined && port < FIRST_FREE_PORT };
};

const isPrivileged = ({ remotePort = FIRST_FREE_PORT }: Socket): boolean => remotePort < FIRST_FREE_PORT;

/** Those of privileged ports are counted by themselves: what any program in the guest begins must not shut out its agent. */
const limitHandshakes = (server: TlsServer): void => {
  const underWay = new Map([true, false].map((privileged) => [privileged, new Set<string>()]));
  const peerOf = ({ remoteAddress, remotePort }: Socket): string => `${remoteAddress} ${remotePort}`;
  server.prependListener('connection', (socket: Socket) => {
    const those = underWay.get(isPrivileged(socket))!;
    if (those.size >= handshakes.most) return void socket.destroy();
    const peer = peerOf(socket);
    those.add(peer);
    socket.once('close', () => those.delete(peer));
  });
  server.prependListener('secureConnection', (socket) => underWay.get(isPrivileged(socket))!.delete(peerOf(socket)));
};

const keep = (socket: Socket, open: Set<Socket>): void => {
  open.add(socket);
  socket.once('close', () => open.delete(socket));
};

/** Ends its connections, too: it closes when the last of them has. */
const closed = (server: Server, connections: ReadonlySet<Socket>): Promise<void> => {
  const { promise, resolve } = Promise.withResolvers<void>();
  server.close(() => resolve());
  for (const socket of connections) socket.destroy();
  return promise;
};
