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

export class Pipeline<S extends Step> {
  readonly #persist: Persist;
  /** Told of a batch that could not be kept, with the steps that were entered after it. None of them is. */
  readonly #failed: (error: unknown, steps: readonly S[]) => void;
  /** Being kept or published. */
  #batch: readonly S[] = [];
  #waiting: S[] = [];

  constructor(persist: Persist, failed: (error: unknown, steps: readonly S[]) => void) {
    this.#persist = persist;
    this.#failed = failed;
  }

  /** Nothing is under way. */
  get idle(): boolean {
    return this.#batch.length === 0;
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

  /** Publishes the batch, and goes on with what has gathered meanwhile. */
  #done(): void {
    for (;;) {
      for (const step of this.#batch) step.kept();
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
    }
  }

  #fail(error: unknown): void {
    const steps = this.pending();
    this.#batch = [];
    this.#waiting = [];
    this.#failed(error, steps);
  }
}
