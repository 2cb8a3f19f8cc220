/** Takes the connections of a listening socket for the loop, as many as this process can bear. */
import { accept, close } from '../sys/index.ts';
import { EAGAIN, ECONNABORTED } from '../wire/index.ts';
import type { Loop, Served } from './loop.ts';

/** The host daemon is told of each connection, and each allocates: a stranger could come and go as fast as it can. */
const CONNECTIONS_PER_SECOND = 20;
const PAUSE_MS = 1000;

/**
 * Calls `onConnection` with the descriptor of each connection, which becomes the callee's. After `perSecond` in a second, and
 * when one can't be taken (no descriptors are left, EMFILE), it looks away for a second: the others wait, as far as the
 * socket's backlog goes, and the loop does not spin over what it can't take. Owns `fd`.
 */
export class ConnectionListener implements Served {
  readonly servedCount = 0;
  readonly #fd: number;
  readonly #loop: Loop;
  readonly #onConnection: (fd: number) => void;
  readonly #perSecond: number;
  #since = Number.NEGATIVE_INFINITY;
  #taken = 0;
  #resumesAtMs = Number.POSITIVE_INFINITY;

  constructor(fd: number, loop: Loop, onConnection: (fd: number) => void, perSecond = CONNECTIONS_PER_SECOND) {
    this.#fd = fd;
    this.#perSecond = perSecond;
    this.#loop = loop;
    this.#onConnection = onConnection;
    loop.serve(this);
    loop.watch(fd, () => this.#take());
  }

  process(): boolean {
    return false;
  }

  suppressKicks(): boolean {
    return false;
  }

  nextDeadlineMs(): number {
    return this.#resumesAtMs;
  }

  tick(nowMs: number): void {
    if (nowMs < this.#resumesAtMs) return;
    this.#resumesAtMs = Number.POSITIVE_INFINITY;
    this.#loop.watch(this.#fd, () => this.#take());
  }

  close(): void {
    this.#loop.unwatch(this.#fd);
    this.#loop.unserve(this);
    close(this.#fd);
  }

  #take(): void {
    const nowMs = performance.now();
    if (nowMs - this.#since >= PAUSE_MS) {
      this.#since = nowMs;
      this.#taken = 0;
    }
    while (this.#taken < this.#perSecond) {
      const fd = accept(this.#fd);
      if (fd === -EAGAIN) return;
      if (fd === -ECONNABORTED) continue;
      if (fd < 0) return this.#pause(nowMs + PAUSE_MS);
      this.#taken++;
      this.#onConnection(fd);
    }
    this.#pause(this.#since + PAUSE_MS);
  }

  #pause(untilMs: number): void {
    this.#loop.unwatch(this.#fd);
    this.#resumesAtMs = untilMs;
  }
}
