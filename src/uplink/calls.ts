/**
 * Calls over one HTTP/2 session (RFC 9113), whichever side opened the connection. A call is a stream: `POST /NAME`, whose
 * body is a frame with the arguments. The answer is frames of
 *
 * | | |
 * |---|---|
 * | `[0, value]` | the answer; where the call has items, what is known when it has begun |
 * | `[1, item]` | one item, in order |
 * | `[2, error]` | the end: it failed |
 * | `[3]` | the end |
 *
 * HTTP/2 brings what else it takes: many calls on one connection, back-pressure for each (a side that does not read is not
 * sent to), and cancellation (RST_STREAM). An answer that ends without `[2]` or `[3]` was lost on the way.
 */
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  constants,
  type Http2Session,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { Duplex } from 'node:stream';
import * as z from 'zod';
import { encodeFrame, FrameReader, MalformedFrame } from './frames.ts';
import { ErrorMessage, fromErrorMessage, toErrorMessage, UplinkError } from './uplink-error.ts';

/** Bytes as they came, a view of their frame. */
export const Bytes = z.custom<Uint8Array>((value) => value instanceof Uint8Array);

/** One row per call. Both sides check what comes by it. */
export interface CallRow {
  readonly args: z.ZodType;
  readonly answer: z.ZodType;
  /** Of what follows the answer. */
  readonly item?: z.ZodType;
}
export type CallTable = Readonly<Record<string, CallRow>>;

type Of<S> = S extends z.ZodType ? z.infer<S> : never;
export type ArgsOf<T extends CallTable, N extends keyof T> = Of<T[N]['args']>;
export type AnswerOf<T extends CallTable, N extends keyof T> = Of<T[N]['answer']>;
export type ItemOf<T extends CallTable, N extends keyof T> = Of<T[N]['item']>;

export interface CallContext {
  /** Aborted when whoever called does not wait any more. */
  readonly signal: AbortSignal;
}

export interface Begun<A, I> {
  readonly answer: A;
  readonly items: AsyncIterable<I>;
}

/** What answers each call. The result's `items` are sent as fast as they are taken. */
export type Handlers<T extends CallTable> = {
  readonly [N in keyof T]: (
    args: ArgsOf<T, N>,
    context: CallContext,
  ) => Promise<T[N] extends { readonly item: z.ZodType } ? Begun<AnswerOf<T, N>, ItemOf<T, N>> : AnswerOf<T, N>>;
};

const { HTTP2_HEADER_METHOD, HTTP2_HEADER_PATH, HTTP2_HEADER_STATUS, NGHTTP2_CANCEL, NGHTTP2_NO_ERROR } = constants;

/** Of both sides: pages and uploads are sent in large frames. */
export const sessionOptions = {
  maxSessionMemory: 128,
  settings: { initialWindowSize: 1024 * 1024, maxConcurrentStreams: 256, enablePush: false },
} as const;

const AnswerFrame = z.union([
  z.tuple([z.literal(0), z.unknown()]),
  z.tuple([z.literal(1), z.unknown()]),
  z.tuple([z.literal(2), ErrorMessage]),
  z.tuple([z.literal(3)]),
]);
type AnswerFrame = z.infer<typeof AnswerFrame>;

/** MalformedFrame names the field, and never the value. */
export const checked = <S extends z.ZodType>(schema: S, value: unknown, what: string): z.infer<S> => {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw new MalformedFrame(`${what} (${issue?.path.map(String).join('.') || 'the whole'}: ${issue?.code})`);
};

/** Resolves when the stream takes more; rejects when it never will. */
const written = async (stream: ClientHttp2Stream | ServerHttp2Stream, value: unknown): Promise<void> => {
  if (stream.destroyed || stream.writableEnded) throw lost();
  if (stream.write(encodeFrame(value))) return;
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const fail = (): void => reject(lost());
  stream.once('drain', resolve).once('close', fail);
  try {
    await promise;
  } finally {
    stream.off('drain', resolve).off('close', fail);
  }
};

const lost = (cause?: unknown): UplinkError =>
  new UplinkError('UPLINK_LOST', 'the connection ended before the answer came', cause);

async function* valuesOf(
  stream: ClientHttp2Stream | ServerHttp2Stream,
  mostBytes?: number,
  onBytes?: (bytes: number) => void,
): AsyncGenerator<unknown, void> {
  const reader = new FrameReader(mostBytes);
  for await (const chunk of stream) {
    onBytes?.((chunk as Uint8Array).length);
    yield* reader.push(chunk as Uint8Array);
  }
  if (!reader.isBetween) throw lost();
}

// --- whoever calls ---

/** The calls of a table, on a session. Errors: those of the other side, UplinkError, MalformedFrame, the signal's reason. */
export class Caller<T extends CallTable> {
  readonly session: ClientHttp2Session;
  readonly #socket: Duplex;
  readonly #table: T;

  /** `socket`: the session's. */
  constructor(session: ClientHttp2Session, socket: Duplex, table: T) {
    this.session = session;
    this.#socket = socket;
    this.#table = table;
  }

  end(): void {
    endConnection(this.#socket);
  }

  async ask<N extends keyof T & string>(name: N, args: ArgsOf<T, N>, signal?: AbortSignal): Promise<AnswerOf<T, N>> {
    const { answer, items } = await this.begin(name, args, signal);
    for await (const _ of items) throw new MalformedFrame(`an item of "${name}", which has none`);
    return answer;
  }

  /** Resolves with the answer. Who does not read the items to their end returns from the iteration, which ends the call. */
  async begin<N extends keyof T & string>(
    name: N,
    args: ArgsOf<T, N>,
    signal?: AbortSignal,
  ): Promise<Begun<AnswerOf<T, N>, ItemOf<T, N>>> {
    signal?.throwIfAborted();
    const row = this.#table[name]!;
    const stream = this.#open(name);
    const cancel = (): void => stream.close(NGHTTP2_CANCEL);
    signal?.addEventListener('abort', cancel, { once: true });
    stream.once('close', () => signal?.removeEventListener('abort', cancel));
    // Told by the iteration.
    stream.on('error', () => {});
    const frames = framesOf(stream, name, signal);
    try {
      stream.end(encodeFrame(args));
      const first = await frames.next();
      if (first.done === true || first.value[0] !== 0) throw new MalformedFrame(`no answer to "${name}"`);
      const answer = checked(row.answer, first.value[1], `the answer to "${name}"`) as AnswerOf<T, N>;
      return { answer, items: itemsOf(stream, frames, row, name) };
    } catch (error) {
      stream.close(NGHTTP2_CANCEL);
      throw error;
    }
  }

  #open(name: string): ClientHttp2Stream {
    const { session } = this;
    if (session.closed || session.destroyed) throw lost();
    try {
      return session.request({ [HTTP2_HEADER_METHOD]: 'POST', [HTTP2_HEADER_PATH]: `/${name}` }, { endStream: false });
    } catch (error) {
      throw lost(error);
    }
  }
}

/** Frames up to the end, which is checked. */
async function* framesOf(
  stream: ClientHttp2Stream,
  name: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<AnswerFrame, void> {
  try {
    for await (const value of valuesOf(stream)) {
      const frame = checked(AnswerFrame, value, `a frame of the answer to "${name}"`);
      if (frame[0] === 2) throw fromErrorMessage(frame[1]);
      if (frame[0] === 3) return;
      yield frame;
    }
  } catch (error) {
    signal?.throwIfAborted();
    throw isOfStream(error) ? lost(error) : error;
  }
  signal?.throwIfAborted();
  throw lost();
}

/** Node's own errors of a stream or session that ended. */
const isOfStream = (error: unknown): boolean => {
  const { code = '' } = error as NodeJS.ErrnoException;
  return code.startsWith('E') || code === 'ABORT_ERR';
};

async function* itemsOf(
  stream: ClientHttp2Stream,
  frames: AsyncGenerator<AnswerFrame, void>,
  row: CallRow,
  name: string,
): AsyncGenerator<never, void> {
  try {
    for await (const frame of frames) {
      if (frame[0] !== 1 || row.item === undefined) throw new MalformedFrame(`a second answer to "${name}"`);
      yield checked(row.item, frame[1], `an item of "${name}"`) as never;
    }
  } finally {
    stream.close(stream.readableEnded ? NGHTTP2_NO_ERROR : NGHTTP2_CANCEL);
  }
}

// --- whoever answers ---

export interface AnswerOptions<T extends CallTable> {
  readonly table: T;
  readonly handlers: Handlers<T>;
  /** Asked before each call: what it throws is the answer. */
  readonly gate?: (() => void) | undefined;
  /** Of one frame that is taken. */
  readonly mostBytes?: number | undefined;
  /** Of the arguments of all calls that are under way on the session. */
  readonly mostBytesTogether?: number | undefined;
  /** What nobody foresaw, of a call. */
  readonly onBug: (call: string, error: unknown) => void;
}

/** Answers every call of a session until it ends. */
export const answerCalls = <T extends CallTable>(session: ServerHttp2Session, options: AnswerOptions<T>): void => {
  const held: Held = { bytes: 0 };
  session.on('stream', (stream, headers) => {
    stream.on('error', () => {});
    void answer(stream, headers, options, held);
  });
};

/** Arguments of calls of one session that are not answered yet. */
interface Held {
  bytes: number;
}

const answer = async <T extends CallTable>(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  { table, handlers, gate, mostBytes, mostBytesTogether = Number.POSITIVE_INFINITY, onBug }: AnswerOptions<T>,
  held: Held,
): Promise<void> => {
  const name = String(headers[HTTP2_HEADER_PATH]).slice(1);
  const gone = new AbortController();
  stream.once('close', () => gone.abort());
  let own = 0;
  const take = (bytes: number): void => {
    own += bytes;
    held.bytes += bytes;
    if (held.bytes > mostBytesTogether) throw new MalformedFrame('more arguments at once than are taken');
  };
  try {
    stream.respond({ [HTTP2_HEADER_STATUS]: 200 });
    gate?.();
    if (!Object.hasOwn(table, name)) throw new UplinkError('UPLINK_REFUSED', 'there is no such call');
    const row = table[name]!;
    const values = valuesOf(stream, mostBytes, take);
    const first = await values.next();
    if (first.done === true) throw new MalformedFrame(`no arguments of "${name}"`);
    const args = checked(row.args, first.value, `the arguments of "${name}"`) as never;
    const result = await handlers[name as keyof T](args, { signal: gone.signal });
    const begun = row.item === undefined ? undefined : (result as Begun<unknown, unknown>);
    await written(stream, [0, begun === undefined ? (result ?? null) : (begun.answer ?? null)]);
    for await (const item of begun?.items ?? []) await written(stream, [1, item]);
    stream.end(encodeFrame([3]));
  } catch (error) {
    if (stream.destroyed || stream.closed) return;
    const told = error instanceof MalformedFrame ? new UplinkError('UPLINK_REFUSED', error.message) : (error as Error);
    stream.end(encodeFrame([2, toErrorMessage(told, (bug) => onBug(name, bug))]));
  } finally {
    held.bytes -= own;
  }
};

/**
 * Ends a session by its connection, and not before whatever runs now has returned. A session that is destroyed while the end
 * of one of its streams is told takes Node's process with it (nghttp2 goes on in freed memory), and one that says GOAWAY
 * would have its peer do so.
 */
export const endConnection = (socket: Duplex): void => void setImmediate(() => socket.destroy());

/** Has a session that hears nothing end: a peer that is cut off sends no FIN. */
export const keepAlive = (
  session: Http2Session,
  socket: Duplex,
  { everyMs, withinMs }: { readonly everyMs: number; readonly withinMs: number },
): void => {
  let late: NodeJS.Timeout | undefined;
  const timer = setInterval(() => {
    if (late !== undefined || session.destroyed) return;
    // Where this process stood still, the answer may be there already, and is read before what is immediate runs.
    late = setTimeout(() => void setImmediate(() => late !== undefined && endConnection(socket)), withinMs);
    late.unref();
    const asked = session.ping((error) => {
      if (error !== null) return;
      clearTimeout(late);
      late = undefined;
    });
    if (!asked) endConnection(socket);
  }, everyMs);
  timer.unref();
  session.once('close', () => {
    clearInterval(timer);
    clearTimeout(late);
  });
};
