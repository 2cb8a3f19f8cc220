/** The event streams that are open: how many there may be, and how all of them end. */
import type { Gauge } from 'prom-client';
import { ApiError } from './problem.ts';

const mostOfOne = 64;
const mostOfAll = 512;

export interface StreamTiming {
  readonly heartbeatMs?: number | undefined;
  readonly stallMs?: number | undefined;
}

export class Streams {
  readonly timing: StreamTiming;
  readonly #open = new Map<string, number>();
  readonly #closing = new AbortController();
  readonly #gauge: Gauge;
  #all = 0;

  constructor(gauge: Gauge, timing: StreamTiming) {
    this.#gauge = gauge;
    this.timing = timing;
  }

  /** TOO_MANY_REQUESTS. `signal` ends with any of those given, with `close`, and with the server. */
  open(who: string, signals: readonly AbortSignal[]): { readonly signal: AbortSignal; readonly close: () => void } {
    const count = this.#open.get(who) ?? 0;
    if (count >= mostOfOne || this.#all >= mostOfAll)
      throw new ApiError('TOO_MANY_REQUESTS', `there are ${count} streams open already; close some first`, {
        retryAfterSeconds: 5,
      });
    this.#count(who, 1);
    const own = new AbortController();
    let isOpen = true;
    const close = (): void => {
      if (!isOpen) return;
      isOpen = false;
      this.#count(who, -1);
      own.abort();
    };
    return { signal: AbortSignal.any([own.signal, this.#closing.signal, ...signals]), close };
  }

  closeAll(): void {
    this.#closing.abort();
  }

  #count(who: string, step: number): void {
    const count = (this.#open.get(who) ?? 0) + step;
    if (count === 0) this.#open.delete(who);
    else this.#open.set(who, count);
    this.#all += step;
    this.#gauge.set(this.#all);
  }
}
