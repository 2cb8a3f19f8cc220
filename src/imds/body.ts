/** Reads a request's body, as long as it may be. */
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
    if (length <= maxBytes) return parts.push(part);
    request.pause();
    return reject(tooLong);
  });
  request.once('end', () => resolve(Buffer.concat(parts)));
  for (const event of ['error', 'close'] as const)
    request.once(event, () => reject(new Rejection(400, 'malformed', 'the body ended before its end')));
  return promise;
};
