/** The API, for pages that it serves itself: its own table and types, by `fetch`, with the session's cookie. */
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { type Input, type OperationId, prepare, type ResultOf } from '../../src/cluster/client-request.ts';
import type { Problem, ProblemCode } from '../../src/cluster/problem.ts';

export type { ResultOf };
export type Vm = ResultOf<'getVm'>;
export type Operation = ResultOf<'getOperation'>;
export type TreeEntry = Extract<ResultOf<'readMetadata'>, { entries: unknown }>['entries'][number];

/** A refusal of the server, or OFFLINE: it could not be asked. `message` is for people. */
export class ApiError extends Error {
  readonly code: ProblemCode | 'OFFLINE' | 'UNEXPECTED';
  readonly status: number;
  readonly problem: Problem | undefined;

  constructor(code: ApiError['code'], message: string, status = 0, problem?: Problem) {
    super(message);
    this.code = code;
    this.status = status;
    this.problem = problem;
  }
}

/** Is told of every answer that says that nobody is signed in (any more). */
let onSignedOut = (): void => {};
export const whenSignedOut = (told: () => void): void => {
  onSignedOut = told;
};

const send = async <K extends OperationId>(
  operation: K,
  input: Input<K>,
  more: Readonly<Record<string, string>>,
): Promise<Response> => {
  const { method, path, headers, body, signal } = prepare(operation, input);
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      headers: { ...headers, 'porthole-console': '1', ...more },
      credentials: 'same-origin',
      redirect: 'error',
      ...(body && { body: body as Uint8Array<ArrayBuffer> }),
      ...(signal && { signal }),
    });
  } catch (error) {
    signal?.throwIfAborted();
    throw new ApiError(
      'OFFLINE',
      `the server does not answer (${error instanceof Error ? error.message : String(error)})`,
    );
  }
  if (answer.ok) return answer;
  const error = await refusal(answer);
  if (error.status === 401 && more['authorization'] === undefined) onSignedOut();
  throw error;
};

const refusal = async (answer: Response): Promise<ApiError> => {
  try {
    const problem = (await answer.json()) as Problem;
    if (typeof problem.code === 'string') return new ApiError(problem.code, problem.detail, answer.status, problem);
  } catch {
    // What is no problem of the API came from something in between.
  }
  return new ApiError(
    'UNEXPECTED',
    `the server answered ${answer.status} in a way that is none of its own`,
    answer.status,
  );
};

/** An answer that is no JSON: bytes, or YAML. ApiError, or the reason of the signal. */
export const ask = <K extends OperationId>(operation: K, input: Input<K>): Promise<Response> =>
  send(operation, input, {});

/** What the operation answers. ApiError, or the reason of the signal. */
export const call = async <K extends OperationId>(operation: K, input: Input<K> = {}): Promise<ResultOf<K>> => {
  const answer = await send(operation, input, {});
  const text = await answer.text();
  return (text === '' ? undefined : JSON.parse(text)) as ResultOf<K>;
};

/** The only request with a key: from then on there is a cookie. ApiError. */
export const signInWith = async (key: string): Promise<ResultOf<'createSession'>> => {
  const answer = await send('createSession', {}, { authorization: `Bearer ${key}` });
  return (await answer.json()) as ResultOf<'createSession'>;
};

export interface ServerEvent {
  readonly event: string;
  readonly id: string | undefined;
  readonly data: unknown;
}

/** Streams have a heartbeat every 15 s. */
const silentMs = 45_000;

/** One stream until it ends or breaks. `opened` is told when it has begun. ApiError, or the reason of the signal. */
export async function* eventsOf<K extends OperationId>(
  operation: K,
  input: Input<K> & { readonly lastEventId?: string | undefined; readonly opened?: () => void },
): AsyncGenerator<ServerEvent> {
  const broken = new AbortController();
  const signal = input.signal ? AbortSignal.any([input.signal, broken.signal]) : broken.signal;
  const more: Record<string, string> = { accept: 'text/event-stream' };
  if (input.lastEventId !== undefined) more['last-event-id'] = input.lastEventId;
  const found: EventSourceMessage[] = [];
  const parser = createParser({ onEvent: (event) => found.push(event) });
  const silence = (): ReturnType<typeof setTimeout> =>
    setTimeout(() => broken.abort(new ApiError('OFFLINE', 'nothing came for a while')), silentMs);
  let timer = silence();
  try {
    const answer = await send(operation, { ...input, signal }, more);
    input.opened?.();
    const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = silence();
      parser.feed(value);
      for (const { event = 'message', id, data } of found.splice(0)) {
        const parsed = JSON.parse(data) as unknown;
        if (event === 'gone' || event === 'problem') throw ofProblem(parsed as Problem);
        yield { event, id, data: parsed };
      }
    }
  } catch (error) {
    input.signal?.throwIfAborted();
    throw error instanceof ApiError ? error : new ApiError('OFFLINE', 'the connection broke');
  } finally {
    clearTimeout(timer);
    broken.abort();
  }
}

const ofProblem = (problem: Problem): ApiError => {
  if (problem.status === 401) onSignedOut();
  return new ApiError(problem.code, problem.detail, problem.status, problem);
};
