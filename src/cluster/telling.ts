/** How far an operation is, as the store has it: written now and then, one after the other. */
import type { OperationRecord, Progress } from '../records/index.ts';
import type { Condition } from '../store/index.ts';
import type { Kit } from './kit.ts';
import type { Operations } from './operations.ts';

/** Between two writes. */
const progressMs = 500;

export class Telling {
  readonly #kit: Kit;
  readonly #operations: Operations;
  readonly #operation: OperationRecord;
  readonly #conditions: readonly Condition[];
  #toldAtMs = 0;
  #telling: Promise<unknown> = Promise.resolve();

  /** `conditions`: that it is still this one's to tell of. */
  constructor(kit: Kit, operations: Operations, operation: OperationRecord, conditions: readonly Condition[] = []) {
    this.#kit = kit;
    this.#operations = operations;
    this.#operation = operation;
    this.#conditions = conditions;
  }

  readonly progress = ({ step, done, total }: Progress): void => {
    const now = this.#kit.wallMs();
    if (now - this.#toldAtMs < progressMs && now >= this.#toldAtMs) return;
    this.#toldAtMs = now;
    this.#telling = this.#tell(this.#telling, { step, done, ...(total ? { total } : {}) });
    // A progress that could not be written is made up for by the end, whose failure is told.
    this.#telling.catch(() => {});
  };

  /** Nothing more is written when it resolves. */
  async end(): Promise<void> {
    await this.#telling.catch(() => {});
  }

  async #tell(before: Promise<unknown>, change: Partial<OperationRecord>): Promise<void> {
    await before;
    const { operations } = await this.#operations.change(this.#operation, change);
    await this.#kit.region.commit({ conditions: this.#conditions, operations });
  }
}
