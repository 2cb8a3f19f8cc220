/**
 * The socket device (virtio 1.2 §5.10) as a vhost-user back end: carries packets between its queues and the connections.
 * Queue 0 brings packets to the guest, queue 1 from it; the event queue is the monitor's. The configuration space is ours.
 */
import { close } from '../../sys/index.ts';
import { BackEnd, type FdWatcher } from '../back-end.ts';
import type { BackEndJournal, Recovered } from '../journal.ts';
import { POP_BROKEN, POP_CHAIN, POP_EMPTY, type Virtqueue } from '../virtqueue.ts';
import { Config, HEADER_BYTES, LEAST_GUEST_CID, MAX_DATA_BYTES } from './abi.ts';
import { HostHandshake } from './host-handshake.ts';
import { type PendingEnd, VsockMux } from './mux.ts';
import type { VsockServices } from './service.ts';
import { ServiceEnd } from './service-end.ts';
import { MAX_CONNECTIONS } from './slots.ts';
import { connectToService, UnixEnd } from './unix-end.ts';

const RX = 0;
const TX = 1;
const QUEUES = 2;
/** A turn is measured in packets; so many bytes more count as one more. */
const BYTES_PER_UNIT = 16_384;
/** How long a program of the host may take to say which port it wants. */
const HANDSHAKE_MS = 10_000;
/** The one above stands for any (VMADDR_CID_ANY). */
const MAX_CID = 0xffff_fffe;

/** Whether a guest may have this CID. */
export const isGuestCid = (cid: number): boolean =>
  Number.isSafeInteger(cid) && cid >= LEAST_GUEST_CID && cid <= MAX_CID;

/** What outlives the process, for a device of this kind. */
export interface VsockJournal extends BackEndJournal {
  /** `SLOTS_BYTES` bytes that are zero at first. */
  connections(): Uint32Array;
}

export interface VsockDeviceOptions {
  readonly guestCid: number;
  /** Connections of the guest to port P go to the unix socket `<hostPath>_P`, where no service of ours has the port. */
  readonly hostPath?: string | undefined;
  readonly services?: VsockServices;
  readonly allowUnsealed?: boolean;
  /** Told once when the connection of the front end has ended; the device is of no use then. */
  readonly onClosed?: (reason: string) => void;
  readonly onFault?: (message: string) => void;
  readonly journal?: VsockJournal | undefined;
  readonly recovered?: Recovered | undefined;
  /** Drops what a predecessor had begun, rather than doing it again. */
  readonly refusesRedone?: boolean;
  readonly nowMs?: () => number;
}

/** One device on one control connection. Never throws for what the guest, the front end or a program of the host does. */
export class VsockDevice {
  readonly counters = { badChains: 0, brokenQueues: 0, hostRefused: 0 };
  readonly mux: VsockMux;
  readonly #backEnd: BackEnd;
  readonly #watcher: FdWatcher;
  readonly #options: VsockDeviceOptions;
  readonly #nowMs: () => number;
  readonly #packet: Uint8Array;
  readonly #view: DataView;
  readonly #rx: Virtqueue;
  readonly #tx: Virtqueue;
  readonly #handshakes = new Set<HostHandshake>();
  #servedCount = 0;
  /** Packets wait for the guest to give buffers. */
  #awaitsBuffers = false;
  #nextHandshakeMs = Number.POSITIVE_INFINITY;

  /**
   * Takes `controlFd` over: an accepted, non-blocking control connection. `watcher` is told which fds to poll. Throws when what
   * a predecessor has left can't be taken up.
   */
  constructor(controlFd: number, watcher: FdWatcher, options: VsockDeviceOptions) {
    if (!isGuestCid(options.guestCid)) throw new RangeError(`${options.guestCid} is no CID of a guest`);
    const buffer = new ArrayBuffer(HEADER_BYTES + MAX_DATA_BYTES);
    this.#packet = new Uint8Array(buffer);
    this.#view = new DataView(buffer);
    this.#watcher = watcher;
    this.#options = options;
    this.#nowMs = options.nowMs ?? (() => performance.now());
    this.mux = new VsockMux({
      guestCid: options.guestCid,
      open: (port, guestPort, mux) => this.#open(port, guestPort, mux),
      nowMs: this.#nowMs,
      slots: options.journal?.connections(),
      ...(options.onFault && { onFault: options.onFault }),
    });
    const config = new Uint8Array(Config.sizeBytes);
    Config.guestCid.set(new DataView(config.buffer), 0, options.guestCid);
    this.#backEnd = new BackEnd(
      controlFd,
      { queues: QUEUES, allowUnsealed: options.allowUnsealed ?? false, config, faultReplyBytes: 0 },
      watcher,
      {
        queueRuns: (queue, forgets) => this.#queueRuns(queue, forgets),
        queueStops: (queue) => queue.notify(),
        closed: (reason) => {
          this.#end(reason);
          options.onClosed?.(reason);
        },
      },
      this.#packet,
      new Uint32Array(buffer),
      options.journal,
      options.recovered,
    );
    this.#rx = this.#backEnd.queues[RX]!;
    this.#tx = this.#backEnd.queues[TX]!;
  }

  get isClosed(): boolean {
    return this.#backEnd.isClosed;
  }

  get brokenBy(): string | undefined {
    return this.#rx.brokenBy ?? this.#tx.brokenBy;
  }

  /** Interrupts the driver of every queue: a predecessor may have shown it something and not come to tell. */
  interrupt(): void {
    this.#rx.interrupt();
    this.#tx.interrupt();
  }

  /** Whether a predecessor has begun what is still to be done. */
  get hasRedone(): boolean {
    return this.#tx.hasRedone;
  }

  close(reason: string): void {
    this.#backEnd.close(reason);
  }

  /** Answers control messages that are there. The watcher's callback does this too. */
  serveControl(): void {
    this.#backEnd.serveControl();
  }

  #end(reason: string): void {
    this.mux.reset(reason);
    for (const handshake of [...this.#handshakes]) handshake.end();
  }

  #queueRuns(queue: Virtqueue, forgets: boolean): void {
    if (forgets) this.mux.reset('the guest began anew');
    this.#awaitsBuffers = false;
    queue.suppressKicks(queue === this.#rx);
  }

  // --- serving ---

  /** Serves up to `budget` packets, fewer of them when they are long, both ways in turns. Returns whether more is waiting. */
  process(budget: number): boolean {
    if (this.#backEnd.isClosed) return false;
    let left = budget;
    let isStuck = false;
    while (left > 0 && !isStuck) {
      const before = left;
      left -= this.#fromGuest(Math.min(left, 8));
      if (left > 0) left -= this.#toGuest(left);
      isStuck = left === before;
    }
    this.#tx.notify();
    this.#rx.notify();
    this.mux.shown();
    return (
      (this.#tx.hasMore() && this.mux.mayReceive) || (!this.#awaitsBuffers && this.#rx.isRunning && this.mux.prepare())
    );
  }

  /** Takes packets until they have cost `most`; returns what they cost. */
  #fromGuest(most: number): number {
    const tx = this.#tx;
    let cost = 0;
    while (cost < most && this.mux.mayReceive) {
      const popped = tx.pop();
      if (popped === POP_EMPTY) break;
      if (popped === POP_BROKEN) {
        this.#break(tx);
        break;
      }
      this.#servedCount++;
      if (popped !== POP_CHAIN) this.counters.badChains++;
      else if (this.#options.refusesRedone !== true || !tx.isRedone)
        this.mux.receive(this.#packet, this.#view, tx.requestBytes);
      tx.push(tx.head, 0);
      cost += 1 + Math.floor(tx.requestBytes / BYTES_PER_UNIT);
    }
    return cost;
  }

  /** Gives packets until they have cost `most`; returns what they cost. */
  #toGuest(most: number): number {
    const { mux } = this;
    const rx = this.#rx;
    let cost = 0;
    while (cost < most && rx.isRunning && mux.prepare()) {
      const popped = rx.pop();
      if (popped === POP_EMPTY) {
        // From now on the guest kicks when it gives buffers, and what it gave before is seen here.
        this.#awaitsBuffers = true;
        if (!rx.suppressKicks(false)) break;
        continue;
      }
      if (popped === POP_BROKEN) {
        this.#break(rx);
        break;
      }
      this.#awaitsBuffers = false;
      this.#servedCount++;
      cost++;
      const { writable } = rx;
      if (popped !== POP_CHAIN || writable.sizeBytes <= HEADER_BYTES || rx.requestBytes > 0) {
        this.counters.badChains++;
        rx.push(rx.head, 0);
        continue;
      }
      const bytes = mux.compose(writable.sizeBytes);
      const { packet } = mux;
      if (rx.scatter(writable, packet.head, packet.headBytes, packet.payload) !== bytes) {
        rx.break('the memory of a packet is gone');
        this.#break(rx);
        break;
      }
      rx.push(rx.head, bytes);
      cost += Math.floor(bytes / BYTES_PER_UNIT);
    }
    return cost;
  }

  #break(queue: Virtqueue): void {
    this.counters.brokenQueues++;
    this.#options.onFault?.(queue.brokenBy ?? 'a queue broke');
  }

  /** How many packets went through, both ways. */
  get servedCount(): number {
    return this.#servedCount;
  }

  /** Tells the guest whether to kick. Returns true when packets or buffers came that no kick will announce. */
  suppressKicks(suppress: boolean): boolean {
    const hasPackets = this.#tx.suppressKicks(suppress) && this.mux.mayReceive;
    // Buffers are there most of the time, and are of interest only when there were none.
    const hasBuffers = this.#rx.suppressKicks(suppress || !this.#awaitsBuffers);
    if (hasBuffers) this.#awaitsBuffers = false;
    return hasPackets || hasBuffers;
  }

  tick(nowMs: number): void {
    this.mux.tick(nowMs);
    if (nowMs < this.#nextHandshakeMs) return;
    this.#nextHandshakeMs = Number.POSITIVE_INFINITY;
    for (const handshake of [...this.#handshakes])
      if (handshake.deadlineMs <= nowMs) handshake.end();
      else this.#nextHandshakeMs = Math.min(this.#nextHandshakeMs, handshake.deadlineMs);
  }

  nextDeadlineMs(): number {
    return Math.min(this.mux.nextDeadlineMs(), this.#nextHandshakeMs);
  }

  // --- the host ---

  /** Whoever answers the guest at `port`. */
  #open(port: number, guestPort: number, mux: VsockMux): PendingEnd | undefined {
    const { services, guestCid, hostPath } = this.#options;
    const service = services?.get(port);
    if (service !== undefined) return ServiceEnd.open(service, guestCid, guestPort, port, mux);
    if (hostPath === undefined) return undefined;
    const fd = connectToService(hostPath, port, guestCid, guestPort);
    return fd < 0 ? undefined : new UnixEnd(fd, this.#watcher, mux, false);
  }

  /** A program of the host has connected to `<hostPath>`. Takes `fd` over, a non-blocking socket. */
  acceptHost(fd: number): void {
    if (this.isClosed || this.#handshakes.size >= MAX_CONNECTIONS) {
      this.counters.hostRefused++;
      close(fd);
      return;
    }
    const deadlineMs = this.#nowMs() + HANDSHAKE_MS;
    try {
      const handshake = new HostHandshake(fd, this.#watcher, deadlineMs, {
        asked: (done, socket, port) => {
          this.#handshakes.delete(done);
          const end = new UnixEnd(socket, this.#watcher, this.mux, true);
          if (this.mux.connect(port, end) !== undefined) return;
          this.counters.hostRefused++;
          close(socket);
        },
        failed: (done) => {
          this.counters.hostRefused++;
          this.#handshakes.delete(done);
        },
      });
      this.#handshakes.add(handshake);
      this.#nextHandshakeMs = Math.min(this.#nextHandshakeMs, deadlineMs);
    } catch {
      this.counters.hostRefused++;
      close(fd);
    }
  }
}
