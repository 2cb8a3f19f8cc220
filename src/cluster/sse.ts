/**
 * Server-sent events (WHATWG HTML §9.2) from an iteration: heartbeats while nothing happens, no more in memory than the
 * client takes, an end for clients that take nothing, and the reason in words where a stream can't go on.
 */
import { type ApiError, toApiError, toProblem } from './problem.ts';

export interface ServerEvent {
  readonly event: string;
  /** Where a client that gives it back as `Last-Event-ID` goes on. */
  readonly id?: string | undefined;
  /** Written as JSON. */
  readonly data: unknown;
}

export interface StreamOptions {
  readonly requestId: string;
  /** Ends the stream: the client is gone, its key was revoked, the server closes. */
  readonly signal: AbortSignal;
  /** The client takes nothing any more: cut it off. */
  readonly cutOff: () => void;
  readonly ended: () => void;
  readonly heartbeatMs?: number | undefined;
  /** How long a client may take nothing. */
  readonly stallMs?: number | undefined;
}

const encoder = new TextEncoder();

const encode = ({ event, id, data }: ServerEvent): Uint8Array =>
  encoder.encode(`event: ${event}\n${id === undefined ? '' : `id: ${id}\n`}data: ${JSON.stringify(data)}\n\n`);

const heartbeat = encoder.encode(':\n\n');
/** How long clients wait before they come back. */
const opening = encoder.encode('retry: 1000\n\n');

export const eventStream = (
  events: AsyncIterable<ServerEvent>,
  { requestId, signal, cutOff, ended, heartbeatMs = 15_000, stallMs = 30_000 }: StreamOptions,
): Response => {
  const iterator = events[Symbol.asyncIterator]();
  let stalledSince: number | undefined;
  let beat: NodeJS.Timeout | undefined;
  let isOver = false;
  const over = (): void => {
    if (isOver) return;
    isOver = true;
    clearInterval(beat);
    ended();
    // Its generator's `finally` frees what it holds; nobody waits for it.
    Promise.resolve(iterator.return?.()).catch(() => {});
  };
  const last = (error: unknown): Uint8Array | undefined => {
    const problem: ApiError = toApiError(signal.aborted ? (signal.reason ?? error) : error);
    // Nobody is told of a client that went away, or of a server that closes.
    if (problem.code === 'INTERNAL' && signal.aborted) return undefined;
    return encode({ event: problem.code === 'COMPACTED' ? 'gone' : 'problem', data: toProblem(problem, requestId) });
  };
  const body = new ReadableStream<Uint8Array>(
    {
      start(controller) {
        controller.enqueue(opening);
        beat = setInterval(() => {
          if ((controller.desiredSize ?? 0) > 0) {
            stalledSince = undefined;
            controller.enqueue(heartbeat);
            return;
          }
          stalledSince ??= performance.now();
          if (performance.now() - stalledSince < stallMs) return;
          over();
          cutOff();
        }, heartbeatMs);
        beat.unref();
      },
      async pull(controller) {
        // Asked for when the client has taken some.
        stalledSince = undefined;
        let bytes: Uint8Array | undefined;
        let isLast = false;
        try {
          const next = await iterator.next();
          if (next.done === true) isLast = true;
          else bytes = encode(next.value);
        } catch (error) {
          bytes = last(error);
          isLast = true;
        }
        if (isOver) return;
        if (bytes !== undefined) controller.enqueue(bytes);
        if (!isLast) return;
        over();
        controller.close();
      },
      cancel: over,
    },
    { highWaterMark: 2 },
  );
  return new Response(body, {
    headers: {
      'content-type': 'text/event-stream',
      'cache-control': 'no-store',
      'x-accel-buffering': 'no',
      'x-request-id': requestId,
    },
  });
};
