/** Turns for work that may wait: so many at once, and so many of one, in the order in which they came. */
export class Queue {
  readonly #most: number;
  readonly #mostOfOne: number;
  /** Who has turns. */
  readonly #taken: string[] = [];
  readonly #waiting: { readonly who: string; readonly go: () => void }[] = [];

  constructor({ most, mostOfOne }: { readonly most: number; readonly mostOfOne: number }) {
    this.#most = most;
    this.#mostOfOne = mostOfOne;
  }

  /** Rejects with the reason of the signal. @returns what gives the turn back, once */
  async take(who: string, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiting = { who, go: resolve };
    const leave = (): void => {
      const at = this.#waiting.indexOf(waiting);
      if (at < 0) return;
      this.#waiting.splice(at, 1);
      reject(signal.reason);
    };
    this.#waiting.push(waiting);
    signal.addEventListener('abort', leave, { once: true });
    this.#next();
    await promise.finally(() => signal.removeEventListener('abort', leave));
    let isTaken = true;
    return () => {
      if (!isTaken) return;
      isTaken = false;
      this.#taken.splice(this.#taken.indexOf(who), 1);
      this.#next();
    };
  }

  #next(): void {
    while (this.#taken.length < this.#most) {
      const at = this.#waiting.findIndex(
        ({ who }) => this.#taken.filter((one) => one === who).length < this.#mostOfOne,
      );
      const [next] = at < 0 ? [] : this.#waiting.splice(at, 1);
      if (next === undefined) return;
      this.#taken.push(next.who);
      next.go();
    }
  }
}
