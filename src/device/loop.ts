/**
 * The loop of a device process: one thread, blocking in epoll, that serves rings and sockets. libuv's loop stands still
 * meanwhile; it gets a turn whenever it has something to do itself (a signal, a socket of Node's), because its epoll fd is
 * watched like any other. Node's timers do not run in between: use `Served.nextDeadlineMs`.
 *
 * After serving, the loop goes on looking at the rings, and at streams of 9P, for a short while with kicks suppressed: what
 * costs is waking a halted core (70 to 85 µs against 19 with a spin), not the work. The spin is bounded three ways: it ends
 * `spinMs` after the last request; fruitless spinning may take up no more than `SPIN_DUTY` of the time; and descriptors are
 * looked at every `TURN_MS`, however busy the rings are. And it goes by experience: where the next request never comes in
 * time (a guest that needs this core itself to send it), spinning only makes it later, so it is tried again now and then
 * only.
 */
import { setImmediate as turnOfNode } from 'node:timers/promises';
import { EPOLLIN, Epoll, uvBackendFd } from '../sys/index.ts';
import type { FdWatcher } from '../virtio/index.ts';
import { EINTR } from '../wire/index.ts';

/** A device whose rings the loop serves. `VirtioFsDevice` is one. */
export interface Served {
  /** Serves up to `budget` requests; returns whether more wait. */
  process(budget: number): boolean;
  /** Switches kicks off or on; returns whether requests came that no kick will announce. */
  suppressKicks(suppress: boolean): boolean;
  /** How many requests it has served; only rises. */
  readonly servedCount: number;
  /** Runs what is due. */
  tick(nowMs: number): void;
  /** Monotonic milliseconds (`performance.now`) of the next thing due, or Infinity. */
  nextDeadlineMs(): number;
}

/** The share of time that fruitless spinning may take, 0 to 1. */
const SPIN_DUTY = 0.2;
/** How long rings are served before descriptors are looked at again. */
const TURN_MS = 1;
/** Requests served of one device before the next has its turn. */
const BUDGET = 64;
/** Fruitless spins that may be saved up. */
const SAVED_SPINS = 20;
/**
 * A fruitless spin costs as much credit as so many fruitful ones earn: it pays where four of five find something. Fruitful is
 * what waited and found; what lay there when it began came while another had this core, and no wake-up was spared.
 */
const FRUITLESS_COST = 4;
const MOST_CREDIT = 8;
/** How often it is tried all the same: once in so many times, and half as often after each time in vain. */
const RETRY_FIRST = 32;
const RETRY_LAST = 1024;

/** One per thread. What it watches and serves stays its owner's. */
export class Loop implements FdWatcher {
  readonly #epoll = new Epoll(64);
  /** By fd. A gap for what is not watched. */
  readonly #callbacks: (((events: number) => void) | undefined)[] = [];
  #served: Served[] = [];
  /** How long to look for more after a request; 0 never spins. */
  spinMs: number;
  /** Runs before every look at the descriptors: sends what has gathered. */
  beforePoll: () => void = () => {};
  #isStopping = false;
  #nodeHasWork = false;
  /** Whether some device had more than its budget when it was served last. */
  #hasMore = false;
  /** Milliseconds of fruitless spinning that are left, as of `#allowanceAt`. */
  #allowanceMs: number;
  #allowanceAt = performance.now();
  /** Earned by spins that found something; none left: spinning is not expected to help. */
  #credit = FRUITLESS_COST;
  #sinceSpin = 0;
  #retryEvery = RETRY_FIRST;
  /** For operators and tests. */
  readonly counters = { turns: 0, sleeps: 0, spins: 0, fruitlessSpins: 0 };

  constructor(spinMs = 0.05) {
    this.spinMs = spinMs;
    this.#allowanceMs = this.spinMs * SAVED_SPINS;
    const nodeFd = uvBackendFd();
    if (nodeFd >= 0)
      this.watch(nodeFd, () => {
        this.#nodeHasWork = true;
      });
  }

  /**
   * Calls `onReady` whenever `fd` shows one of `events` (EPOLLIN by default), with what it shows. Level-triggered. A
   * callback may be called once in vain after its fd number went to another file; it must not block on it.
   */
  watch(fd: number, onReady: (events: number) => void, events = EPOLLIN): void {
    const error = this.#callbacks[fd] === undefined ? this.#epoll.add(fd, events) : this.#epoll.change(fd, events);
    if (error < 0) throw new Error(`watching fd ${fd} failed with errno ${-error}`);
    this.#callbacks[fd] = onReady;
  }

  /** Must be called before `fd` is closed. */
  unwatch(fd: number): void {
    if (this.#callbacks[fd] === undefined) return;
    this.#callbacks[fd] = undefined;
    this.#epoll.remove(fd);
  }

  serve(device: Served): void {
    this.#served = [...this.#served, device];
  }

  unserve(device: Served): void {
    this.#served = this.#served.filter((other) => other !== device);
  }

  /** Ends `run` at the end of this turn. */
  stop(): void {
    this.#isStopping = true;
  }

  /**
   * Gives Node a turn before the next sleep: a callback of this loop, or Node's turn itself, has given it work that no descriptor
   * tells of, or a timer is due.
   */
  yieldToNode(): void {
    this.#nodeHasWork = true;
  }

  /** Blocks this thread until `stop` is called, giving Node a turn whenever it has work. */
  async run(): Promise<void> {
    this.#isStopping = false;
    while (!this.#isStopping) {
      // Before the turn: who asks in it for another one gets that.
      this.#nodeHasWork = false;
      await turnOfNode();
      this.#block();
    }
  }

  /** Serves until `stop`, or until Node has work; once at least, or who always has some would keep all others waiting. */
  #block(): void {
    while (!this.#isStopping) {
      this.counters.turns++;
      const hasMore = this.#serveRings();
      if (this.#isStopping) return;
      this.#poll(hasMore || this.#nodeHasWork ? 0 : this.#timeoutMs());
      if (this.#nodeHasWork) return;
    }
  }

  /** Until the next deadline, or for ever. */
  #timeoutMs(): number {
    let deadline = Number.POSITIVE_INFINITY;
    for (const device of this.#served) deadline = Math.min(deadline, device.nextDeadlineMs());
    if (deadline === Number.POSITIVE_INFINITY) return -1;
    const left = Math.ceil(deadline - performance.now());
    return Math.min(Math.max(left, 0), 0x7fffffff);
  }

  #poll(timeoutMs: number): void {
    this.beforePoll();
    if (timeoutMs !== 0) this.counters.sleeps++;
    const count = this.#epoll.wait(timeoutMs);
    if (count < 0 && count !== -EINTR) throw new Error(`waiting for events failed with errno ${-count}`);
    for (let i = 0; i < count; i++) this.#callbacks[this.#epoll.eventFd(i)]?.(this.#epoll.eventBits(i));
    const now = performance.now();
    for (const device of this.#served) if (device.nextDeadlineMs() <= now) device.tick(now);
  }

  /** Every device once. Returns whether any served something, and sets `#hasMore`. */
  #serveOnce(): boolean {
    let didServe = false;
    this.#hasMore = false;
    for (const device of this.#served) {
      const before = device.servedCount;
      if (device.process(BUDGET)) this.#hasMore = true;
      if (device.servedCount !== before) didServe = true;
    }
    return didServe;
  }

  /** Serves what is there, spins for more, and switches kicks on. Returns whether more waits, so that the loop must not sleep. */
  #serveRings(): boolean {
    if (!this.#serveOnce()) return this.#hasMore;
    const start = performance.now();
    if (this.spinMs > 0 && this.#expectsMore() && this.#maySpin(start)) this.#spin(start);
    // Always, or the driver's next request would come without a kick: serving has passed the event that was asked for.
    let hasMore = this.#hasMore;
    for (const device of this.#served) if (device.suppressKicks(false)) hasMore = true;
    return hasMore;
  }

  /** Serves and looks for more until nothing has come for `spinMs`, or the turn is over. */
  #spin(start: number): void {
    this.counters.spins++;
    this.#sinceSpin = 0;
    for (const device of this.#served) device.suppressKicks(true);
    const turnEnd = start + TURN_MS;
    let last = start;
    let now = start;
    let isWaiting = false;
    let hasWaited = false;
    while (now < turnEnd && now - last < this.spinMs) {
      if (this.#serveOnce()) {
        last = performance.now();
        if (isWaiting) hasWaited = true;
        isWaiting = false;
      } else isWaiting = true;
      now = performance.now();
    }
    if (hasWaited) {
      this.#credit = Math.min(MOST_CREDIT, this.#credit + 1);
      this.#retryEvery = RETRY_FIRST;
    } else {
      if (this.#credit === 0) this.#retryEvery = Math.min(RETRY_LAST, this.#retryEvery * 2);
      this.#credit = Math.max(0, this.#credit - FRUITLESS_COST);
    }
    if (now - last >= this.spinMs) {
      this.counters.fruitlessSpins++;
      this.#allowanceMs -= now - last;
    }
  }

  /** Whether spinning has helped lately, or it is time to see whether it does now. */
  #expectsMore(): boolean {
    return this.#credit > 0 || ++this.#sinceSpin >= this.#retryEvery;
  }

  /** Lets the allowance grow by the time that has passed, and says whether a whole fruitless spin is left of it. */
  #maySpin(nowMs: number): boolean {
    const grown = this.#allowanceMs + (nowMs - this.#allowanceAt) * SPIN_DUTY;
    this.#allowanceMs = Math.min(grown, this.spinMs * SAVED_SPINS);
    this.#allowanceAt = nowMs;
    return this.#allowanceMs >= this.spinMs;
  }

  /** Gives the epoll instance back. What was watched stays open: it is its owners'. */
  close(): void {
    this.#epoll.close();
  }
}
