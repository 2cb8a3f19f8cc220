/** Reads a request's body, as long as it may be, or reads it away. */
import type { IncomingMessage } from 'node:http';
import { Rejection } from './limits.ts';

/** Rejection 413 for one that is longer or says that it will be; 400 when it ends early. */
export const readBody = (request: IncomingMessage, maxBytes: number): Promise<Uint8Array> => {
  const tooLong = new Rejection(413, 'body-size', `a body here has at most ${maxBytes} bytes`);
  if (Number(request.headers['content-length'] ?? 0) > maxBytes) return Promise.reject(tooLong);
  const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
  const parts: Buffer[] = [];
  let length = 0;
  request.on('data', (part: Buffer) => {
    length += part.length;
    if (length <= maxBytes) parts.push(part);
    else reject(tooLong);
  });
  request.once('end', () => resolve(Buffer.concat(parts)));
  for (const event of ['error', 'close'] as const)
    request.once(event, () => reject(new Rejection(400, 'malformed', 'the body ended before its end')));
  return promise;
};

/** How long the rest of a body that nobody wants is waited for. */
const DRAIN_MS = 2_000;

/** Resolves once a body has ended, of which nothing is kept, or is too long or too slow. */
export const drained = async (request: IncomingMessage, maxBytes: number): Promise<void> => {
  if (request.complete || request.destroyed) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, DRAIN_MS);
  let length = 0;
  request.on('data', (part: Buffer) => {
    length += part.length;
    if (length > maxBytes) resolve();
  });
  for (const event of ['end', 'error', 'close'] as const) request.once(event, () => resolve());
  await promise;
  clearTimeout(timer);
};
