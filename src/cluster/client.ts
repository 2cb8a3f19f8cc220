/**
 * The API for programs of ours. Its types come from the definition of the routes; what it needs of them when it runs is the
 * table below, whose methods and paths the compiler holds to that definition, so that a command starts without loading it.
 */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import type { RouteConfig, z } from '@hono/zod-openapi';
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { type ClientTarget, ConnectionError, type LongBody, readAll, Transport } from './client-transport.ts';
import type { Problem, ProblemCode } from './problem.ts';
import type * as routes from './routes/index.ts';

type Module = typeof routes;
type Routes = {
  [K in keyof Module as Module[K] extends RouteConfig
    ? K extends Module[K]['operationId']
      ? K
      : never
    : never]: Module[K];
};
export type OperationId = keyof Routes;

const table: { readonly [K in OperationId]: readonly [Routes[K]['method'], Routes[K]['path']] } = {
  createVm: ['post', '/v1/vms'],
  listVms: ['get', '/v1/vms'],
  actOnVms: ['post', '/v1/vm-actions'],
  countVms: ['get', '/v1/counts'],
  getVm: ['get', '/v1/vms/{name}'],
  startVm: ['post', '/v1/vms/{name}/start'],
  stopVm: ['post', '/v1/vms/{name}/stop'],
  rebootVm: ['post', '/v1/vms/{name}/reboot'],
  deleteVm: ['delete', '/v1/vms/{name}'],
  getStatistics: ['get', '/v1/vms/{name}/statistics'],
  getTop: ['get', '/v1/vms/{name}/top'],
  renewDevice: ['post', '/v1/vms/{name}/device/renew'],
  getAttachment: ['get', '/v1/vms/{name}/attachment'],
  tellBoot: ['post', '/v1/vms/{name}/boots'],
  getConsole: ['get', '/v1/vms/{name}/console'],
  streamConsole: ['get', '/v1/vms/{name}/console/stream'],
  writeConsole: ['post', '/v1/vms/{name}/console/input'],
  readMetadata: ['get', '/v1/vms/{name}/metadata/{path}'],
  writeMetadata: ['put', '/v1/vms/{name}/metadata/{path}'],
  removeMetadata: ['delete', '/v1/vms/{name}/metadata/{path}'],
  editMetadata: ['post', '/v1/vms/{name}/transactions'],
  exportSpec: ['get', '/v1/vms/{name}/spec'],
  importSpec: ['put', '/v1/vms/{name}/spec'],
  watchMetadata: ['get', '/v1/vms/{name}/changes'],
  getPolicy: ['get', '/v1/vms/{name}/policy'],
  setPolicy: ['put', '/v1/vms/{name}/policy'],
  explainPolicy: ['get', '/v1/vms/{name}/policy/explain'],
  viewPolicy: ['get', '/v1/vms/{name}/policy/view'],
  previewView: ['post', '/v1/vms/{name}/policy/view'],
  previewPolicy: ['post', '/v1/vms/{name}/policy/preview'],
  listOperations: ['get', '/v1/operations'],
  getOperation: ['get', '/v1/operations/{id}'],
  watchOperation: ['get', '/v1/operations/{id}/events'],
  listOperationVms: ['get', '/v1/operations/{id}/vms'],
  cancelOperation: ['post', '/v1/operations/{id}/cancel'],
  queryAudit: ['get', '/v1/audit'],
  followAudit: ['get', '/v1/audit/stream'],
  checkAudit: ['get', '/v1/hosts/{host}/audit/check'],
  listImages: ['get', '/v1/images'],
  uploadFile: ['post', '/v1/uploads'],
  resumeUpload: ['patch', '/v1/uploads/{upload}'],
  findUpload: ['get', '/v1/uploads/{upload}'],
  addImage: ['post', '/v1/images'],
  getImage: ['get', '/v1/images/{image}/{version}'],
  removeImage: ['delete', '/v1/images/{image}/{version}'],
  copyImage: ['post', '/v1/images/{image}/{version}/copy'],
  readImageBlob: ['get', '/v1/images/{image}/{version}/blobs/{digest}'],
  listKeys: ['get', '/v1/keys'],
  createKey: ['post', '/v1/keys'],
  revokeKey: ['delete', '/v1/keys/{id}'],
  listAccounts: ['get', '/v1/accounts'],
  createAccount: ['post', '/v1/accounts'],
  getAccount: ['get', '/v1/accounts/{account}'],
  setQuotas: ['put', '/v1/accounts/{account}/quotas'],
  deleteAccount: ['delete', '/v1/accounts/{account}'],
  listRegions: ['get', '/v1/regions'],
  getRegion: ['get', '/v1/regions/{region}'],
  setRegion: ['put', '/v1/regions/{region}'],
  removeRegion: ['delete', '/v1/regions/{region}'],
  getPrefixes: ['get', '/v1/prefixes'],
  setPrefixes: ['put', '/v1/prefixes'],
  listHosts: ['get', '/v1/hosts'],
  showHost: ['get', '/v1/hosts/{host}'],
  changeHost: ['patch', '/v1/hosts/{host}'],
  drainHost: ['post', '/v1/hosts/{host}/drain'],
  removeHost: ['delete', '/v1/hosts/{host}'],
  createJoinKey: ['post', '/v1/join-keys'],
  listJoinKeys: ['get', '/v1/join-keys'],
  revokeJoinKey: ['delete', '/v1/join-keys/{id}'],
  createBackup: ['post', '/v1/store/backup'],
  rotateKeys: ['post', '/v1/store/rotate'],
  whoAmI: ['get', '/v1/self'],
  getHost: ['get', '/v1/host'],
  getHealth: ['get', '/healthz'],
  getMetrics: ['get', '/metrics'],
  getDocument: ['get', '/openapi.json'],
  getDocsPage: ['get', '/docs'],
};

/** Operations that take an Idempotency-Key. A PUT without a condition may be repeated without one. */
const withKey: ReadonlySet<OperationId> = new Set([
  'createVm',
  'actOnVms',
  'startVm',
  'stopVm',
  'rebootVm',
  'deleteVm',
  'renewDevice',
  'tellBoot',
  'writeMetadata',
  'removeMetadata',
  'editMetadata',
  'importSpec',
  'setPolicy',
  'addImage',
  'copyImage',
  'createKey',
  'removeImage',
  'revokeKey',
  'createAccount',
  'deleteAccount',
  'removeRegion',
  'changeHost',
  'drainHost',
  'removeHost',
  'createJoinKey',
  'revokeJoinKey',
  'rotateKeys',
  'cancelOperation',
] satisfies OperationId[]);

type RequestPart<R, K extends string> = R extends { request: Record<K, infer S extends z.ZodType> }
  ? z.input<S>
  : object;
type JsonBody<R> = R extends {
  request: { body: { content: { 'application/json': { schema: infer S extends z.ZodType } } } };
}
  ? z.input<S>
  : never;
type JsonAt<R, S extends number> = R extends {
  responses: Record<S, { content: { 'application/json': { schema: infer Z extends z.ZodType } } }>;
}
  ? z.output<Z>
  : never;

/** What an operation answers as JSON. */
export type ResultOf<K extends OperationId> = JsonAt<Routes[K], 200> | JsonAt<Routes[K], 201> | JsonAt<Routes[K], 202>;

export interface Input<K extends OperationId> {
  readonly params?: RequestPart<Routes[K], 'params'>;
  readonly query?: Partial<RequestPart<Routes[K], 'query'>>;
  readonly headers?: Partial<RequestPart<Routes[K], 'headers'>>;
  /** An object goes as JSON, a text as YAML, bytes as they are. */
  readonly body?: JsonBody<Routes[K]> | string | Uint8Array;
  readonly signal?: AbortSignal;
}

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

const prepare = <K extends OperationId>(operation: K, { params, query, headers, body, signal }: Input<K>) => {
  const [method, template] = table[operation];
  const values = (params ?? {}) as Readonly<Record<string, string>>;
  const path = template.replaceAll(/\{(\w+)\}/g, (_, name: string) =>
    name === 'path'
      ? (values[name] ?? '').split('/').filter(Boolean).map(encodeURIComponent).join('/')
      : encodeURIComponent(values[name] ?? ''),
  );
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries((query ?? {}) as Record<string, unknown>))
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined) search.append(name, String(one));
  const isPlain = body === undefined || typeof body === 'string' || body instanceof Uint8Array;
  const bytes = body === undefined ? undefined : Buffer.from(isPlain ? (body as Uint8Array) : JSON.stringify(body));
  const hasCondition = Object.keys(headers ?? {}).some((name) => name.startsWith('if-'));
  const takesKey = withKey.has(operation) && (method !== 'put' || hasCondition);
  const type = isPlain
    ? typeof body === 'string'
      ? 'application/yaml'
      : 'application/octet-stream'
    : 'application/json';
  return {
    method: method.toUpperCase(),
    path: search.size === 0 ? path : `${path}?${search.toString()}`,
    headers: {
      ...(bytes && { 'content-type': type }),
      ...(takesKey && { 'idempotency-key': randomUUID() }),
      ...Object.fromEntries(Object.entries(headers ?? {}).filter(([, value]) => value !== undefined)),
    } as Record<string, string>,
    body: bytes,
    signal,
    mayRepeat: takesKey || method === 'get' || (method === 'put' && !hasCondition),
  };
};

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
