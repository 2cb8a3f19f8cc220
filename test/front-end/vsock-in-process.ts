/** A vsock device and our front end in one thread, with real unix sockets at the host's end. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { accept, close, EPOLLIN, Epoll, listenUnix, setNonBlocking, socketPair } from '../../src/sys/index.ts';
import { type FdWatcher, VsockDevice, type VsockDeviceOptions } from '../../src/virtio/index.ts';
import { FrontEnd } from './front-end.ts';
import { GUEST_CID, type Packet, VsockDriver, vsockFrontEnd } from './vsock-driver.ts';

/** Looks once at what it watches, as the device process's loop does. */
export class EpollWatcher implements FdWatcher {
  readonly #epoll = new Epoll(64);
  readonly #callbacks = new Map<number, () => void>();

  watch(fd: number, onReady: () => void, events = EPOLLIN): void {
    const error = this.#callbacks.has(fd) ? this.#epoll.change(fd, events) : this.#epoll.add(fd, events);
    if (error < 0) throw new Error(`watching fd ${fd} failed with errno ${-error}`);
    this.#callbacks.set(fd, onReady);
  }

  unwatch(fd: number): void {
    if (this.#callbacks.delete(fd)) this.#epoll.remove(fd);
  }

  get size(): number {
    return this.#callbacks.size;
  }

  poll(timeoutMs = 0): void {
    const count = this.#epoll.wait(timeoutMs);
    for (let i = 0; i < count; i++) this.#callbacks.get(this.#epoll.eventFd(i))?.();
  }

  close(): void {
    this.#epoll.close();
  }
}

export class VsockStage implements Disposable {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'porthole-vsock-'));
  readonly hostPath = path.join(this.directory, 'v');
  readonly watcher = new EpollWatcher();
  readonly device: VsockDevice;
  readonly driver: VsockDriver;
  readonly faults: string[] = [];
  nowMs = 0;
  closedBy: string | undefined;
  readonly #fds: number[] = [];

  constructor(options: Partial<VsockDeviceOptions> = {}, fills = true) {
    const pair = socketPair();
    if (typeof pair === 'number') throw new Error(`making a socket pair failed with errno ${-pair}`);
    setNonBlocking(pair[1], true);
    this.device = new VsockDevice(pair[1], this.watcher, {
      guestCid: GUEST_CID,
      hostPath: this.hostPath,
      nowMs: () => this.nowMs,
      onFault: (message) => this.faults.push(message),
      onClosed: (reason) => {
        this.closedBy = reason;
      },
      ...options,
    });
    const front = new FrontEnd(pair[0], { ...vsockFrontEnd, pump: () => this.pump() });
    front.handshake();
    front.start();
    this.driver = new VsockDriver(front, fills);
  }

  /** Lets the device do all that it can do now. */
  pump(): void {
    this.watcher.poll();
    for (let turns = 0; this.device.process(64) && turns < 1000; turns++);
  }

  /** Pumps, and returns the packets that came. */
  packets(): Packet[] {
    const found: Packet[] = [];
    for (let quiet = 0; quiet < 2; quiet++) {
      this.pump();
      for (let packet = this.driver.receive(); packet !== undefined; packet = this.driver.receive()) {
        found.push(packet);
        quiet = 0;
      }
    }
    return found;
  }

  /** A service of the host at `port`, on a unix socket; `accept` returns its connections, or a negative errno. */
  listen(port: number): { accept: () => number } {
    const fd = listenUnix(`${this.hostPath}_${port}`, 128);
    if (fd < 0) throw new Error(`listening failed with errno ${-fd}`);
    this.#fds.push(fd);
    return {
      accept: () => {
        const connection = accept(fd);
        if (connection >= 0) this.#fds.push(connection);
        return connection;
      },
    };
  }

  /** A program of the host that connects to the guest: its end of the connection. */
  connect(): number {
    const pair = socketPair();
    if (typeof pair === 'number') throw new Error(`making a socket pair failed with errno ${-pair}`);
    for (const fd of pair) setNonBlocking(fd, true);
    this.device.acceptHost(pair[1]);
    this.#fds.push(pair[0]);
    return pair[0];
  }

  /** Closes an end that `connect` or `accept` gave. */
  hangUp(fd: number): void {
    this.#fds.splice(this.#fds.indexOf(fd), 1);
    close(fd);
  }

  [Symbol.dispose](): void {
    this.device.close('the test is over');
    this.driver.front.close();
    for (const fd of this.#fds) close(fd);
    this.watcher.close();
    rmSync(this.directory, { recursive: true });
  }
}
