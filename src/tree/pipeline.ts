/**
 * The order of what was decided: each step is published when it and all before it are kept. While one batch is being kept,
 * later steps gather and make the next.
 */
import type { Commit, Persist } from './commit.ts';

export interface Step {
  /** Undefined where nothing is to be kept, only the order. */
  readonly commit: Commit | undefined;
  /** It is kept, and so is all that was entered before. */
  kept(): void;
}

/** Calls back soon: what is entered until then is kept together. */
export type Gather = (start: () => void) => void;

export class Pipeline<S extends Step> {
  readonly #persist: Persist;
  /** Told of a batch that could not be kept, with the steps that were entered after it. None of them is. */
  readonly #failed: (error: unknown, steps: readonly S[]) => void;
  /** Being kept or published. */
  #batch: readonly S[] = [];
  #waiting: S[] = [];
  readonly #gather: Gather | undefined;

  constructor(
    persist: Persist,
    failed: (error: unknown, steps: readonly S[]) => void,
    gather: Gather | undefined = undefined,
  ) {
    this.#persist = persist;
    this.#failed = failed;
    this.#gather = gather;
  }

  /** Nothing is under way. */
  get idle(): boolean {
    return this.#batch.length + this.#waiting.length === 0;
  }

  /** Steps that are not kept yet. */
  pending(): readonly S[] {
    return [...this.#batch, ...this.#waiting];
  }

  /**
   * True when the step is kept already: its caller publishes it. False: `kept` will be called, or `failed`, but not before
   * this returned. Throws what a keeper throws that answers at once; then the step never was.
   */
  enter(step: S): boolean {
    if (!this.idle) {
      this.#waiting.push(step);
      return false;
    }
    if (step.commit !== undefined && this.#gather !== undefined) {
      this.#waiting.push(step);
      this.#gather(() => this.#next());
      return false;
    }
    const keeping = step.commit && this.#persist([step.commit]);
    if (keeping === undefined) return true;
    this.#batch = [step];
    this.#await(keeping);
    return false;
  }

  #await(keeping: Promise<void>): void {
    keeping.then(
      () => this.#done(),
      (error: unknown) => this.#fail(error),
    );
  }

  #done(): void {
    for (const step of this.#batch) step.kept();
    this.#next();
  }

  /** Goes on with what has gathered meanwhile. */
  #next(): void {
    for (;;) {
      this.#batch = this.#waiting;
      this.#waiting = [];
      if (this.#batch.length === 0) return;
      try {
        const commits = this.#batch.flatMap(({ commit }) => commit ?? []);
        const keeping = commits.length === 0 ? undefined : this.#persist(commits);
        if (keeping !== undefined) return this.#await(keeping);
      } catch (error) {
        return this.#fail(error);
      }
      for (const step of this.#batch) step.kept();
    }
  }

  #fail(error: unknown): void {
    const steps = this.pending();
    this.#batch = [];
    this.#waiting = [];
    this.#failed(error, steps);
  }
}
