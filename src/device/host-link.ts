/** The device process's end of the link: mutations go up, commits and outcomes come down. */
import { close, read, send } from '../sys/index.ts';
import type { Delta } from '../tree/index.ts';
import { EAGAIN, EINTR } from '../wire/index.ts';
import { LinkQueue, type MessageReader, readerOnDevice } from './link.ts';
import type { LinkConfig, LinkWay, ToDevice, ToHost } from './link-messages.ts';
import type { NumberedUpstream } from './mutation-log.ts';
import { MutationSender } from './mutation-sender.ts';

/** What may wait to be read by the host daemon. */
const QUEUE_BYTES = 64 * 1024 * 1024;
const READ_BYTES = 256 * 1024;

interface HostLinkEvents {
  config(config: LinkConfig): void;
  delta(delta: Delta): void;
  askStatistics(id: number): void;
  shutdown(): void;
  handOver(): void;
  bootToken(hash: Uint8Array | undefined): void;
  cutOff(ageMs: number | undefined): void;
  /** The host daemon is gone, and `fd` about to be closed. */
  ended(fd: number, reason: string): void;
  /** Whether there is more to write than the socket took. */
  wantWritable(wanted: boolean): void;
}

/**
 * Owned by the loop: `serve` when the descriptor is ready, `flush` before each wait, `tick` when something is due. One
 * daemon after another may be at the other end; between two of them, mutations wait.
 */
export class HostLink {
  readonly #events: HostLinkEvents;
  readonly #mutations: MutationSender;
  readonly #buffer = new Uint8Array(new ArrayBuffer(READ_BYTES));
  /** Of the connection, while there is one. */
  #fd: number | undefined;
  #reader: MessageReader<ToDevice> = readerOnDevice();
  #queue = new LinkQueue(QUEUE_BYTES);
  #wantsWritable = false;
  /** Nothing can be written to it any more; what it said before that is being read. */
  #isLost = false;
  #sequence = 0;

  /** `nextSequence` gives numbers that this holder, or one before it of the same name, has never used. */
  constructor(events: HostLinkEvents, nextSequence?: () => number) {
    this.#events = events;
    this.#mutations = new MutationSender(
      (frame) => this.#sendMutation(frame),
      nextSequence ?? (() => ++this.#sequence),
    );
  }

  /** Talks over `fd`, a non-blocking stream socket, which is ours from now on. The last connection is closed. */
  attach(fd: number): void {
    this.detach('another daemon took over');
    this.#fd = fd;
    this.#reader = readerOnDevice();
    this.#queue = new LinkQueue(QUEUE_BYTES);
    this.#wantsWritable = false;
    this.#isLost = false;
  }

  /** The daemon is known and its first commit applied: mutations that wait are sent. */
  resume(): void {
    this.#mutations.connect();
    this.flush();
  }

  /** Hangs up. Mutations wait for the next daemon, each its 5 s. */
  detach(reason: string): void {
    const fd = this.#fd;
    if (fd === undefined) return;
    this.#fd = undefined;
    this.#mutations.disconnect();
    this.#events.ended(fd, reason);
    close(fd);
  }

  /** Answers EIO to all that waits. */
  refuseAll(): void {
    this.#mutations.refuseAll();
  }

  get fd(): number | undefined {
    return this.#fd;
  }

  /** Where the file systems of one way in send their mutations. EIO when the host daemon does not take them. */
  upstream(way: LinkWay): NumberedUpstream {
    return this.#mutations.upstream(way);
  }

  /** Mutations that wait for the host daemon. */
  get mutationsWaiting(): number {
    return this.#mutations.size;
  }

  /** Reads and acts on what is there, and writes what waits. */
  readonly serve = (): void => {
    this.flush();
    this.#read();
  };

  #read(): void {
    for (;;) {
      const fd = this.#fd;
      if (fd === undefined) return;
      const got = read(fd, this.#buffer);
      if (got === -EINTR) continue;
      if (got === -EAGAIN) return;
      if (got <= 0)
        return this.detach(got === 0 ? 'the host daemon hung up' : `reading the link failed with errno ${-got}`);
      for (const message of this.#reader.feed(this.#buffer.subarray(0, got))) this.#take(message);
      if (got < this.#buffer.length && !this.#isLost) return;
    }
  }

  /** Queues a message; false when the queue is full, or nobody is there. */
  send(message: ToHost): boolean {
    return this.#fd !== undefined && this.#queue.push(message);
  }

  /** Sends what waits, as far as the socket takes it. */
  readonly flush = (): void => {
    if (this.#isLost) return;
    for (let frame = this.#queue.next(); frame !== undefined; frame = this.#queue.next()) {
      if (this.#fd === undefined) return;
      const wrote = send(this.#fd, frame);
      if (wrote === -EINTR) continue;
      if (wrote === -EAGAIN) break;
      if (wrote < 0) return this.#lose(`writing to the link failed with errno ${-wrote}`);
      this.#queue.wrote(wrote);
    }
    const wanted = this.#queue.pendingBytes > 0;
    if (wanted === this.#wantsWritable || this.#fd === undefined) return;
    this.#wantsWritable = wanted;
    this.#events.wantWritable(wanted);
  };

  /** The daemon is gone. It may have answered before that: what a guest is told has failed must not have been done. */
  #lose(reason: string): void {
    this.#isLost = true;
    this.#read();
    this.detach(reason);
  }

  #sendMutation(frame: Uint8Array): boolean {
    // Nobody is there any more: it waits for the next daemon.
    if (this.#fd === undefined || this.#isLost) return true;
    if (!this.#queue.pushFrame(frame)) return false;
    this.flush();
    return true;
  }

  /** Monotonic milliseconds (`performance.now`) of the next thing due, or Infinity. */
  nextDeadlineMs(): number {
    return performance.now() + this.#mutations.dueInMs();
  }

  /** Sends what is due, and answers EIO for what waited too long: the daemon will refuse it. */
  readonly tick = (): void => {
    this.flush();
    this.#mutations.tick();
  };

  #take(message: ToDevice): void {
    switch (message.type) {
      case 'config':
        return this.#events.config(message);
      case 'delta':
        return this.#events.delta(message.delta);
      case 'outcome':
        return this.#mutations.settle(message.sequence, message.outcome);
      case 'taken':
        return this.#mutations.taken(message.sequence);
      case 'askStatistics':
        return this.#events.askStatistics(message.id);
      case 'shutdown':
        return this.#events.shutdown();
      case 'handOver':
        return this.#events.handOver();
      case 'bootToken':
        return this.#events.bootToken(message.hash);
      case 'cutOff':
        return this.#events.cutOff(message.ageMs);
    }
  }
}
