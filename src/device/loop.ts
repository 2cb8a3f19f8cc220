/**
 * The loop of a device process: one thread that blocks in epoll, answers what is there, and polls its rings for a short
 * while before it blocks again. Node's own loop runs only when libuv has something to do (a signal).
 *
 * Why not an asynchronous loop: a request answered through libuv costs 25 µs where this costs 9, and Node can't wait on an
 * eventfd. Why it spins: waking a halted core costs 70 to 85 µs, a request found while spinning 19.
 */
import { EPOLLIN, EPOLLOUT, Epoll, uvBackendFd } from '../sys/index.ts';
import { EINTR } from '../wire/index.ts';

/** Something that has requests: the rings of a vhost-user connection, or `/dev/fuse`. */
export interface Source {
  /** Serves up to `budget` requests; true when more are waiting. */
  process(budget: number): boolean;
  /** Requests served since it began. */
  readonly served: number;
  /** Asks the other side for no notifications while we poll, or for them again; true when something came meanwhile. */
  suppressKicks(suppress: boolean): boolean;
  /** Monotonic milliseconds of the next thing due, or Infinity. */
  nextDeadlineMs(): number;
  tick(nowMs: number): void;
}

/** Requests a source may have answered before the next has its turn. */
const BUDGET = 64;
/** Turns in which nothing was waited for, after which control connections get their turn too. */
const TURNS_BETWEEN_POLLS = 16;
/** Of each window the loop may spend this much on spins that found nothing. */
const DUTY_WINDOW_MS = 100;
const DUTY_MS = 20;
/** Longest wait; nothing depends on it. */
const LONGEST_WAIT_MS = 60_000;

export class Loop {
  readonly #epoll = new Epoll();
  readonly #callbacks = new Map<number, () => void>();
  readonly #sources: Source[] = [];
  /** How long it polls after serving; 0 never. */
  spinMicros = 0;
  #first = 0;
  #stopped = false;
  #windowStartMs = 0;
  #spunMs = 0;
  #lastServed = 0;
  readonly #uvFd = uvBackendFd();
  /** Runs before the loop blocks: flushes what has to go out. */
  beforeWait: () => void = () => {};

  constructor() {
    if (this.#uvFd >= 0) this.#epoll.add(this.#uvFd, EPOLLIN);
  }

  watch(fd: number, onReadable: () => void): void {
    this.#callbacks.set(fd, onReadable);
    const result = this.#epoll.add(fd, EPOLLIN);
    if (result < 0) throw new Error(`watching descriptor ${fd} failed with errno ${-result}`);
  }

  /** Whether `fd`'s callback runs when it can be written to as well. */
  wantWritable(fd: number, wanted: boolean): void {
    this.#epoll.change(fd, wanted ? EPOLLIN | EPOLLOUT : EPOLLIN);
  }

  unwatch(fd: number): void {
    if (this.#callbacks.delete(fd)) this.#epoll.remove(fd);
  }

  addSource(source: Source): void {
    this.#sources.push(source);
  }

  removeSource(source: Source): void {
    const index = this.#sources.indexOf(source);
    if (index >= 0) this.#sources.splice(index, 1);
  }

  /** Ends `run` after the turn under way. */
  stop(): void {
    this.#stopped = true;
  }

  /** Runs until `stop`. Resolves then; in between it gives libuv its turns. */
  async run(): Promise<void> {
    while (!this.#stopped) {
      this.#untilUvIsDue();
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#epoll.close();
  }

  #untilUvIsDue(): void {
    let turns = 0;
    while (!this.#stopped) {
      // Kicks are wanted again before it blocks; what came while they were not has no other announcement.
      const more = this.#serve() || this.#spin() || this.#suppress(false);
      if (more && ++turns < TURNS_BETWEEN_POLLS) continue;
      turns = 0;
      this.beforeWait();
      if (this.#wait(more ? 0 : this.#timeoutMs())) return;
    }
  }

  /** Gives every source its share; true when something is waiting still. */
  #serve(): boolean {
    const count = this.#sources.length;
    let more = false;
    this.#first = this.#first + 1 < count ? this.#first + 1 : 0;
    for (let i = 0; i < count; i++) {
      const source = this.#sources[(this.#first + i) % count];
      if (source?.process(BUDGET) === true) more = true;
    }
    return more;
  }

  #total(): number {
    let served = 0;
    for (const source of this.#sources) served += source.served;
    return served;
  }

  /** Polls the sources for a while if they have just been busy; true when that found something. */
  #spin(): boolean {
    const served = this.#total();
    const idle = served === this.#lastServed;
    this.#lastServed = served;
    if (idle || this.spinMicros === 0) return false;
    const startMs = performance.now();
    if (startMs - this.#windowStartMs > DUTY_WINDOW_MS) {
      this.#windowStartMs = startMs;
      this.#spunMs = 0;
    }
    if (this.#spunMs > DUTY_MS) return false;
    this.#suppress(true);
    do {
      if (this.#serve() || this.#total() !== served) return true;
    } while (performance.now() - startMs < this.spinMicros / 1000);
    this.#spunMs += performance.now() - startMs;
    return false;
  }

  #suppress(suppress: boolean): boolean {
    let more = false;
    for (const source of this.#sources) if (source.suppressKicks(suppress)) more = true;
    return more;
  }

  #timeoutMs(): number {
    let deadlineMs = Number.POSITIVE_INFINITY;
    for (const source of this.#sources) deadlineMs = Math.min(deadlineMs, source.nextDeadlineMs());
    if (deadlineMs === Number.POSITIVE_INFINITY) return LONGEST_WAIT_MS;
    return Math.min(LONGEST_WAIT_MS, Math.max(0, Math.ceil(deadlineMs - performance.now())));
  }

  /** Waits and runs the callbacks of what is ready; true when libuv has something to do. */
  #wait(timeoutMs: number): boolean {
    const count = this.#epoll.wait(timeoutMs);
    if (count < 0 && count !== -EINTR) throw new Error(`waiting for descriptors failed with errno ${-count}`);
    let uv = count === -EINTR;
    for (let i = 0; i < count; i++) {
      const fd = this.#epoll.eventFd(i);
      if (fd === this.#uvFd) uv = true;
      else this.#callbacks.get(fd)?.();
    }
    const nowMs = performance.now();
    for (const source of [...this.#sources]) if (source.nextDeadlineMs() <= nowMs) source.tick(nowMs);
    return uv;
  }
}
