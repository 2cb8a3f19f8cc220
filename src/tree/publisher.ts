/** Tells every listener of every commit, in order. */
import type { Delta } from './delta.ts';

interface Listener {
  readonly told: (delta: Delta) => void;
  /** It has been told of everything up to this number of `#published`. */
  readonly since: number;
}

export class Publisher {
  readonly #listeners = new Set<Listener>();
  readonly #forListeners: (delta: Delta) => Delta;
  readonly #threw: (error: unknown) => void;
  readonly #waiting: { readonly delta: Delta; readonly number: number }[] = [];
  /** Counts what was given to `#waiting`. */
  #published = 0;
  #publishing = false;

  /** `forListeners`: what they get of a delta that is about to be told; a full one is made anew. */
  constructor(forListeners: (delta: Delta) => Delta, threw: (error: unknown) => void) {
    this.#forListeners = forListeners;
    this.#threw = threw;
  }

  /** Tells `first`, and then what comes after. False from the function that is returned: it had ended before. */
  subscribe(first: Delta, told: (delta: Delta) => void): () => boolean {
    const listener: Listener = { told, since: this.#published };
    told(first);
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Takes a delta to be told by `flush`. */
  add(delta: Delta): void {
    this.#waiting.push({ delta, number: ++this.#published });
  }

  /** In order to everyone, also when a listener makes the next commit while it is told of this one. */
  flush(): void {
    if (this.#publishing) return;
    this.#publishing = true;
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      const delta = this.#forListeners(next.delta);
      for (const { told, since } of this.#listeners) {
        if (since >= next.number) continue;
        try {
          told(delta);
        } catch (error) {
          this.#threw(error);
        }
      }
    }
    this.#publishing = false;
  }
}
