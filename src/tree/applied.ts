/** What took effect, by who asked: what is asked again is answered, and not done twice. */
import { ANSWERED_KEPT, type Answered, APPLIED_KEPT, type Applied } from './commit.ts';
import type { Outcome } from './mutation.ts';

/** The last `APPLIED_KEPT` of each holder. */
export class AppliedMutations {
  /** Oldest first. */
  readonly #byHolder = new Map<string, Map<number, Outcome>>();

  get(holder: string, sequence: number): Outcome | undefined {
    return this.#byHolder.get(holder)?.get(sequence);
  }

  add({ holder, sequence, outcome }: Applied): void {
    let outcomes = this.#byHolder.get(holder);
    if (outcomes === undefined) {
      outcomes = new Map();
      this.#byHolder.set(holder, outcomes);
    }
    outcomes.set(sequence, outcome);
    if (outcomes.size <= APPLIED_KEPT) return;
    for (const oldest of outcomes.keys()) {
      outcomes.delete(oldest);
      return;
    }
  }

  /** Whether there was anything to forget. */
  forget(holder: string): boolean {
    return this.#byHolder.delete(holder);
  }

  /** Who is remembered. */
  holders(): IterableIterator<string> {
    return this.#byHolder.keys();
  }

  /** Of one holder, oldest first. */
  *of(holder: string): Generator<Applied> {
    for (const [sequence, outcome] of this.#byHolder.get(holder) ?? []) yield { holder, sequence, outcome };
  }
}

/** Requests from outside: the last `ANSWERED_KEPT`. */
export class AnsweredRequests {
  /** Oldest first. */
  readonly #byId = new Map<string, Answered>();

  get(id: string): Answered | undefined {
    return this.#byId.get(id);
  }

  add(answered: Answered): void {
    this.#byId.delete(answered.id);
    this.#byId.set(answered.id, answered);
    if (this.#byId.size <= ANSWERED_KEPT) return;
    for (const oldest of this.#byId.keys()) {
      this.#byId.delete(oldest);
      return;
    }
  }
}
