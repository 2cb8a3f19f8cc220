/** What a device process serves: vhost-user sockets, mounts and 9P clients, all on one replica of one VM's tree. */
import { randomUUID } from 'node:crypto';
import { rmSync, unlinkSync } from 'node:fs';
import { DevFuse, FuseSession } from '../fuse/index.ts';
import { buildOf } from '../parts/index.ts';
import { close, EPOLLIN, EPOLLOUT, setNonBlocking } from '../sys/index.ts';
import { type Delta, Replica, TreeFileSystem, type Upstream, type Way, ways } from '../tree/index.ts';
import { VirtioFsDevice, type VsockService } from '../virtio/index.ts';
import { AuditRing } from './audit-ring.ts';
import { ConnectionListener } from './connection-listener.ts';
import { HostLink } from './host-link.ts';
import { JOURNAL_VERSION } from './journal-version.ts';
import {
  LINK_PROTOCOL,
  type LinkConfig,
  type LinkEvent,
  type LinkMount,
  type LinkNinep,
  type LinkTarget,
  type LinkVhostUser,
  type LinkVsock,
  type ToHost,
} from './link-messages.ts';
import { openListeningSocket } from './listening-socket.ts';
import { Loop, type Served } from './loop.ts';
import { BootToken } from './ninep-admission.ts';
import type { NinepPlace } from './ninep-clients.ts';
import { NinepListener } from './ninep-listener.ts';
import { NinepVsock } from './ninep-vsock.ts';
import { type LeftConnection, Succession, type TargetJournal } from './succession.ts';
import { VsockWay } from './vsock-way.ts';

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

function removeSocket(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody removed it, which is what we wanted.
  }
}

class DeviceServer {
  readonly #place: LinkPlace;
  /** Read before anything is served: the sources of a checkout may be others later. */
  readonly #build = buildOf('device');
  readonly #replica = new Replica();
  readonly #link: HostLink;
  readonly #loop = new Loop();
  /** By which the host daemon knows the mutations of this process, or of its line, again. */
  readonly #holder: string;
  readonly #succession: Succession | undefined;
  /** It ends for a successor, to which all that is kept is left. */
  #handsOver = false;
  /** What goes on once the tree is where it stands now. */
  #resuming: (() => void)[] = [];
  #config: LinkConfig | undefined;
  readonly #listening = new Map<ConnectionListener, LinkVhostUser>();
  readonly #served = new Map<string, Open>();
  readonly #ninep: (NinepListener | NinepVsock)[] = [];
  /** By the path of the vhost-user socket. */
  readonly #vsocks = new Map<string, VsockWay>();
  /** What guests reach in this process over vsock, by port. */
  readonly #vsockServices = new Map<number, VsockService>();
  readonly #bootToken = new BootToken((hash) => this.#tokenUsed(hash));
  /** The daemon of now has told of the token: one of the version before knows nothing of it. */
  #knowsToken = false;
  /** What every daemon is told of each target: that it can be used, or why not. */
  readonly #told = new Map<string, ToHost>();
  #linkListener: ConnectionListener | undefined;
  #ring: AuditRing | undefined;
  #opened = false;
  #tellingSecond = 0;
  #toldInSecond = 0;
  /** Commits were applied of which the daemon was not told: it is, once for all that came together. */
  #tellsApplied = false;

  constructor(place: LinkPlace, keeperPath: string | undefined) {
    this.#place = place;
    const succession = keeperPath === undefined ? undefined : new Succession(keeperPath);
    this.#succession = succession;
    this.#holder = succession?.process.holder ?? randomUUID();
    const events = {
      config: (config: LinkConfig) => this.#configured(config),
      delta: (delta: Delta) => this.#applied(delta),
      askStatistics: (id: number) => this.#link.send({ type: 'statistics', id, counters: this.#statistics() }),
      shutdown: () => {
        this.#handsOver = false;
        this.#loop.stop();
      },
      handOver: () => this.#handOver(),
      bootToken: (hash: Uint8Array | undefined) => {
        this.#knowsToken = true;
        this.#bootToken.become(hash);
      },
      ended: (fd: number) => this.#daemonGone(fd),
      wantWritable: (wanted: boolean) => this.#watchLink(wanted ? EPOLLIN | EPOLLOUT : EPOLLIN),
    };
    this.#link = new HostLink(events, succession?.process.nextSequence);
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
    this.#knowsToken = false;
    this.#watchLink(EPOLLIN);
    this.#link.send({
      type: 'hello',
      protocol: LINK_PROTOCOL,
      holder: this.#holder,
      pid: process.pid,
      build: this.#build,
      journal: JOURNAL_VERSION,
    });
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
    this.#tellsApplied = true;
    if (!delta.full) return this.#resume();
    this.#replica.cutOffSinceMs = undefined;
    this.#open();
    this.#link.resume();
    this.#resume();
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
    if (this.#tellsApplied) this.#link.send({ type: 'applied', revision: this.#replica.snapshot.revision });
    this.#tellsApplied = false;
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
    for (const vsock of config.vsock ?? []) this.#vsocks.set(vsock.path, this.#vsock(vsock));
    if (this.#succession !== undefined) this.#succeed(config, this.#succession);
    for (const socket of config.vhostUser)
      this.#attempt({ kind: 'vhost-user', path: socket.path }, () => this.#listen(socket));
    for (const [path, vsock] of this.#vsocks) this.#attempt({ kind: 'vsock', path }, () => vsock.listen());
    for (const mount of config.mounts) this.#attempt({ kind: 'mount', path: mount.path }, () => this.#mount(mount));
    for (const socket of config.ninep ?? [])
      this.#attempt({ kind: '9p', path: socket.path }, () => this.#serveNinep(socket));
  }

  // --- what outlives this process ---

  /** Without a keeper it waits for one: a successor would find nothing. */
  #handOver(): void {
    const client = this.#succession?.client;
    client?.check();
    this.#handsOver = client !== undefined;
    if (client?.isConnected !== false) this.#loop.stop();
  }

  /** Takes up what a predecessor has left with the keeper. */
  #succeed(config: LinkConfig, succession: Succession): void {
    const target: LinkTarget = { kind: 'vhost-user', path: config.vhostUser[0]?.path ?? '' };
    succession.log = (what) => this.#tell(target, 'broken', what);
    const { client } = succession;
    const watch = (): void => this.#loop.watch(client.fd, () => client.check());
    if (client.isConnected) watch();
    client.onChange = (isThere) => {
      if (isThere) watch();
      else this.#loop.unwatch(client.fd);
      if (isThere && this.#handsOver) this.#loop.stop();
      this.#tell(target, isThere ? 'kept' : 'unkept', isThere ? 'the keeper answers' : 'the keeper is gone');
    };
    this.#loop.serve({
      process: () => false,
      servedCount: 0,
      suppressKicks: () => false,
      nextDeadlineMs: () => client.nextDeadlineMs(),
      tick: (nowMs) => client.tick(nowMs),
    });
    for (const { path } of config.vhostUser) {
      const left = succession.resume(path);
      if (left !== undefined) this.#connect(left.controlFd, { kind: 'vhost-user', path }, left);
    }
    for (const vsock of this.#vsocks.values()) vsock.resume();
    succession.dropRest();
  }

  #resume(): void {
    if (this.#resuming.length === 0 || this.#replica.snapshot.revision < (this.#config?.resumeAt ?? 0)) return;
    for (const resume of this.#resuming.splice(0)) resume();
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
    if ((event === 'broken' || event === 'refused') && ++this.#toldInSecond > EVENTS_PER_SECOND) return;
    this.#link.send({ type: 'event', target, event, detail: detail.slice(0, DETAIL_CHARACTERS) });
  }

  // --- vhost-user ---

  #listen(socket: LinkVhostUser): void {
    const target: LinkTarget = { kind: 'vhost-user', path: socket.path };
    const open = (): number => openListeningSocket(socket);
    const listenFd = this.#succession?.listen(socket.path, open) ?? open();
    const listener = new ConnectionListener(listenFd, this.#loop, (fd) => {
      if (!this.#served.has(socket.path)) return this.#connect(fd, target);
      close(fd);
      return this.#tell(target, 'refused', 'a second front end: one device serves one VM at a time');
    });
    this.#listening.set(listener, socket);
  }

  #connect(fd: number, target: LinkTarget, left?: LeftConnection): void {
    const journal = left === undefined ? this.#succession?.begin(target.path, fd) : left.journal;
    const upstream = this.#link.upstream('virtiofs');
    const fileSystem = this.#fileSystem(ways.virtiofs, journal?.connection.log.upstream(upstream) ?? upstream, journal);
    const log = (message: string): void => this.#tell(target, 'broken', message);
    const session = new FuseSession(fileSystem, {
      transport: 'virtiofs',
      clock,
      log,
      ...(journal && { journal: journal.connection }),
    });
    const onClosed = (reason: string): void => {
      this.#loop.unserve(served);
      this.#served.delete(target.path);
      fileSystem.close();
      journal?.end();
      this.#tell(target, 'disconnected', reason);
    };
    let device: VirtioFsDevice;
    try {
      device = new VirtioFsDevice(fd, session, this.#loop, {
        allowUnsealed: this.#config!.options.allowUnsealedMemory,
        onFault: log,
        onClosed,
        ...(journal && { journal }),
        ...(left?.recovered && { recovered: left.recovered }),
        ...(left && { refusesRedone: left.journal.takeUp() }),
      });
    } catch (error) {
      log(`what a device process left can't be taken up: ${error instanceof Error ? error.message : String(error)}`);
      close(fd);
      fileSystem.close();
      journal?.end();
      return;
    }
    let isRedoing = left !== undefined;
    const served: Open = {
      process: (budget) => {
        const hasMore = device.process(budget);
        if (isRedoing && !device.hasRedone) {
          isRedoing = false;
          journal?.settle();
        }
        return hasMore;
      },
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
    if (journal !== undefined) journal.connection.device = device;
    if (left !== undefined && journal !== undefined)
      session.restore(journal.connection.recover(fileSystem, this.#replica));
    const start = (): void => {
      // Nobody else serves on this path, and nothing is kept of what it had.
      fileSystem.dropUnlinked();
      if (!device.isClosed) this.#loop.serve(served);
      device.interrupt();
    };
    if (left === undefined) start();
    else this.#resuming.push(start);
    this.#tell(target, left === undefined ? 'connected' : 'resumed', '');
  }

  #vsock(config: LinkVsock): VsockWay {
    return new VsockWay({
      config,
      loop: this.#loop,
      succession: this.#succession,
      allowUnsealedMemory: this.#config!.options.allowUnsealedMemory,
      services: this.#vsockServices,
      tell: (event, detail) => this.#tell({ kind: 'vsock', path: config.path }, event, detail),
    });
  }

  // --- mounts ---

  #mount(mount: LinkMount): void {
    const target: LinkTarget = { kind: 'mount', path: mount.path };
    const fileSystem = this.#fileSystem(ways.mount, this.#link.upstream('mount'));
    // A guest could point links at any file of this machine.
    const { vhostUser, ninep = [] } = this.#config!;
    const followLinks = vhostUser.length + ninep.length === 0;
    const transport = DevFuse.mount(mount.path, { followLinks, onBusy: () => this.#loop.yieldToNode() });
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

  // --- 9P ---

  #serveNinep(socket: LinkNinep): void {
    const target: LinkTarget = { kind: '9p', path: socket.path };
    const place: NinepPlace = {
      fileSystem: () => this.#fileSystem(ways.ninep, this.#link.upstream('ninep')),
      isUser: (uid) => this.#replica.policy.knows(uid),
      uidOfMount: () => this.#replica.policy.spec.ninepMountUid,
      token: this.#bootToken,
      onEvent: (event, detail) => this.#tell(target, event, detail),
    };
    if (!('vsockPort' in socket)) {
      this.#ninep.push(new NinepListener({ ...place, socket, loop: this.#loop }));
      return;
    }
    const service = new NinepVsock(place, this.#loop);
    this.#vsockServices.set(socket.vsockPort, service.accept);
    this.#ninep.push(service);
  }

  #tokenUsed(hash: Uint8Array): void {
    if (this.#knowsToken) this.#link.send({ type: 'tokenUsed', hash });
  }

  #fileSystem(way: Way, upstream: Upstream, journal?: TargetJournal): TreeFileSystem {
    return new TreeFileSystem({
      replica: this.#replica,
      way,
      upstream,
      audit: this.#ring?.record ?? (() => true),
      vm: this.#config!.vm,
      clock,
      ...(journal && { journal: journal.connection }),
    });
  }

  #isKept(path: string): boolean {
    return this.#config?.vhostUser.some((socket) => socket.path === path) === true;
  }

  #statistics(): Record<string, number> {
    const counters: Record<string, number> = {};
    for (const served of [...this.#served.values(), ...this.#vsocks.values(), ...this.#ninep])
      for (const [name, value] of served.counters()) counters[name] = (counters[name] ?? 0) + value;
    return counters;
  }

  /** Unmounts, hangs up, and removes the sockets. */
  #close(): void {
    for (const [path, served] of [...this.#served]) if (!this.#handsOver || !this.#isKept(path)) served.close();
    for (const [listener, socket] of this.#handsOver ? [] : this.#listening) {
      listener.close();
      this.#succession?.forget(socket.path);
      removeSocket(socket.path);
    }
    for (const ninep of this.#ninep) ninep.close();
    for (const vsock of this.#vsocks.values()) vsock.close(this.#handsOver);
    if (this.#linkListener !== undefined && 'path' in this.#place) {
      this.#linkListener.close();
      rmSync(this.#place.path, { force: true });
    }
    this.#link.flush();
    this.#ring?.close();
  }
}

/**
 * Serves until a host daemon says that it is to end, or, at a descriptor, until the host daemon is gone. With a keeper it takes
 * up what a predecessor has left there.
 */
export async function serveDevice(place: LinkPlace, keeperPath?: string): Promise<void> {
  await new DeviceServer(place, keeperPath).run();
}
