/**
 * The virtio file system device (virtio 1.2 §5.11) as a vhost-user back end: carries FUSE requests from the queues to a
 * session and the answers back. Queue 0 is the hiprio queue (FORGET), the others carry requests. No configuration space
 * (the monitor has the tag), no notification queue (no kernel has one).
 */
import type { Exchange, HeldExchange, RequestHandler } from '../fuse/index.ts';
import { EIO } from '../wire/index.ts';
import { BackEnd, type BackEndOptions, type FdWatcher } from './back-end.ts';
import type { DeviceJournal, Recovered } from './journal.ts';
import {
  makeSegments,
  POP_BROKEN,
  POP_CHAIN,
  POP_EMPTY,
  POP_FAULT,
  type Segments,
  type Virtqueue,
} from './virtqueue.ts';

const IN_HEADER_BYTES = 40;
const OUT_HEADER_BYTES = 16;
/** The header, `fuse_write_in`, 1 MiB of data, and slack for what a kernel may put between. */
const REQUEST_BYTES = IN_HEADER_BYTES + 40 + 1024 * 1024 + 4016;
/** Hiprio and, at most, this many request queues: Linux from 6.10 on uses one per CPU where they are offered. */
const DEFAULT_QUEUES = 1 + 16;

export interface VirtioFsOptions extends Partial<BackEndOptions> {
  /** Told once when the connection has ended, with the reason; the device is of no use then. */
  onClosed?: (reason: string) => void;
  /** Told of what must not happen: a session that throws or forgets to answer, a queue that broke. */
  onFault?: (message: string) => void;
  /** What outlives this process, and what a predecessor has left there. */
  journal?: DeviceJournal;
  recovered?: Recovered;
  /** Answers EIO to what a predecessor had begun, rather than doing it again. */
  refusesRedone?: boolean;
}

/** What has happened, since the device began. */
interface VirtioFsCounters {
  requests: number;
  /** Replies of held requests that were dropped because their ring was reset. */
  droppedReplies: number;
  /** Requests answered EIO because their descriptors were bad. */
  badChains: number;
  brokenQueues: number;
  /** Bugs of the session: throws, missing answers, answers that do not fit. */
  sessionFaults: number;
}

/** A turn is measured in requests; one that copies this many bytes or walks this many descriptors more counts as one more. */
const BYTES_PER_UNIT = 16_384;
const DESCRIPTORS_PER_UNIT = 256;

const IDLE = 0;
const UNANSWERED = 1;
const ANSWERED = 2;

/** A request that the session keeps. Its segments are guest addresses; the table of the time of the answer counts. */
class HeldRequest implements HeldExchange {
  readonly queue: Virtqueue;
  readonly generation: number;
  readonly head: number;
  readonly segments: Segments;
  readonly unique: Uint8Array;
  readonly #device: VirtioFsDevice;
  #isDone = false;

  constructor(device: VirtioFsDevice, queue: Virtqueue, segments: Segments, unique: Uint8Array) {
    this.#device = device;
    this.queue = queue;
    this.generation = queue.generation;
    this.head = queue.head;
    this.segments = segments;
    this.unique = unique;
  }

  get replyCapacity(): number {
    return this.segments.sizeBytes;
  }

  reply(head: Uint8Array, headBytes: number, payload?: Uint8Array): void {
    if (this.#isDone) return;
    this.#isDone = true;
    this.#device.completeHeld(this, head, headBytes, payload);
  }

  noReply(): void {
    if (this.#isDone) return;
    this.#isDone = true;
    this.#device.completeHeld(this, nothing, 0, undefined);
  }
}

const nothing = new Uint8Array(0);

/** A reply that came while its ring stood still. */
interface PendingReply {
  held: HeldRequest;
  bytes: Uint8Array;
}

/** One device on one control connection. Never throws for what the guest or the front end does. */
export class VirtioFsDevice implements Exchange {
  readonly counters: VirtioFsCounters = {
    requests: 0,
    droppedReplies: 0,
    badChains: 0,
    brokenQueues: 0,
    sessionFaults: 0,
  };
  readonly request: Uint8Array;
  readonly view: DataView;
  readonly #backEnd: BackEnd;
  readonly #handler: RequestHandler;
  readonly #journal: DeviceJournal | undefined;
  readonly #refusesRedone: boolean;
  readonly #onFault: (message: string) => void;
  readonly #error = new Uint8Array(new ArrayBuffer(OUT_HEADER_BYTES));
  readonly #errorView = new DataView(this.#error.buffer);
  #pending: PendingReply[] = [];
  /** Queues that have ever run on this connection, in order; the loop looks at these alone. */
  #active: Virtqueue[] = [];
  /** Which of them is served first in the next turn. */
  #turn = 0;
  /** The request under way. */
  #queue: Virtqueue;
  #state = IDLE;
  /** Of the answer that the request under way has got. */
  #repliedBytes = 0;
  #isProcessing = false;

  /**
   * Takes `controlFd` over: an accepted, non-blocking control connection. `watcher` is told which fds to poll. Throws when what
   * a predecessor has left can't be taken up.
   */
  constructor(controlFd: number, handler: RequestHandler, watcher: FdWatcher, options: VirtioFsOptions = {}) {
    const buffer = new ArrayBuffer(REQUEST_BYTES);
    this.request = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.#handler = handler;
    this.#journal = options.journal;
    this.#refusesRedone = options.refusesRedone ?? false;
    this.#onFault = options.onFault ?? (() => undefined);
    this.#backEnd = new BackEnd(
      controlFd,
      { queues: options.queues ?? DEFAULT_QUEUES, allowUnsealed: options.allowUnsealed ?? false },
      watcher,
      {
        queueRuns: (queue, forgets) => this.#queueRuns(queue, forgets),
        queueStops: (queue) => this.#queueStops(queue),
        closed: (reason) => {
          this.#pending = [];
          this.#active = [];
          handler.reset();
          options.onClosed?.(reason);
        },
      },
      this.request,
      new Uint32Array(buffer),
      options.journal,
      options.recovered,
    );
    const { queues } = this.#backEnd;
    this.#queue = queues[0]!;
    this.#active = queues.filter(({ hasRun }) => hasRun);
  }

  get isClosed(): boolean {
    return this.#backEnd.isClosed;
  }

  /** Interrupts the driver of every queue: a predecessor may have shown it something and not come to tell. */
  interrupt(): void {
    for (const queue of this.#active) queue.interrupt();
  }

  /** Whether a predecessor has begun what is still to be done. */
  get hasRedone(): boolean {
    return this.#active.some((queue) => queue.hasRedone);
  }

  /** Shows drivers what was given back, and interrupts those who want to know. */
  show(): void {
    for (const queue of this.#active) queue.notify();
  }

  /** Whether the request of a chain that was the `order`th to be taken is still in flight. */
  isInFlight(queueIndex: number, head: number, order: number): boolean {
    const queue = this.#backEnd.queues[queueIndex];
    return order > 0 && queue?.orderOf(head) === order;
  }

  /** When the chain of `head` was taken; 0 without a journal. */
  orderOf(queueIndex: number, head: number): number {
    return this.#backEnd.queues[queueIndex]?.orderOf(head) ?? 0;
  }

  /** Why a queue of the device stands still until the guest resets it, or undefined. */
  get brokenBy(): string | undefined {
    return this.#active.find((queue) => queue.brokenBy !== undefined)?.brokenBy;
  }

  close(reason: string): void {
    this.#backEnd.close(reason);
  }

  /** Answers control messages that are there. The watcher's callback does this too. */
  serveControl(): void {
    this.#backEnd.serveControl();
  }

  // --- serving ---

  /**
   * Serves up to `budget` requests, fewer of them when they are long, a fair share of every queue, and interrupts the guest
   * where it wants that. Returns whether more is waiting.
   */
  process(budget: number): boolean {
    const active = this.#active;
    const count = active.length;
    if (count === 0) return false;
    let left = budget;
    this.#isProcessing = true;
    const first = this.#turn;
    this.#turn = (first + 1) % count;
    for (let round = 0; round < 2 && left > 0; round++) {
      // The first round keeps one queue from using up the budget of the others; the second gives out what is left.
      const share = round === 0 ? Math.max(1, Math.ceil(left / count)) : left;
      for (let i = 0; i < count && left > 0; i++)
        left -= this.#serve(active[(first + i) % count]!, Math.min(share, left));
      if (left === budget) break;
    }
    this.#isProcessing = false;
    let hasMore = false;
    for (const queue of this.#active) {
      queue.notify();
      if (queue.hasMore()) hasMore = true;
    }
    this.#journal?.shown();
    return hasMore;
  }

  /** How many requests were taken so far. */
  get servedCount(): number {
    return this.counters.requests;
  }

  /** Runs what is due in the session. */
  tick(nowMs: number): void {
    this.#handler.tick(nowMs);
  }

  nextDeadlineMs(): number {
    return this.#handler.nextDeadlineMs();
  }

  /** Tells the guest whether to kick. Returns true when requests came that no kick will announce. */
  suppressKicks(suppress: boolean): boolean {
    let hasMore = false;
    for (const queue of this.#active) if (queue.suppressKicks(suppress)) hasMore = true;
    return hasMore;
  }

  /** Serves requests of one queue until they have cost `most`; returns what they cost. */
  #serve(queue: Virtqueue, most: number): number {
    let cost = 0;
    while (cost < most) {
      const popped = queue.pop();
      if (popped === POP_EMPTY) break;
      if (popped === POP_BROKEN) {
        this.#break(queue);
        break;
      }
      this.counters.requests++;
      this.#queue = queue;
      this.#repliedBytes = 0;
      this.#state = UNANSWERED;
      if (popped === POP_FAULT) {
        this.counters.badChains++;
        this.#answerError();
      } else if (this.#refusesRedone && queue.isRedone) this.#answerError();
      else if (popped === POP_CHAIN) {
        this.#handle();
        this.#journal?.ends();
      }
      const bytes = queue.requestBytes + this.#repliedBytes;
      cost += 1 + Math.floor(bytes / BYTES_PER_UNIT) + Math.floor(queue.chainLength / DESCRIPTORS_PER_UNIT);
      if (this.#backEnd.isClosed) break;
    }
    this.#state = IDLE;
    return cost;
  }

  #handle(): void {
    try {
      this.#journal?.begins(this.#queue.index, this.#queue.head);
      this.#handler.handle(this);
      if (this.#state !== UNANSWERED) return;
      this.#fault('the session did not answer a request');
    } catch (error) {
      this.#fault(`the session threw: ${error instanceof Error ? error.stack : String(error)}`);
    }
    if (this.#state === UNANSWERED) this.#answerError();
  }

  #fault(message: string): void {
    this.counters.sessionFaults++;
    this.#onFault(message);
  }

  #break(queue: Virtqueue): void {
    this.counters.brokenQueues++;
    this.#onFault(queue.brokenBy ?? 'a queue broke');
  }

  /** Answers EIO, or gives the chain back unanswered where no error fits. */
  #answerError(): void {
    const queue = this.#queue;
    if (queue.writable.sizeBytes < OUT_HEADER_BYTES) {
      this.noReply();
      return;
    }
    this.#errorView.setUint32(0, OUT_HEADER_BYTES, true);
    this.#errorView.setInt32(4, -EIO, true);
    const hasUnique = queue.requestBytes >= OUT_HEADER_BYTES;
    this.#errorView.setUint32(8, hasUnique ? this.view.getUint32(8, true) : 0, true);
    this.#errorView.setUint32(12, hasUnique ? this.view.getUint32(12, true) : 0, true);
    this.reply(this.#error, OUT_HEADER_BYTES);
  }

  // --- the exchange under way ---

  get requestBytes(): number {
    return this.#queue.requestBytes;
  }

  /** A predecessor has begun to answer it. */
  get isRedone(): boolean {
    return this.#queue.isRedone;
  }

  get replyCapacity(): number {
    return this.#queue.writable.sizeBytes;
  }

  reply(head: Uint8Array, headBytes: number, payload?: Uint8Array): void {
    if (this.#state !== UNANSWERED) {
      this.#fault('the session answered twice');
      return;
    }
    const queue = this.#queue;
    const total = headBytes + (payload === undefined ? 0 : payload.byteLength);
    if (total > queue.writable.sizeBytes) {
      this.#fault(`the session answered ${total} bytes where ${queue.writable.sizeBytes} fit`);
      this.#answerError();
      return;
    }
    this.#state = ANSWERED;
    this.#journal?.gives(queue.index, queue.head);
    this.#repliedBytes = total;
    if (queue.scatter(queue.writable, head, headBytes, payload) === total) queue.push(queue.head, total);
    else {
      queue.break('the memory of a reply is gone');
      this.#break(queue);
    }
  }

  noReply(): void {
    if (this.#state !== UNANSWERED) {
      this.#fault('the session answered twice');
      return;
    }
    this.#state = ANSWERED;
    this.#journal?.gives(this.#queue.index, this.#queue.head);
    this.#queue.push(this.#queue.head, 0);
  }

  hold(): HeldExchange {
    const queue = this.#queue;
    const { writable } = queue;
    const segments = makeSegments(writable.count);
    for (let i = 0; i < writable.count; i++) {
      segments.addrs[i] = writable.addrs[i]!;
      segments.lengths[i] = writable.lengths[i]!;
    }
    segments.count = writable.count;
    segments.sizeBytes = writable.sizeBytes;
    this.#state = ANSWERED;
    return new HeldRequest(this, queue, segments, this.request.slice(8, OUT_HEADER_BYTES));
  }

  /**
   * Gives a held request back: at once on a running ring, when it goes on where it stands still, never where it was reset
   * meanwhile. `headBytes` 0 stands for no reply.
   */
  completeHeld(held: HeldRequest, head: Uint8Array, headBytes: number, payload: Uint8Array | undefined): void {
    const { queue } = held;
    if (held.generation !== queue.generation || this.#backEnd.isClosed) {
      this.counters.droppedReplies++;
      this.#journal?.postpones(queue.index, held.head);
      return;
    }
    const total = headBytes + (payload === undefined ? 0 : payload.byteLength);
    if (total > held.segments.sizeBytes) {
      this.#fault(`the session answered ${total} bytes where ${held.segments.sizeBytes} fit`);
      this.#errorView.setUint32(0, OUT_HEADER_BYTES, true);
      this.#errorView.setInt32(4, -EIO, true);
      this.#error.set(held.unique, 8);
      const fits = held.segments.sizeBytes >= OUT_HEADER_BYTES;
      this.completeHeld(held, this.#error, fits ? OUT_HEADER_BYTES : 0, undefined);
      return;
    }
    if (!queue.isRunning) {
      const bytes = new Uint8Array(total);
      bytes.set(head.subarray(0, headBytes));
      if (payload !== undefined) bytes.set(payload, headBytes);
      this.#pending.push({ held, bytes });
      this.#journal?.postpones(queue.index, held.head);
      return;
    }
    this.#journal?.gives(queue.index, held.head);
    if (queue.scatter(held.segments, head, headBytes, payload) !== total) {
      queue.break('the memory of a reply is gone');
      this.#break(queue);
      return;
    }
    queue.push(held.head, total);
    if (this.#isProcessing) return;
    queue.notify();
    this.#journal?.shown();
  }

  // --- lives ---

  #queueRuns(queue: Virtqueue, forgets: boolean): void {
    if (!this.#active.includes(queue)) {
      this.#active.push(queue);
      this.#active.sort((a, b) => a.index - b.index);
    }
    if (forgets) this.#handler.reset();
    const pending = this.#pending;
    this.#pending = [];
    for (const { held, bytes } of pending)
      if (held.queue === queue) this.completeHeld(held, bytes, bytes.byteLength, undefined);
      else this.#pending.push({ held, bytes });
    queue.suppressKicks(false);
  }

  #queueStops(queue: Virtqueue): void {
    this.#handler.flushWaiters();
    queue.notify();
  }
}
