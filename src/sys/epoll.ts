/** epoll(7), by fd: what the kernel hands back is the fd that was added, so that callbacks can stand in a table by fd. */
import * as libc from './libc.ts';

const { result } = libc;

export const EPOLLIN = 0x001;
export const EPOLLOUT = 0x004;
/** Told once for each time that it becomes ready, not for as long as it is. An eventfd: for each time that it is written. */
export const EPOLLET = 1 << 31;

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;

/** `struct epoll_event` is packed on x86-64 alone: u32 events, then the u64 data at 4; elsewhere the data is aligned to 8. */
const isPacked = process.arch === 'x64';
const EVENT_WORDS = isPacked ? 3 : 4;
const DATA_WORD = isPacked ? 1 : 2;

/** One epoll instance and room for its events. */
export class Epoll {
  readonly #fd: number;
  readonly #events: Int32Array;
  readonly #capacity: number;
  readonly #one = new Int32Array(new ArrayBuffer(EVENT_WORDS * 4));

  /** Throws where the process is out of descriptors. `capacity` is the number of events that one `wait` can bring. */
  constructor(capacity = 64) {
    const fd = result(libc.epollCreate1(EPOLL_CLOEXEC));
    if (fd < 0) throw new Error(`making an epoll instance failed with errno ${-fd}`);
    this.#fd = fd;
    this.#capacity = capacity;
    this.#events = new Int32Array(new ArrayBuffer(capacity * EVENT_WORDS * 4));
  }

  /** The descriptor of the instance itself, which another epoll can watch. */
  get fd(): number {
    return this.#fd;
  }

  #control(op: number, fd: number, events: number): number {
    this.#one[0] = events;
    this.#one[DATA_WORD] = fd;
    return result(libc.epollCtl(this.#fd, op, fd, this.#one));
  }

  add(fd: number, events: number): number {
    return this.#control(EPOLL_CTL_ADD, fd, events);
  }

  change(fd: number, events: number): number {
    return this.#control(EPOLL_CTL_MOD, fd, events);
  }

  remove(fd: number): number {
    return this.#control(EPOLL_CTL_DEL, fd, 0);
  }

  /** Blocks the thread until something is ready or `timeoutMs` has passed (-1: for ever); returns the number of events. */
  wait(timeoutMs: number): number {
    return result(libc.epollWait(this.#fd, this.#events, this.#capacity, timeoutMs));
  }

  /** The fd of event `index` of the last `wait`. */
  eventFd(index: number): number {
    return this.#events[index * EVENT_WORDS + DATA_WORD]!;
  }

  /** What event `index` of the last `wait` shows: EPOLLIN, EPOLLHUP … */
  eventBits(index: number): number {
    return this.#events[index * EVENT_WORDS]!;
  }

  close(): void {
    libc.close(this.#fd);
  }
}
