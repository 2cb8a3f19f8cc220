/** Why this host does not do what a manager asks of it. */
import type { FileProblem, HostErrorCode } from '../records/index.ts';

/** The message says what was tried and what to do, and never quotes a value of a tree. */
export class HostRefusal extends Error {
  readonly code: HostErrorCode;
  readonly problems: readonly FileProblem[] | undefined;
  readonly condition: number | undefined;
  readonly oldestRevision: number | undefined;

  constructor(
    code: HostErrorCode,
    message: string,
    more: {
      readonly problems?: readonly FileProblem[];
      readonly condition?: number;
      readonly oldestRevision?: number;
      readonly cause?: unknown;
    } = {},
  ) {
    super(message, { cause: more.cause });
    this.name = 'HostRefusal';
    this.code = code;
    this.problems = more.problems;
    this.condition = more.condition;
    this.oldestRevision = more.oldestRevision;
  }
}
