/** What became of the last mutations of a line of device processes, so that one that is sent again is not applied again. */
import type { Outcome } from '../tree/index.ts';
import { EIO } from '../wire/index.ts';

/** Numbers that are remembered. A device process has half as many underway at most, and numbers them as it sends them. */
const WINDOW = 64;
const refused: Outcome = { errno: EIO, revision: 0, ino: 0 };

export class MutationRecord {
  readonly #outcomes = new Map<number, Outcome>();
  #highest = 0;

  /** The outcome of a number that was seen; a refusal of one that is too old to tell; undefined: it is new. */
  find(sequence: number): Outcome | undefined {
    return this.#outcomes.get(sequence) ?? (sequence <= this.#highest - WINDOW ? refused : undefined);
  }

  remember(sequence: number, outcome: Outcome): void {
    this.#outcomes.set(sequence, outcome);
    this.#highest = Math.max(this.#highest, sequence);
    for (const old of this.#outcomes.keys()) if (old <= this.#highest - WINDOW) this.#outcomes.delete(old);
  }
}
