/** The API as commands ask it: requests that are repeated until they are answered, streams that go on after a break. */
import { randomUUID } from 'node:crypto';
import { type ClientRequest, type IncomingMessage, type RequestOptions, request as requestHttp } from 'node:http';
import { request as requestHttps } from 'node:https';
import { setTimeout as pause } from 'node:timers/promises';
import { createParser } from 'eventsource-parser';
import type { Problem } from '../cluster/index.ts';
import { Unreachable, unreachable } from './unreachable.ts';
import { addressText, type Where } from './where.ts';

/** The API refused. */
export class ApiProblem extends Error {
  readonly problem: Problem;

  constructor(problem: Problem, message = problem.detail) {
    super(message);
    this.name = 'ApiProblem';
    this.problem = problem;
  }

  get code(): string {
    return this.problem.code;
  }
}

type Query = Readonly<Record<string, string | number | boolean | readonly (string | number)[] | undefined>>;

export interface Ask {
  readonly query?: Query | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
  /** Bytes go as they are, text as YAML, anything else as JSON. */
  readonly body?: unknown;
  /** False: when the connection breaks, it is not known whether it was done, and not tried again. */
  readonly isRepeatable?: boolean | undefined;
}

export interface Reply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly bytes: Uint8Array;
}

export interface StreamEvent {
  readonly event: string;
  readonly id: string | undefined;
  readonly data: unknown;
}

export interface StreamAsk {
  readonly query?: Query | undefined;
  readonly lastEventId?: string | undefined;
  /** Told when the connection was lost, and when there is one again. */
  readonly onBreak?: ((isBack: boolean) => void) | undefined;
}

/** A daemon that restarts is away for so long at most. */
const restartMs = 10_000;
const retryMs = 300;
const silentMs = 60_000;
/** Of a stream: three heartbeats. */
const stalledMs = 50_000;

export class Api {
  readonly #where: Where;
  readonly #signal: AbortSignal;

  /** @param signal ends every request and stream */
  constructor(where: Where, signal: AbortSignal) {
    this.#where = where;
    this.#signal = signal;
  }

  /** The same API under another signal: to clean up after an interruption. */
  under(signal: AbortSignal): Api {
    return new Api(this.#where, signal);
  }

  /** Its JSON. `path` is encoded already: see `pathOf`. */
  async get<T>(path: string, query?: Query): Promise<T> {
    return jsonOf((await this.ask('GET', path, { query })).bytes) as T;
  }

  async post<T>(path: string, body?: unknown): Promise<T> {
    return jsonOf((await this.ask('POST', path, { body })).bytes) as T;
  }

  /** Throws `ApiProblem`, `Unreachable`, or the reason of the signal. What changes something has its effect once. */
  async ask(method: 'GET' | 'POST' | 'PUT' | 'DELETE', path: string, ask: Ask = {}): Promise<Reply> {
    const idempotencyKey = method === 'GET' ? undefined : randomUUID();
    let giveUpMs: number | undefined;
    for (;;) {
      try {
        return await this.#once(method, path, ask, idempotencyKey);
      } catch (error) {
        const isBusy = error instanceof ApiProblem && error.code === 'IDEMPOTENCY_BUSY';
        // A connection that was never there is told at once; one that broke is tried again.
        const isBroken = error instanceof Unreachable && (isReset(error.cause) || giveUpMs !== undefined);
        if ((!isBusy && !isBroken) || ask.isRepeatable === false) throw error;
        giveUpMs ??= performance.now() + restartMs;
        if (performance.now() > giveUpMs) throw error;
        await pause(retryMs, undefined, { signal: this.#signal });
      }
    }
  }

  /** The pages of a list, one after another. */
  async *pages<T>(path: string, query: Query = {}): AsyncGenerator<T, void, undefined> {
    let cursor: string | undefined;
    do {
      const page: unknown = await this.get(path, { ...query, cursor });
      yield page as Awaited<T>;
      cursor = (page as { readonly next?: string }).next;
    } while (cursor !== undefined);
  }

  /**
   * Server-sent events, none lost and none twice over breaks of the connection. Resolves when the stream has begun; throws
   * then, or in the iteration, what the server says of it. Never ends by itself: leave it.
   */
  async stream(path: string, ask: StreamAsk = {}): Promise<AsyncIterable<StreamEvent>> {
    const first = await this.#open(path, ask, ask.lastEventId);
    return this.#events(first, path, ask);
  }

  async *#events(first: IncomingMessage, path: string, ask: StreamAsk): AsyncGenerator<StreamEvent> {
    let response = first;
    let lastEventId = ask.lastEventId;
    for (;;) {
      try {
        for await (const event of eventsOf(response)) {
          if (event.event === 'problem' || event.event === 'gone') throw new ApiProblem(event.data as Problem);
          lastEventId = event.id ?? lastEventId;
          yield event;
        }
      } catch (error) {
        this.#signal.throwIfAborted();
        if (error instanceof ApiProblem && !isPassing(error)) throw error;
      } finally {
        response.destroy();
      }
      this.#signal.throwIfAborted();
      ask.onBreak?.(false);
      response = await this.#reopen(path, ask, lastEventId);
      ask.onBreak?.(true);
    }
  }

  async #reopen(path: string, ask: StreamAsk, lastEventId: string | undefined): Promise<IncomingMessage> {
    for (;;) {
      await pause(retryMs, undefined, { signal: this.#signal });
      try {
        return await this.#open(path, ask, lastEventId);
      } catch (error) {
        if (!(error instanceof Unreachable || (error instanceof ApiProblem && isPassing(error)))) throw error;
      }
    }
  }

  async #open(path: string, { query }: StreamAsk, lastEventId: string | undefined): Promise<IncomingMessage> {
    const headers = { accept: 'text/event-stream', ...(lastEventId !== undefined && { 'last-event-id': lastEventId }) };
    const response = await this.#send('GET', path, { query, headers }, stalledMs);
    if (response.statusCode === 200) return response;
    throw problemOf(response, await bytesOf(response));
  }

  async #once(method: string, path: string, ask: Ask, idempotencyKey: string | undefined): Promise<Reply> {
    const headers = { ...ask.headers, ...(idempotencyKey !== undefined && { 'idempotency-key': idempotencyKey }) };
    const response = await this.#send(method, path, { ...ask, headers }, silentMs);
    let bytes: Uint8Array;
    try {
      bytes = await bytesOf(response);
    } catch (error) {
      this.#signal.throwIfAborted();
      throw unreachable(this.#where.address, error);
    }
    const { statusCode: status = 0 } = response;
    if (status >= 300 && status !== 304) throw problemOf(response, bytes);
    return { status, headers: response.headers as Reply['headers'], bytes };
  }

  #send(method: string, path: string, ask: Ask, timeoutMs: number): Promise<IncomingMessage> {
    const { address, key } = this.#where;
    const { type, bytes } = bodyOf(ask.body);
    const options: RequestOptions = {
      method,
      path: path + queryText(ask.query),
      headers: {
        ...ask.headers,
        ...(bytes !== undefined && { 'content-type': type, 'content-length': bytes.length }),
        ...(key !== undefined && { authorization: `Bearer ${key}` }),
      },
      signal: this.#signal,
      // One request a command, or a few: a connection each leaves nothing that keeps the process alive.
      agent: false,
    };
    return new Promise((resolve, reject) => {
      let request: ClientRequest;
      if (address.kind === 'unix')
        request = requestHttp({ ...options, socketPath: address.path, host: 'localhost', setDefaultHeaders: true });
      else request = (address.url.protocol === 'https:' ? requestHttps : requestHttp)(address.url, options);
      request.setTimeout(timeoutMs, () => request.destroy(new Error(`no answer within ${timeoutMs / 1000} s`)));
      request.once('response', resolve);
      request.on('error', (error) => {
        reject(this.#signal.aborted ? this.#signal.reason : unreachable(address, error));
      });
      request.end(bytes);
    });
  }

  /** For messages: no secret is in it. */
  get address(): string {
    return addressText(this.#where.address);
  }
}

/** A path of the API, each part encoded. */
export const pathOf = (parts: TemplateStringsArray, ...names: readonly string[]): string =>
  parts.reduce((path, part, i) => path + encodeURIComponent(names[i - 1]!) + part);

/** Absolute path of a tree, as it goes behind `/metadata/`. */
export const treePathOf = (path: string): string =>
  path
    .split('/')
    .filter((name) => name !== '')
    .map(encodeURIComponent)
    .join('/');

const queryText = (query: Query = {}): string => {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value === undefined) continue;
    for (const one of Array.isArray(value) ? value : [value]) parameters.append(name, String(one));
  }
  return parameters.size === 0 ? '' : `?${parameters}`;
};

const bodyOf = (body: unknown): { readonly type: string; readonly bytes: Uint8Array | undefined } => {
  if (body === undefined) return { type: '', bytes: undefined };
  if (body instanceof Uint8Array) return { type: 'application/octet-stream', bytes: body };
  if (typeof body === 'string') return { type: 'application/yaml', bytes: new TextEncoder().encode(body) };
  return { type: 'application/json', bytes: new TextEncoder().encode(JSON.stringify(body)) };
};

const bytesOf = async (response: IncomingMessage): Promise<Uint8Array> => {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
};

export const jsonOf = (bytes: Uint8Array): unknown => JSON.parse(new TextDecoder().decode(bytes));

const problemOf = (response: IncomingMessage, bytes: Uint8Array): Error => {
  if (/^application\/problem\+json\b/.test(response.headers['content-type'] ?? ''))
    return new ApiProblem(jsonOf(bytes) as Problem);
  const { server: name } = response.headers;
  const server = name === undefined ? '' : ` ("${name}")`;
  return new Error(
    `what answered is not Porthole${server}, it says ${response.statusCode}; check --api and PORTHOLE_API`,
  );
};

const isReset = (error: unknown): boolean => {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ECONNRESET' || code === 'EPIPE';
};

/** The server is stopping or overloaded: another try may do. */
const isPassing = ({ problem }: ApiProblem): boolean => problem.status >= 500 && problem.code !== 'UNSUPPORTED';

async function* eventsOf(response: IncomingMessage): AsyncGenerator<StreamEvent> {
  const ready: StreamEvent[] = [];
  const parser = createParser({
    onEvent: ({ event = 'message', id, data }) => ready.push({ event, id, data: JSON.parse(data) }),
  });
  const decoder = new TextDecoder();
  for await (const chunk of response) {
    parser.feed(decoder.decode(chunk as Buffer, { stream: true }));
    yield* ready.splice(0);
  }
}
