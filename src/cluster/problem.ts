/**
 * Every refusal of the API, and the one mapping from what is thrown to what is answered: RFC 9457 problems. A `code` is
 * for programs and never changes its meaning; `detail` is for people and says what to do.
 */
import { z } from '@hono/zod-openapi';
import type { FileProblem, HostError, HostErrorCode } from '../records/index.ts';
import { StoreError } from '../store/index.ts';
import { GlobalStoreAway } from './global-store.ts';

/** Status and title of each code. */
export const problemCodes = {
  BAD_REQUEST: [400, 'The request is not as it must be'],
  BAD_PATH: [400, 'That is no path of a tree'],
  BAD_SPEC: [422, 'The text is not right'],
  BAD_CURSOR: [400, 'That is no cursor of this list'],
  NO_KEY: [401, 'A key is needed'],
  BAD_KEY: [401, 'The key is not valid'],
  FORBIDDEN: [403, 'Not allowed'],
  BAD_HOST: [421, 'The Host header is not one of this server'],
  BAD_ORIGIN: [403, 'Pages of another origin may not use this server'],
  NOT_FOUND: [404, 'There is no such thing'],
  VM_NOT_FOUND: [404, 'There is no such VM'],
  PATH_NOT_FOUND: [404, 'There is no such path in the tree'],
  METHOD_NOT_ALLOWED: [405, 'Not that way'],
  NAME_TAKEN: [409, 'The name is taken'],
  WRONG_STATE: [409, 'Not in this state'],
  IS_DIRECTORY: [409, 'It is a directory'],
  NOT_DIRECTORY: [409, 'It is not a directory'],
  NOT_EMPTY: [409, 'The directory is not empty'],
  IMAGE_IN_USE: [409, 'The image is in use'],
  IN_USE: [409, 'It is in use'],
  QUOTA_EXCEEDED: [409, 'The quota is used up'],
  CONFLICT: [409, 'Something else changed it at the same time'],
  IDEMPOTENCY_BUSY: [409, 'The same request is under way'],
  IDEMPOTENCY_SECRET: [409, 'The request was done before, and its secret is told only once'],
  BURNED: [410, 'The value has been read and is gone'],
  COMPACTED: [410, 'The history asked for is gone'],
  PRECONDITION_FAILED: [412, 'The condition does not hold'],
  TOO_LARGE: [413, 'Too large'],
  WRONG_MEDIA_TYPE: [415, 'Not that media type'],
  IDEMPOTENCY_MISMATCH: [422, 'The idempotency key was used for another request'],
  TOO_MANY_REQUESTS: [429, 'Too many'],
  INTERNAL: [500, 'Something went wrong here'],
  UNSUPPORTED: [501, 'This host is not set up for it'],
  UNAVAILABLE: [503, 'Not possible at present'],
  NO_HOST: [507, 'No host has room for it'],
  FULL: [507, 'There is no room left'],
} as const satisfies Record<string, readonly [number, string]>;

export type ProblemCode = keyof typeof problemCodes;

const FileProblemSchema = z
  .object({
    severity: z.enum(['error', 'warning']),
    line: z.int().openapi({ description: 'From 1; 0 where it is about the text as a whole.' }),
    column: z.int(),
    path: z.string().openapi({ description: 'Where in the document: `policy[2].mode`.' }),
    what: z.string(),
    fix: z.string(),
  })
  .openapi('FileProblem');

export const ProblemSchema = z
  .object({
    type: z.string().openapi({ example: 'urn:porthole:problem:VM_NOT_FOUND' }),
    title: z.string(),
    status: z.int(),
    detail: z.string().openapi({ description: 'For people: what was tried, and what to do.' }),
    code: z.enum(Object.keys(problemCodes) as [ProblemCode, ...ProblemCode[]]).openapi({
      description: 'For programs: never changes its meaning.',
    }),
    requestId: z.string(),
    fields: z
      .array(z.object({ path: z.string(), message: z.string() }))
      .optional()
      .openapi({ description: 'What is wrong with the request, field by field.' }),
    problems: z.array(FileProblemSchema).optional().openapi({ description: 'What is wrong with a YAML text.' }),
    oldestRevision: z.string().optional().openapi({ description: 'With COMPACTED: where a stream can begin.' }),
  })
  .openapi('Problem', { description: 'An error, as of RFC 9457.' });
export type Problem = z.infer<typeof ProblemSchema>;

interface ApiErrorExtra {
  readonly fields?: readonly { readonly path: string; readonly message: string }[] | undefined;
  readonly problems?: readonly FileProblem[] | undefined;
  readonly oldestRevision?: string | undefined;
  readonly retryAfterSeconds?: number | undefined;
  readonly allow?: string | undefined;
}

/** A refusal with its code. `message` is the problem's `detail`. */
export class ApiError extends Error {
  readonly code: ProblemCode;
  readonly extra: ApiErrorExtra;

  constructor(code: ProblemCode, message: string, extra: ApiErrorExtra = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'ApiError';
    this.code = code;
    this.extra = extra;
  }

  get status(): number {
    return problemCodes[this.code][0];
  }
}

const hostCodes = {
  HOST_NO_VM: 'VM_NOT_FOUND',
  HOST_NOT_FOUND: 'PATH_NOT_FOUND',
  HOST_NOT_DIRECTORY: 'NOT_DIRECTORY',
  HOST_IS_DIRECTORY: 'IS_DIRECTORY',
  HOST_NOT_EMPTY: 'NOT_EMPTY',
  HOST_CONDITION_UNMET: 'PRECONDITION_FAILED',
  HOST_TOO_LARGE: 'TOO_LARGE',
  HOST_INVALID: 'BAD_SPEC',
  HOST_BURNED: 'BURNED',
  HOST_COMPACTED: 'COMPACTED',
  HOST_WRONG_STATE: 'WRONG_STATE',
  HOST_UNAVAILABLE: 'UNAVAILABLE',
  HOST_FULL: 'FULL',
  HOST_UNSUPPORTED: 'UNSUPPORTED',
} as const satisfies Record<HostErrorCode, ProblemCode>;

export const isHostError = (error: unknown): error is HostError =>
  error instanceof Error && Object.hasOwn(hostCodes, String((error as { readonly code?: unknown }).code));

/** Total: whatever is thrown becomes an answer. What nobody foresaw is INTERNAL, and says nothing of itself. */
export const toApiError = (error: unknown): ApiError => {
  if (error instanceof ApiError) return error;
  if (isHostError(error)) {
    return new ApiError(
      hostCodes[error.code],
      error.message,
      {
        ...(error.problems && { problems: error.problems }),
        ...(error.oldestRevision !== undefined && { oldestRevision: String(error.oldestRevision) }),
        ...(error.code === 'HOST_UNAVAILABLE' && { retryAfterSeconds: 1 }),
      },
      error,
    );
  }
  if (error instanceof StoreError) {
    if (error.code === 'STORE_FULL')
      return new ApiError('FULL', `${error.message}; free some room, then try again`, {}, error);
    if (error.code === 'STORE_COMPACTED')
      return new ApiError('COMPACTED', 'what the cursor or revision is of has been forgotten; start anew', {}, error);
    if (error instanceof GlobalStoreAway)
      return new ApiError(
        'UNAVAILABLE',
        'the global store, which has accounts, keys, regions, names of images and counts, gives no answer; what is this region’s alone goes on. A change may have taken effect or not: ask again with the same idempotency key',
        { retryAfterSeconds: 1 },
        error,
      );
    if (error.code === 'STORE_UNAVAILABLE')
      return new ApiError(
        'UNAVAILABLE',
        'the store gives no answer; a change may have taken effect or not: ask again with the same idempotency key',
        { retryAfterSeconds: 1 },
        error,
      );
    if (error.code === 'STORE_REFUSED')
      return new ApiError('UNAVAILABLE', error.message, { retryAfterSeconds: 1 }, error);
    if (error.code === 'STORE_CLOSED')
      return new ApiError(
        'UNAVAILABLE',
        'the manager is stopping; try again in a moment',
        { retryAfterSeconds: 1 },
        error,
      );
  }
  return new ApiError('INTERNAL', 'this is a bug or a broken disk; the log says more under the request id', {}, error);
};

export const toProblem = (error: ApiError, requestId: string): Problem => {
  const [status, title] = problemCodes[error.code];
  const { fields, problems, oldestRevision } = error.extra;
  return {
    type: `urn:porthole:problem:${error.code}`,
    title,
    status,
    detail: error.message,
    code: error.code,
    requestId,
    ...(fields && { fields: [...fields] }),
    ...(problems && {
      problems: problems.map(({ severity, line, column, path, what, fix }) => ({
        severity,
        line,
        column,
        path,
        what,
        fix,
      })),
    }),
    ...(oldestRevision !== undefined && { oldestRevision }),
  };
};

export const problemResponse = (error: ApiError, requestId: string): Response => {
  const headers = new Headers({
    'content-type': 'application/problem+json',
    'cache-control': 'no-store',
    'x-request-id': requestId,
  });
  const { retryAfterSeconds, allow } = error.extra;
  if (retryAfterSeconds !== undefined) headers.set('retry-after', String(retryAfterSeconds));
  if (allow !== undefined) headers.set('allow', allow);
  if (error.status === 401) headers.set('www-authenticate', 'Bearer realm="porthole"');
  return new Response(JSON.stringify(toProblem(error, requestId)), { status: error.status, headers });
};
