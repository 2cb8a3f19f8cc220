/** Requests that make the one thread of the daemon work long, or hold much: how many there may be at once. */
import { ApiError } from './problem.ts';

const mostOfOne = 4;
const mostOfAll = 16;

export class Turns {
  readonly #taken = new Map<string, number>();
  #all = 0;

  /** TOO_MANY_REQUESTS. @returns what gives it back, once */
  take(who: string): () => void {
    const count = this.#taken.get(who) ?? 0;
    if (count >= mostOfOne || this.#all >= mostOfAll)
      throw new ApiError('TOO_MANY_REQUESTS', 'too many long requests are under way; ask again when one is answered', {
        retryAfterSeconds: 1,
      });
    this.#count(who, 1);
    let isTaken = true;
    return () => {
      if (!isTaken) return;
      isTaken = false;
      this.#count(who, -1);
    };
  }

  #count(who: string, step: number): void {
    const count = (this.#taken.get(who) ?? 0) + step;
    if (count === 0) this.#taken.delete(who);
    else this.#taken.set(who, count);
    this.#all += step;
  }
}
