/** The device process's end of the link: mutations go up, commits and outcomes come down. */
import { read, send } from '../sys/index.ts';
import type { AuditRecord, Delta, Mutation, Outcome, Settle } from '../tree/index.ts';
import { EAGAIN, EINTR, EIO } from '../wire/index.ts';
import { LinkQueue, readerOnDevice } from './link.ts';
import { auditBatch, type LinkConfig, monotonicMs, type ToDevice, type ToHost } from './link-messages.ts';
import type { NumberedUpstream } from './mutation-log.ts';

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
/** Audit records that may wait to be sent. */
const AUDIT_WAITING = 4096;
/** Records go out together: so many, or after this time. Each batch wakes the host daemon once. */
const AUDIT_BATCH = 64;
const AUDIT_DELAY_MS = 2;
/** When the queue had no room. */
const AUDIT_RETRY_MS = 50;

interface HostLinkEvents {
  config(config: LinkConfig): void;
  delta(delta: Delta): void;
  askStatistics(id: number): void;
  shutdown(): void;
  handOver(): void;
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

/** The mutation is a copy: the one that was submitted is the file system's to use again. */
interface Unsent extends Waiting {
  readonly way: 'virtiofs' | 'mount';
  readonly mutation: Mutation;
  /** 0: none yet. */
  readonly sequence: number;
  readonly sending: (sequence: number) => void;
}

const dataOf = (mutation: Mutation): Uint8Array | undefined =>
  'data' in mutation ? mutation.data : 'value' in mutation ? mutation.value : undefined;

function copyOf(mutation: Mutation): Mutation {
  const caller = { ...mutation.caller };
  if (mutation.op === 'write') return { ...mutation, caller, data: mutation.data.slice() };
  if (mutation.op === 'setxattr') return { ...mutation, caller, value: mutation.value.slice() };
  return mutation.op === 'symlink' ? { ...mutation, caller, target: mutation.target.slice() } : { ...mutation, caller };
}

/** About what the frame of a mutation takes. */
const bytesOf = ({ mutation }: Unsent): number => FRAME_BYTES + (dataOf(mutation)?.length ?? 0);
const FRAME_BYTES = 512;

const refused: Outcome = { errno: EIO, revision: 0, ino: 0 };

/** Owned by the loop: `serve` when the descriptor is ready, `beforePoll` before each wait, `tick` when something is due. */
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
  readonly #nextSequence: () => number;
  #audit: AuditRecord[] = [];
  #auditDueMs = Number.POSITIVE_INFINITY;
  #auditWritable = true;
  #wantsWritable = false;
  #ended = false;

  /** `nextSequence` numbers mutations as they are sent. */
  constructor(fd: number, events: HostLinkEvents, nextSequence: () => number) {
    this.#fd = fd;
    this.#nextSequence = nextSequence;
    this.#events = events;
  }

  /** Where the file systems of one way in send their mutations. EIO when the host daemon does not take them. */
  upstream(way: 'virtiofs' | 'mount'): NumberedUpstream {
    return {
      submit: (mutation, settle, sequence = 0, sending = () => undefined) => {
        const unsent = { way, mutation, settle, sequence, sending, sinceMs: monotonicMs() };
        this.#submit(unsent);
      },
    };
  }

  /** Keeps a record to be sent with the next batch; false when the log can't be written or too much waits. */
  readonly audit = (record: AuditRecord): boolean => {
    if (this.#ended || !this.#auditWritable || this.#audit.length >= AUDIT_WAITING) return false;
    if (this.#audit.length === 0) this.#auditDueMs = performance.now() + AUDIT_DELAY_MS;
    this.#audit.push(record);
    return true;
  };

  /** Sends what waits, audit records only when they are due. */
  readonly beforePoll = (): void => {
    if (this.#audit.length >= AUDIT_BATCH || this.#auditDueMs <= performance.now()) this.flush();
    else this.#write();
  };

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

  /** Sends everything that waits. */
  flush(): void {
    while (this.#audit.length > 0) {
      if (!this.send({ type: 'audit', records: this.#audit.slice(0, auditBatch) })) break;
      this.#audit = this.#audit.slice(auditBatch);
    }
    this.#auditDueMs = this.#audit.length === 0 ? Number.POSITIVE_INFINITY : performance.now() + AUDIT_RETRY_MS;
    this.#write();
  }

  #write(): void {
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
  }

  #submit(unsent: Unsent): void {
    if (this.#ended || this.#isAway(unsent.sinceMs)) return unsent.settle(refused);
    if (this.#waiting.size < UNDERWAY && this.#unsent.length === 0) return this.#sendMutation(unsent);
    const bytes = bytesOf(unsent);
    if (this.#unsentBytes + bytes > QUEUE_BYTES) return unsent.settle(refused);
    this.#unsentBytes += bytes;
    this.#unsent.push({ ...unsent, mutation: copyOf(unsent.mutation) });
  }

  #sendMutation({ way, mutation, sequence, sending, settle, sinceMs }: Unsent): void {
    // A record that was made before goes first, so that the log tells things in their order.
    this.flush();
    if (this.#ended) return settle(refused);
    const number = sequence === 0 ? this.#nextSequence() : sequence;
    sending(number);
    const expiresMs = sinceMs + MUTATION_MS;
    const message = { type: 'mutation', sequence: number, way, mutation, expiresMs } as const;
    if (!this.#queue.push(message)) return settle(refused);
    this.#waiting.set(number, { settle, sinceMs });
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
    const expiresInMs = this.#oldestSinceMs() + MUTATION_MS + ANSWER_MS - monotonicMs();
    return Math.min(this.#auditDueMs, performance.now() + expiresInMs);
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
      this.#unsentBytes -= bytesOf(next);
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
      case 'auditHealth':
        this.#auditWritable = message.writable;
        return undefined;
      case 'shutdown':
        return this.#events.shutdown();
      case 'handOver':
        return this.#events.handOver();
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
