/** The API for programs of ours, which start without loading the definition of its routes. */
import type { IncomingMessage } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { type Input, type OperationId, prepare, type ResultOf } from './client-request.ts';
import { type ClientTarget, ConnectionError, type LongBody, readAll, Transport } from './client-transport.ts';
import type { Problem, ProblemCode } from './problem.ts';

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly bytes: Buffer;
}

export interface Download {
  readonly sizeBytes: number;
  readonly chunks: AsyncIterable<Uint8Array>;
}

export interface StreamEvent {
  readonly event: string;
  readonly id: string | undefined;
  readonly data: unknown;
}

/** The server's refusal. */
export class ClientError extends Error {
  readonly code: ProblemCode | 'UNEXPECTED';
  readonly status: number;
  readonly problem: Problem | undefined;
  readonly retryAfterSeconds: number | undefined;

  constructor(status: number, problem: Problem | undefined, retryAfterSeconds?: number) {
    super(problem?.detail ?? `the server answered ${status} in a way that is none of its own`);
    this.name = 'ClientError';
    this.code = problem?.code ?? 'UNEXPECTED';
    this.status = status;
    this.problem = problem;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export interface ClientOptions {
  /** How long to go on trying while the server restarts. Default 10 s. */
  readonly patienceMs?: number | undefined;
  /** Nothing comes for so long: the connection is taken for dead. Default 60 s. */
  readonly idleMs?: number | undefined;
  /** Which region requests are for; default: that of who answers. */
  readonly region?: string | undefined;
}

/** What is downloaded may have to be made first: a copy of a large store on a slow disk. */
const makingMs = 60 * 60_000;
/** Streams have a heartbeat every 15 s. */
const streamIdleMs = 45_000;
const betweenTriesMs = 200;

export class Client implements Disposable {
  readonly #transport: Transport;
  readonly #patienceMs: number;
  readonly #idleMs: number;

  constructor(target: ClientTarget, { patienceMs = 10_000, idleMs = 60_000, region }: ClientOptions = {}) {
    this.#transport = new Transport(target, region === undefined ? {} : { 'porthole-region': region });
    this.#patienceMs = patienceMs;
    this.#idleMs = idleMs;
  }

  /** What the operation answers. ClientError, ConnectionError, or the signal's reason. */
  async call<K extends OperationId>(operation: K, input: Input<K> = {}): Promise<ResultOf<K>> {
    const { bytes } = await this.raw(operation, input);
    return (bytes.length === 0 ? undefined : JSON.parse(bytes.toString())) as ResultOf<K>;
  }

  /**
   * As `call`, the answer as it came. A request that changes something has an Idempotency-Key of its own unless one is given,
   * so that it is tried again when the server went away in the middle, and has its effect once.
   */
  async raw<K extends OperationId>(operation: K, input: Input<K> = {}): Promise<Answer> {
    const prepared = prepare(operation, input);
    const untilMs = performance.now() + this.#patienceMs;
    for (;;) {
      try {
        const answer = await this.#transport.send({ ...prepared, idleMs: this.#idleMs });
        const bytes = await readBody(answer);
        if (answer.statusCode! < 400) return { status: answer.statusCode!, headers: plain(answer), bytes };
        throw refusalOf(answer, bytes);
      } catch (error) {
        const waitMs = prepared.mayRepeat || isUnheard(error) ? retryAfterMs(error) : undefined;
        if (waitMs === undefined || input.signal?.aborted || performance.now() + waitMs > untilMs) throw error;
        await pause(waitMs, undefined, { ...(input.signal && { signal: input.signal }) });
      }
    }
  }

  /**
   * An answer whose bytes are many, as they come. ClientError, ConnectionError (also while it is read, when less came than was
   * told), or the signal's reason. Leaving the iteration ends it.
   */
  async download<K extends OperationId>(operation: K, input: Input<K> = {}): Promise<Download> {
    const answer = await this.#transport.send({ ...prepare(operation, input), idleMs: makingMs });
    answer.setTimeout(this.#idleMs);
    if (answer.statusCode! >= 400) throw refusalOf(answer, await readBody(answer));
    return { sizeBytes: Number(answer.headers['content-length']), chunks: readChunks(answer, input.signal) };
  }

  /** Sends a file to an operation that takes one, once and as it comes. ClientError, ConnectionError, or the signal's reason. */
  async upload<K extends 'uploadFile' | 'resumeUpload'>(
    operation: K,
    body: LongBody,
    input: Input<K> = {},
  ): Promise<ResultOf<K>> {
    const prepared = prepare(operation, input);
    const headers = { ...prepared.headers, 'content-type': 'application/octet-stream' };
    const answer = await this.#transport.send({ ...prepared, headers, body, idleMs: this.#idleMs });
    const bytes = await readBody(answer);
    if (answer.statusCode! >= 400) throw refusalOf(answer, bytes);
    return JSON.parse(bytes.toString()) as ResultOf<K>;
  }

  /**
   * The events of a stream. After a break it goes on after the last event, losing and repeating none; it ends with the
   * signal (then it throws its reason) or after an event for which `isLast` says so. ClientError when the server says that it
   * cannot go on (COMPACTED: read anew).
   */
  async *events<K extends OperationId>(
    operation: K,
    input: Input<K> & {
      readonly isLast?: (event: StreamEvent) => boolean;
      readonly lastEventId?: string;
      /** Told when the stream has begun, when it broke, and when it goes on. */
      readonly onConnection?: (isThere: boolean) => void;
    } = {},
  ): AsyncGenerator<StreamEvent, void> {
    const { isLast, signal, onConnection } = input;
    let lastId = input.lastEventId;
    for (let silentSinceMs = performance.now(); ; ) {
      try {
        const prepared = prepare(operation, input);
        const headers = {
          ...prepared.headers,
          accept: 'text/event-stream',
          ...(lastId !== undefined && { 'last-event-id': lastId }),
        };
        const answer = await this.#transport.send({ ...prepared, headers, idleMs: streamIdleMs });
        if (answer.statusCode !== 200) throw refusalOf(answer, await readBody(answer));
        onConnection?.(true);
        for await (const event of parseEvents(answer)) {
          silentSinceMs = performance.now();
          if (event.event === 'gone' || event.event === 'problem') throw ofProblem(event.data as Problem);
          yield event;
          lastId = event.id ?? lastId;
          if (isLast?.(event) === true) return;
        }
      } catch (error) {
        if (signal?.aborted) throw signal.reason;
        if (retryAfterMs(error) === undefined || performance.now() - silentSinceMs > this.#patienceMs) throw error;
      }
      signal?.throwIfAborted();
      onConnection?.(false);
      await pause(betweenTriesMs, undefined, { ...(signal && { signal }) });
    }
  }

  /** Waits for the end of an operation, telling what it says meanwhile. */
  async finished(
    id: string,
    {
      signal,
      told,
    }: { readonly signal?: AbortSignal; readonly told?: (operation: ResultOf<'getOperation'>) => void } = {},
  ): Promise<ResultOf<'getOperation'>> {
    const isOver = ({ state }: ResultOf<'getOperation'>): boolean => state !== 'pending' && state !== 'running';
    let last: ResultOf<'getOperation'> | undefined;
    const input = { params: { id }, ...(signal && { signal }) };
    for await (const { data } of this.events('watchOperation', {
      ...input,
      isLast: (event) => isOver(event.data as ResultOf<'getOperation'>),
    })) {
      last = data as ResultOf<'getOperation'>;
      told?.(last);
    }
    return last!;
  }

  [Symbol.dispose](): void {
    this.#transport[Symbol.dispose]();
  }
}

const plain = (answer: IncomingMessage): Record<string, string | undefined> =>
  Object.fromEntries(
    Object.entries(answer.headers).map(([name, value]) => [name, Array.isArray(value) ? value.join(', ') : value]),
  );

/** The rest of an answer; a connection that breaks in it is like one that broke before. */
const readBody = async (answer: IncomingMessage): Promise<Buffer> => {
  try {
    return await readAll(answer);
  } catch (error) {
    throw new ConnectionError('the connection broke in the middle of an answer', false, error);
  }
};

async function* readChunks(answer: IncomingMessage, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  try {
    for await (const chunk of answer) yield chunk as Buffer;
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw answer.errored ? new ConnectionError('the connection broke in the middle of an answer', false, error) : error;
  } finally {
    answer.destroy();
  }
}

const ofProblem = (problem: Problem, retryAfterSeconds?: number): ClientError =>
  new ClientError(problem.status, problem, retryAfterSeconds);

const refusalOf = (answer: IncomingMessage, bytes: Buffer): ClientError => {
  const retryAfter = Number(answer.headers['retry-after']);
  const seconds = Number.isFinite(retryAfter) ? retryAfter : undefined;
  try {
    const problem = JSON.parse(bytes.toString()) as Problem;
    if (typeof problem.code === 'string') return ofProblem(problem, seconds);
  } catch {
    // What is no problem of the API came from something in between.
  }
  return new ClientError(answer.statusCode!, undefined, seconds);
};

/** Nothing of the request can have happened. */
const isUnheard = (error: unknown): boolean =>
  error instanceof ConnectionError ? error.isRefused : error instanceof ClientError && error.code === 'UNAVAILABLE';

/** How long to wait before the same request may be tried again; undefined: it would not help. */
const retryAfterMs = (error: unknown): number | undefined => {
  if (error instanceof ConnectionError) return isOfTls(error.cause) ? undefined : betweenTriesMs;
  if (error instanceof ClientError && (error.code === 'UNAVAILABLE' || error.code === 'IDEMPOTENCY_BUSY'))
    return (error.retryAfterSeconds ?? 1) * 1000;
  return undefined;
};

/** A certificate or a protocol that is wrong stays so. */
const isOfTls = (error: unknown): boolean =>
  /^(ERR_(TLS|SSL)_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH|EPROTO$|HPE_)/.test(
    (error as { readonly code?: string } | undefined)?.code ?? '',
  );

async function* parseEvents(answer: IncomingMessage): AsyncGenerator<StreamEvent> {
  const found: EventSourceMessage[] = [];
  const parser = createParser({ onEvent: (event) => found.push(event) });
  const decoder = new TextDecoder();
  try {
    for await (const chunk of answer) {
      parser.feed(decoder.decode(chunk as Buffer, { stream: true }));
      for (const { event, id, data } of found.splice(0))
        yield { event: event ?? 'message', id, data: JSON.parse(data) as unknown };
    }
  } catch (error) {
    if (answer.errored) throw new ConnectionError('the stream broke', false, error);
    throw error;
  } finally {
    answer.destroy();
  }
}
