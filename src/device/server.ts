/** What a device process serves: vhost-user sockets and mounts, all on one replica of one VM's tree. */
import { randomUUID } from 'node:crypto';
import { rmSync, unlinkSync } from 'node:fs';
import { DevFuse, FuseSession } from '../fuse/index.ts';
import { close, EPOLLIN, EPOLLOUT, setNonBlocking } from '../sys/index.ts';
import { type Delta, Replica, TreeFileSystem, type Way, ways } from '../tree/index.ts';
import { VirtioFsDevice } from '../virtio/index.ts';
import { AuditRing } from './audit-ring.ts';
import { ConnectionListener } from './connection-listener.ts';
import { HostLink } from './host-link.ts';
import {
  LINK_PROTOCOL,
  type LinkConfig,
  type LinkEvent,
  type LinkMount,
  type LinkTarget,
  type LinkVhostUser,
  type ToHost,
} from './link-messages.ts';
import { openListeningSocket } from './listening-socket.ts';
import { Loop, type Served } from './loop.ts';

/** The host daemon takes no longer words of us. */
const DETAIL_CHARACTERS = 4000;
const EVENTS_PER_SECOND = 10;
const clock = { wallMs: () => performance.timeOrigin + performance.now(), monotonicMs: () => performance.now() };

/** A way in that is open: what the loop drives, and how it ends. */
interface Open extends Served {
  close(): void;
  counters(): Iterable<readonly [name: string, value: number]>;
}

/** Where host daemons are met: one that is connected already, with whose end everything ends, or one after another. */
export type LinkPlace = { readonly fd: number } | { readonly path: string };

/** Has the loop wake when something of the link is due. */
const linkTimer = (link: HostLink): Served => ({
  process: () => false,
  servedCount: 0,
  suppressKicks: () => false,
  nextDeadlineMs: () => link.nextDeadlineMs(),
  tick: link.tick,
});

class DeviceServer {
  readonly #place: LinkPlace;
  readonly #replica = new Replica();
  readonly #link: HostLink;
  readonly #loop = new Loop();
  /** By which the host daemon knows the mutations of this process again. */
  readonly #holder = randomUUID();
  #config: LinkConfig | undefined;
  readonly #listening = new Map<ConnectionListener, LinkVhostUser>();
  readonly #served = new Map<string, Open>();
  /** What every daemon is told of each target: that it can be used, or why not. */
  readonly #told = new Map<string, ToHost>();
  #linkListener: ConnectionListener | undefined;
  #ring: AuditRing | undefined;
  #opened = false;
  #tellingSecond = 0;
  #toldInSecond = 0;

  constructor(place: LinkPlace) {
    this.#place = place;
    this.#link = new HostLink({
      config: (config) => this.#configured(config),
      delta: (delta) => this.#applied(delta),
      askStatistics: (id) => this.#link.send({ type: 'statistics', id, counters: this.#statistics() }),
      shutdown: () => this.#loop.stop(),
      ended: (fd) => this.#daemonGone(fd),
      wantWritable: (wanted) => this.#watchLink(wanted ? EPOLLIN | EPOLLOUT : EPOLLIN),
    });
  }

  async run(): Promise<void> {
    if ('fd' in this.#place) this.#attach(this.#place.fd);
    else this.#listenForDaemons(this.#place.path);
    this.#loop.beforePoll = () => this.#beforePoll();
    this.#loop.serve(linkTimer(this.#link));
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => this.#loop.stop());
    // It has no terminal, and a whole service may be sent what its daemon should do with its log.
    process.on('SIGHUP', () => {});
    try {
      await this.#loop.run();
    } finally {
      this.#close();
    }
  }

  // --- host daemons ---

  #listenForDaemons(path: string): void {
    const listenFd = openListeningSocket({ path, mode: 0o600 });
    this.#linkListener = new ConnectionListener(listenFd, this.#loop, (fd) => this.#attach(fd));
  }

  #attach(fd: number): void {
    setNonBlocking(fd, true);
    this.#link.attach(fd);
    this.#watchLink(EPOLLIN);
    this.#link.send({ type: 'hello', protocol: LINK_PROTOCOL, holder: this.#holder, pid: process.pid });
  }

  #watchLink(events: number): void {
    const { fd } = this.#link;
    if (fd !== undefined) this.#loop.watch(fd, this.#link.serve, events);
  }

  #configured(config: LinkConfig): void {
    if (this.#config === undefined) {
      this.#config = config;
      return;
    }
    // The next daemon. What is served was opened for the one before, and goes on.
    for (const message of this.#told.values()) this.#link.send(message);
    for (const path of this.#served.keys())
      if (this.#told.get(path)?.type === 'ready') this.#tell({ kind: 'vhost-user', path }, 'connected', '');
  }

  #applied(delta: Delta): void {
    this.#replica.apply(delta);
    this.#link.send({ type: 'applied', revision: delta.revision });
    if (!delta.full) return;
    this.#replica.cutOffSinceMs = undefined;
    this.#open();
    this.#link.resume();
  }

  #daemonGone(fd: number): void {
    this.#loop.unwatch(fd);
    this.#replica.cutOffSinceMs = performance.now();
    if ('path' in this.#place) return;
    this.#link.refuseAll();
    this.#loop.stop();
  }

  /** After what was served is answered: the daemon is not woken before. */
  #beforePoll(): void {
    const ring = this.#ring;
    if (ring?.takeDoorbell() === true && !this.#link.send({ type: 'auditWaiting' })) ring.returnDoorbell();
    this.#link.flush();
  }

  #open(): void {
    const config = this.#config;
    if (config === undefined || this.#opened) return;
    this.#opened = true;
    if (config.auditRing !== undefined) this.#ring = new AuditRing(config.auditRing);
    this.#loop.spinMs = config.options.spinMicros / 1000;
    for (const socket of config.vhostUser)
      this.#attempt({ kind: 'vhost-user', path: socket.path }, () => this.#listen(socket));
    for (const mount of config.mounts) this.#attempt({ kind: 'mount', path: mount.path }, () => this.#mount(mount));
  }

  #attempt(target: LinkTarget, open: () => void): void {
    try {
      open();
      this.#tellOf({ type: 'ready', target });
    } catch (error) {
      this.#tellOf({ type: 'failed', target, reason: error instanceof Error ? error.message : String(error) });
    }
  }

  #tellOf(message: Extract<ToHost, { target: LinkTarget; type: 'ready' | 'failed' }>): void {
    this.#told.set(message.target.path, message);
    this.#link.send(message);
  }

  /** A guest can break its queues as often as it likes: people are told of a few a second. */
  #tell(target: LinkTarget, event: LinkEvent, detail: string): void {
    const second = Math.floor(performance.now() / 1000);
    if (second !== this.#tellingSecond) this.#toldInSecond = 0;
    this.#tellingSecond = second;
    if (event === 'broken' && ++this.#toldInSecond > EVENTS_PER_SECOND) return;
    this.#link.send({ type: 'event', target, event, detail: detail.slice(0, DETAIL_CHARACTERS) });
  }

  // --- vhost-user ---

  #listen(socket: LinkVhostUser): void {
    const target: LinkTarget = { kind: 'vhost-user', path: socket.path };
    const listener = new ConnectionListener(openListeningSocket(socket), this.#loop, (fd) => {
      if (!this.#served.has(socket.path)) return this.#connect(fd, target);
      close(fd);
      return this.#tell(target, 'refused', 'a second front end: one device serves one VM at a time');
    });
    this.#listening.set(listener, socket);
  }

  #connect(fd: number, target: LinkTarget): void {
    const fileSystem = this.#fileSystem(ways.virtiofs);
    const log = (message: string): void => this.#tell(target, 'broken', message);
    const session = new FuseSession(fileSystem, { transport: 'virtiofs', clock, log });
    const device = new VirtioFsDevice(fd, session, this.#loop, {
      allowUnsealed: this.#config!.options.allowUnsealedMemory,
      onFault: log,
      onClosed: (reason) => {
        this.#loop.unserve(served);
        this.#served.delete(target.path);
        fileSystem.close();
        this.#tell(target, 'disconnected', reason);
      },
    });
    const served: Open = {
      process: (budget) => device.process(budget),
      get servedCount() {
        return device.servedCount;
      },
      suppressKicks: (suppress) => device.suppressKicks(suppress),
      nextDeadlineMs: () => session.nextDeadlineMs(),
      tick: (nowMs) => session.tick(nowMs),
      close: () => device.close('the device process ends'),
      counters: () => [...session.counters(), ...Object.entries(device.counters)],
    };
    this.#served.set(target.path, served);
    this.#loop.serve(served);
    this.#tell(target, 'connected', '');
  }

  // --- mounts ---

  #mount(mount: LinkMount): void {
    const target: LinkTarget = { kind: 'mount', path: mount.path };
    const fileSystem = this.#fileSystem(ways.mount);
    // A guest could point links at any file of this machine.
    const followLinks = this.#config!.vhostUser.length === 0;
    const transport = DevFuse.mount(mount.path, { followLinks });
    const log = (message: string): void => this.#tell(target, 'broken', message);
    const session = new FuseSession(fileSystem, { transport: 'dev-fuse', notifier: transport, clock, log });
    transport.attach(session);
    const ended = (reason: string): void => {
      this.#loop.unwatch(transport.fd);
      this.#loop.unserve(served);
      this.#served.delete(target.path);
      transport.close();
      fileSystem.close();
      this.#tellOf({ type: 'failed', target, reason });
    };
    const served: Open = {
      process: (budget) => {
        const more = transport.process(budget);
        if (transport.ended !== undefined) ended(transport.ended);
        return more;
      },
      get servedCount() {
        return transport.served;
      },
      suppressKicks: () => false,
      nextDeadlineMs: () => session.nextDeadlineMs(),
      tick: (nowMs) => session.tick(nowMs),
      close: () => transport.close(),
      counters: () => session.counters(),
    };
    this.#served.set(target.path, served);
    this.#loop.watch(transport.fd, () => {});
    this.#loop.serve(served);
  }

  #fileSystem(way: Way): TreeFileSystem {
    return new TreeFileSystem({
      replica: this.#replica,
      way,
      upstream: this.#link.upstream(way.name === 'virtiofs' ? 'virtiofs' : 'mount'),
      audit: this.#ring?.record ?? (() => true),
      vm: this.#config!.vm,
      clock,
    });
  }

  #statistics(): Record<string, number> {
    const counters: Record<string, number> = {};
    for (const served of this.#served.values())
      for (const [name, value] of served.counters()) counters[name] = (counters[name] ?? 0) + value;
    return counters;
  }

  /** Unmounts, hangs up, and removes the sockets. */
  #close(): void {
    for (const served of [...this.#served.values()]) served.close();
    for (const [listener, socket] of this.#listening) {
      listener.close();
      try {
        unlinkSync(socket.path);
      } catch {
        // Somebody removed it, which is what we wanted.
      }
    }
    if (this.#linkListener !== undefined && 'path' in this.#place) {
      this.#linkListener.close();
      rmSync(this.#place.path, { force: true });
    }
    this.#link.flush();
    this.#ring?.close();
  }
}

/** Serves until a host daemon says that it is to end, or, at a descriptor, until the host daemon is gone. */
export async function serveDevice(place: LinkPlace): Promise<void> {
  await new DeviceServer(place).run();
}
