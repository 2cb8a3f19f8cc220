/** The vsock device of a VM: its vhost-user socket, and the socket by which programs of the host reach the guest. */
import { unlinkSync } from 'node:fs';
import { close } from '../sys/index.ts';
import { VsockDevice, type VsockServices } from '../virtio/index.ts';
import { ConnectionListener } from './connection-listener.ts';
import type { LinkEvent, LinkVsock } from './link-messages.ts';
import { openListeningSocket } from './listening-socket.ts';
import type { Loop, Served } from './loop.ts';
import type { LeftConnection, Succession } from './succession.ts';

/** Programs of the host, one connection after the other, and how many may wait for theirs to be taken. */
const HOST_CONNECTIONS_PER_SECOND = 2_000;
const HOST_BACKLOG = 1024;

interface VsockWayOptions {
  readonly config: LinkVsock;
  readonly loop: Loop;
  readonly succession: Succession | undefined;
  readonly allowUnsealedMemory: boolean;
  /** What guests reach in this process, by port; the other ports are unix sockets. */
  readonly services: VsockServices;
  readonly tell: (event: LinkEvent, detail: string) => void;
}

export class VsockWay {
  readonly #options: VsockWayOptions;
  readonly #listeners: { readonly listener: ConnectionListener; readonly path: string }[] = [];
  #served: (Served & { readonly device: VsockDevice }) | undefined;

  constructor(options: VsockWayOptions) {
    this.#options = options;
  }

  get isServed(): boolean {
    return this.#served !== undefined;
  }

  /** Listens. Throws, in words for people, when that is not possible. */
  listen(): void {
    const { config, tell } = this.#options;
    this.#listen(config, 8, 20, (fd) => {
      if (this.#served === undefined) return this.#connect(fd);
      close(fd);
      return tell('refused', 'a second front end: one device serves one VM at a time');
    });
    this.#listen(config.host, HOST_BACKLOG, HOST_CONNECTIONS_PER_SECOND, (fd) => {
      if (this.#served === undefined) close(fd);
      else this.#served.device.acceptHost(fd);
    });
  }

  #listen(socket: LinkVsock['host'], backlog: number, perSecond: number, onConnection: (fd: number) => void): void {
    const { loop, succession } = this.#options;
    const open = (): number => openListeningSocket(socket, backlog);
    const listenFd = succession?.listen(socket.path, open) ?? open();
    const listener = new ConnectionListener(listenFd, loop, onConnection, perSecond);
    this.#listeners.push({ listener, path: socket.path });
  }

  /** Takes up the front end that a predecessor served: it goes on, its connections are reset. */
  resume(): void {
    const { succession, config } = this.#options;
    const left = succession?.resume(config.path);
    if (left !== undefined) this.#connect(left.controlFd, left);
  }

  #connect(fd: number, left?: LeftConnection): void {
    const { config, loop, succession, services, allowUnsealedMemory, tell } = this.#options;
    const journal = left === undefined ? succession?.begin(config.path, fd) : left.journal;
    const log = (message: string): void => tell('broken', message);
    let device: VsockDevice;
    try {
      device = new VsockDevice(fd, loop, {
        guestCid: config.guestCid,
        hostPath: config.host.path,
        services,
        allowUnsealed: allowUnsealedMemory,
        journal,
        recovered: left?.recovered,
        ...(left && { refusesRedone: left.journal.takeUp() }),
        onFault: log,
        onClosed: (reason) => {
          loop.unserve(served);
          this.#served = undefined;
          journal?.end();
          tell('disconnected', reason);
        },
      });
    } catch (error) {
      log(`what a device process left can't be taken up: ${error instanceof Error ? error.message : String(error)}`);
      close(fd);
      journal?.end();
      return;
    }
    let isRedoing = left !== undefined;
    const served = {
      device,
      process: (budget: number): boolean => {
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
      suppressKicks: (suppress: boolean) => device.suppressKicks(suppress),
      nextDeadlineMs: () => device.nextDeadlineMs(),
      tick: (nowMs: number) => device.tick(nowMs),
    };
    this.#served = served;
    loop.serve(served);
    device.interrupt();
    tell(left === undefined ? 'connected' : 'resumed', '');
  }

  /** Values by name, for statistics. */
  counters(): [name: string, value: number][] {
    const device = this.#served?.device;
    if (device === undefined) return [];
    return Object.entries({ ...device.mux.counters, ...device.counters, open: device.mux.connectionCount }).map(
      ([name, value]) => [`vsock.${name}`, value],
    );
  }

  /** `handsOver`: everything is left to a successor, and only the connections of the guest end. */
  close(handsOver: boolean): void {
    if (handsOver) return;
    this.#served?.device.close('the device process ends');
    for (const { listener, path } of this.#listeners) {
      listener.close();
      this.#options.succession?.forget(path);
      try {
        unlinkSync(path);
      } catch {
        // Somebody removed it, which is what we wanted.
      }
    }
  }
}
