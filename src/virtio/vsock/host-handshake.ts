/** A program of the host that has connected to `<path>` says which port of the guest it wants: `CONNECT <port>\n`. */
import { close, EPOLLIN, read } from '../../sys/index.ts';
import { EAGAIN, EINTR } from '../../wire/index.ts';
import type { FdWatcher } from '../back-end.ts';

/** `CONNECT 4294967295\n` and some blanks. */
const MOST_BYTES = 32;
const linePattern = /^CONNECT +(\d{1,10}) *\r?\n$/i;
const U32_END = 2 ** 32;

export interface HandshakeEvents {
  /** It said which: the socket is the callee's. */
  asked(handshake: HostHandshake, fd: number, port: number): void;
  /** It said something else, or hung up; the socket is closed. */
  failed(handshake: HostHandshake): void;
}

/** Owns `fd`, a non-blocking socket, until it is `asked` for or failed. */
export class HostHandshake {
  readonly deadlineMs: number;
  readonly #fd: number;
  readonly #watcher: FdWatcher;
  readonly #events: HandshakeEvents;
  readonly #byte = new Uint8Array(new ArrayBuffer(1));
  #line = '';
  #isOver = false;

  /** Throws when the socket can't be watched. */
  constructor(fd: number, watcher: FdWatcher, deadlineMs: number, events: HandshakeEvents) {
    this.#fd = fd;
    this.#watcher = watcher;
    this.deadlineMs = deadlineMs;
    this.#events = events;
    watcher.watch(fd, () => this.#take(), EPOLLIN);
  }

  /** One byte after the other: what comes after the line is for the guest. */
  #take(): void {
    while (!this.#isOver) {
      const got = read(this.#fd, this.#byte);
      if (got === -EAGAIN || got === -EINTR) return undefined;
      if (got <= 0) return this.end();
      this.#line += String.fromCharCode(this.#byte[0]!);
      if (this.#byte[0] === NEWLINE) return this.#decide();
      if (this.#line.length >= MOST_BYTES) return this.end();
    }
    return undefined;
  }

  #decide(): void {
    const port = Number(linePattern.exec(this.#line)?.[1] ?? Number.NaN);
    if (!(port < U32_END)) return this.end();
    this.#isOver = true;
    this.#watcher.unwatch(this.#fd);
    return this.#events.asked(this, this.#fd, port);
  }

  /** Hangs up. */
  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#watcher.unwatch(this.#fd);
    close(this.#fd);
    this.#events.failed(this);
  }
}

const NEWLINE = 10;
