/** The device process's end of the link: mutations go up, commits and outcomes come down. */
import { read, send } from '../sys/index.ts';
import type { Delta, Mutation, Outcome, Settle, Upstream } from '../tree/index.ts';
import { EAGAIN, EINTR, EIO } from '../wire/index.ts';
import { encodeMessage, LinkQueue, readerOnDevice } from './link.ts';
import { type LinkConfig, monotonicMs, type ToDevice, type ToHost } from './link-messages.ts';

/** The descriptor that the host daemon gives a device process. */
export const LINK_FD = 3;

/** What may wait to be read by the host daemon. */
const QUEUE_BYTES = 64 * 1024 * 1024;
/**
 * Mutations that the host daemon has at once; the others wait here. Each may come back as a commit with a whole value: a
 * guest that filled its rings with writes of one byte to a long file would have the daemon send more than it may.
 */
const UNDERWAY = 32;
const READ_BYTES = 256 * 1024;

interface HostLinkEvents {
  config(config: LinkConfig): void;
  delta(delta: Delta): void;
  askStatistics(id: number): void;
  shutdown(): void;
  /** The host daemon is gone. */
  ended(reason: string): void;
  /** Whether there is more to write than the socket took. */
  wantWritable(wanted: boolean): void;
}

/** How long a mutation may wait for the host daemon; it refuses one that it comes to later. */
const MUTATION_MS = 5_000;
/** What an answer that was on time may take to arrive. */
const ANSWER_MS = 500;
/** A daemon that has not answered for so long is away: no mutations but those that it has wait for it. */
const AWAY_MS = 1_000;

interface Waiting {
  readonly settle: Settle;
  readonly sinceMs: number;
}

/** Encoded already: the mutation and its caller are the file system's to use again. */
interface Unsent extends Waiting {
  readonly sequence: number;
  readonly frame: Uint8Array;
}

const refused: Outcome = { errno: EIO, revision: 0, ino: 0 };

/** Owned by the loop: `serve` when the descriptor is ready, `flush` before each wait, `tick` when something is due. */
export class HostLink {
  readonly #fd: number;
  readonly #events: HostLinkEvents;
  readonly #reader = readerOnDevice();
  readonly #queue = new LinkQueue(QUEUE_BYTES);
  readonly #buffer = new Uint8Array(new ArrayBuffer(READ_BYTES));
  /** Oldest first. */
  readonly #waiting = new Map<number, Waiting>();
  readonly #unsent: Unsent[] = [];
  #unsentBytes = 0;
  #sequence = 0;
  #wantsWritable = false;
  #ended = false;

  constructor(fd: number, events: HostLinkEvents) {
    this.#fd = fd;
    this.#events = events;
  }

  /** Where the file systems of one way in send their mutations. EIO when the host daemon does not take them. */
  upstream(way: 'virtiofs' | 'mount'): Upstream {
    return { submit: (mutation, settle) => this.#submit(way, mutation, settle) };
  }

  /** Mutations that wait for the host daemon. */
  get mutationsWaiting(): number {
    return this.#waiting.size + this.#unsent.length;
  }

  /** Reads and acts on what is there, and writes what waits. */
  readonly serve = (): void => {
    this.flush();
    while (!this.#ended) {
      const got = read(this.#fd, this.#buffer);
      if (got === -EINTR) continue;
      if (got === -EAGAIN) return;
      if (got <= 0)
        return this.#end(got === 0 ? 'the host daemon hung up' : `reading the link failed with errno ${-got}`);
      for (const message of this.#reader.feed(this.#buffer.subarray(0, got))) this.#take(message);
      if (got < this.#buffer.length) return;
    }
  };

  /** Queues a message; false when the queue is full. */
  send(message: ToHost): boolean {
    return !this.#ended && this.#queue.push(message);
  }

  /** Sends what waits, as far as the socket takes it. */
  readonly flush = (): void => {
    for (let frame = this.#queue.next(); frame !== undefined && !this.#ended; frame = this.#queue.next()) {
      const wrote = send(this.#fd, frame);
      if (wrote === -EINTR) continue;
      if (wrote === -EAGAIN) break;
      if (wrote < 0) return this.#end(`writing to the link failed with errno ${-wrote}`);
      this.#queue.wrote(wrote);
    }
    const wanted = this.#queue.pendingBytes > 0;
    if (wanted === this.#wantsWritable || this.#ended) return;
    this.#wantsWritable = wanted;
    this.#events.wantWritable(wanted);
  };

  #submit(way: 'virtiofs' | 'mount', mutation: Mutation, settle: Settle): void {
    const sinceMs = monotonicMs();
    if (this.#ended || this.#isAway(sinceMs)) return settle(refused);
    const sequence = ++this.#sequence;
    const frame = encodeMessage({ type: 'mutation', sequence, way, mutation, expiresMs: sinceMs + MUTATION_MS });
    const unsent = { sequence, frame, settle, sinceMs };
    if (this.#waiting.size < UNDERWAY && this.#unsent.length === 0) return this.#sendMutation(unsent);
    if (this.#unsentBytes + frame.length > QUEUE_BYTES) return settle(refused);
    this.#unsentBytes += frame.length;
    this.#unsent.push(unsent);
  }

  #sendMutation({ sequence, frame, settle, sinceMs }: Unsent): void {
    if (this.#ended || !this.#queue.pushFrame(frame)) return settle(refused);
    this.#waiting.set(sequence, { settle, sinceMs });
    this.flush();
  }

  #oldestSinceMs(): number {
    for (const { sinceMs } of this.#waiting.values()) return sinceMs;
    return Number.POSITIVE_INFINITY;
  }

  #isAway(nowMs: number): boolean {
    return this.#waiting.size >= UNDERWAY && nowMs - this.#oldestSinceMs() > AWAY_MS;
  }

  /** Monotonic milliseconds (`performance.now`) of the next thing due, or Infinity. */
  nextDeadlineMs(): number {
    return performance.now() + this.#oldestSinceMs() + MUTATION_MS + ANSWER_MS - monotonicMs();
  }

  /** Sends what is due, and answers EIO for what waited too long: the daemon will refuse it. */
  readonly tick = (): void => {
    this.flush();
    const nowMs = monotonicMs();
    for (const [sequence, { settle, sinceMs }] of this.#waiting) {
      if (nowMs - sinceMs < MUTATION_MS + ANSWER_MS) return;
      this.#waiting.delete(sequence);
      settle(refused);
    }
    this.#sendWaiting();
  };
  #sendWaiting(): void {
    while (this.#waiting.size < UNDERWAY) {
      const next = this.#unsent.shift();
      if (next === undefined) return;
      this.#unsentBytes -= next.frame.length;
      if (monotonicMs() - next.sinceMs > MUTATION_MS) next.settle(refused);
      else this.#sendMutation(next);
    }
  }

  #take(message: ToDevice): void {
    switch (message.type) {
      case 'config':
        return this.#events.config(message);
      case 'delta':
        return this.#events.delta(message.delta);
      case 'outcome': {
        const waiting = this.#waiting.get(message.sequence);
        this.#waiting.delete(message.sequence);
        waiting?.settle(message.outcome);
        return this.#sendWaiting();
      }
      case 'askStatistics':
        return this.#events.askStatistics(message.id);
      case 'shutdown':
        return this.#events.shutdown();
    }
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    for (const { settle } of this.#waiting.values()) settle(refused);
    this.#waiting.clear();
    for (const { settle } of this.#unsent.splice(0)) settle(refused);
    this.#events.ended(reason);
  }
}
