/** Errors that cross the uplink keep their code and what belongs to it; all else becomes "it failed there". */
import * as z from 'zod';
import type { FileProblem, HostErrorCode } from '../records/index.ts';
import { StoreError, type StoreErrorCode } from '../store/index.ts';

export type UplinkErrorCode =
  /** The connection ended before the answer: whether what was asked for happened is not known. */
  | 'UPLINK_LOST'
  /** The other side refuses: it does not know the call, or its arguments make no sense to it. */
  | 'UPLINK_REFUSED'
  /** The other side failed, and says so in its own log. */
  | 'UPLINK_FAILED';

export class UplinkError extends Error {
  readonly code: UplinkErrorCode;

  constructor(code: UplinkErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'UplinkError';
    this.code = code;
  }
}

/** A refusal of a host, as it comes to the manager that asked. */
export class RemoteRefusal extends Error {
  readonly code: HostErrorCode;
  readonly problems: readonly FileProblem[] | undefined;
  readonly condition: number | undefined;
  readonly oldestRevision: number | undefined;

  constructor(
    code: HostErrorCode,
    message: string,
    more: { problems?: readonly FileProblem[]; condition?: number; oldestRevision?: number } = {},
  ) {
    super(message);
    this.name = 'RemoteRefusal';
    this.code = code;
    this.problems = more.problems;
    this.condition = more.condition;
    this.oldestRevision = more.oldestRevision;
  }
}

const hostCodes = {
  HOST_NO_VM: true,
  HOST_NOT_FOUND: true,
  HOST_NOT_DIRECTORY: true,
  HOST_IS_DIRECTORY: true,
  HOST_NOT_EMPTY: true,
  HOST_CONDITION_UNMET: true,
  HOST_TOO_LARGE: true,
  HOST_INVALID: true,
  HOST_BURNED: true,
  HOST_COMPACTED: true,
  HOST_WRONG_STATE: true,
  HOST_UNAVAILABLE: true,
  HOST_FULL: true,
  HOST_UNSUPPORTED: true,
} as const satisfies Record<HostErrorCode, true>;

const storeCodes = {
  STORE_LOCKED: true,
  STORE_DAMAGED: true,
  STORE_FOREIGN: true,
  STORE_TOO_NEW: true,
  STORE_MISSING: true,
  STORE_EXISTS: true,
  STORE_EXPOSED: true,
  STORE_FULL: true,
  STORE_CLOSED: true,
  STORE_INVALID: true,
  STORE_DENIED: true,
  STORE_REFUSED: true,
  STORE_UNAVAILABLE: true,
  STORE_CUT_OFF: true,
  STORE_COMPACTED: true,
  STORE_LEASE_GONE: true,
  STORE_KEY_MISSING: true,
  STORE_KEY_EXPOSED: true,
  STORE_KEY_INVALID: true,
  STORE_KEY_WRONG: true,
  STORE_FAILED: true,
} as const satisfies Record<StoreErrorCode, true>;

const uplinkCodes = { UPLINK_LOST: true, UPLINK_REFUSED: true, UPLINK_FAILED: true } as const satisfies Record<
  UplinkErrorCode,
  true
>;

const names = <T extends object>(codes: T): [keyof T & string, ...(keyof T & string)[]] =>
  Object.keys(codes) as [keyof T & string, ...(keyof T & string)[]];

export const FileProblemMessage = z.object({
  severity: z.enum(['error', 'warning']),
  line: z.int().nonnegative(),
  column: z.int().nonnegative(),
  path: z.string(),
  what: z.string(),
  fix: z.string(),
});

const mostMessageLength = 16 * 1024;
const mostProblems = 1000;

export const ErrorMessage = z.object({
  code: z.enum([...names(hostCodes), ...names(storeCodes), ...names(uplinkCodes)]),
  message: z.string().max(mostMessageLength),
  problems: z.array(FileProblemMessage).max(mostProblems).optional(),
  condition: z.int().nonnegative().optional(),
  oldestRevision: z.int().nonnegative().optional(),
});
export type ErrorMessage = z.infer<typeof ErrorMessage>;

const isOf = <T extends object>(codes: T, code: unknown): code is keyof T =>
  typeof code === 'string' && Object.hasOwn(codes, code);

/** Whoever asked is told of it in these words; anything else belongs into a log. */
const isForeseen = (error: unknown): error is Error & ErrorMessage => {
  if (!(error instanceof Error)) return false;
  const { code } = error as Partial<ErrorMessage>;
  return isOf(hostCodes, code) || isOf(storeCodes, code) || isOf(uplinkCodes, code);
};

/** Total. What nobody foresaw says nothing of itself, and is told to `onBug`. */
export const toErrorMessage = (error: unknown, onBug: (error: unknown) => void): ErrorMessage => {
  if (!isForeseen(error)) {
    onBug(error);
    return { code: 'UPLINK_FAILED', message: 'the other side of the uplink failed; its log says why' };
  }
  const { code, message, problems, condition, oldestRevision } = error;
  return {
    code,
    message: message.slice(0, mostMessageLength),
    ...(problems && { problems: problems.slice(0, mostProblems) }),
    ...(condition !== undefined && { condition }),
    ...(oldestRevision !== undefined && { oldestRevision }),
  };
};

export const fromErrorMessage = ({ code, message, problems, condition, oldestRevision }: ErrorMessage): Error => {
  if (isOf(hostCodes, code))
    return new RemoteRefusal(code, message, {
      ...(problems && { problems }),
      ...(condition !== undefined && { condition }),
      ...(oldestRevision !== undefined && { oldestRevision }),
    });
  return isOf(storeCodes, code)
    ? new StoreError(code, message, undefined, oldestRevision)
    : new UplinkError(code, message);
};
