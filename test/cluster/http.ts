/** Plain HTTP for tests: what is sent is what was said, and answers come back whole. */
import { request as send } from 'node:http';

export interface HttpRequest {
  readonly method?: string;
  readonly path: string;
  readonly socketPath?: string;
  /** `http://127.0.0.1:PORT`, instead of a socket. */
  readonly url?: string | undefined;
  readonly headers?: Readonly<Record<string, string>>;
  /** An object is sent as JSON. */
  readonly body?: string | Uint8Array | object;
  readonly key?: string;
}

export interface HttpAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly bytes: Buffer;
  readonly text: string;
  /** `any`-free: what a test expects is asserted by it. */
  readonly json: Json;
}

/** A JSON value that a test looks into; a missing member is undefined. */
export interface Json {
  readonly [key: string]: Json;
}

export const http = (request: HttpRequest): Promise<HttpAnswer> => {
  const { body, headers = {}, key, method = 'GET', path } = request;
  const isRaw = typeof body === 'string' || body instanceof Uint8Array;
  const bytes = body === undefined ? undefined : isRaw ? body : JSON.stringify(body);
  const to = request.url === undefined ? { socketPath: request.socketPath! } : hostOf(request.url);
  const { promise, resolve, reject } = Promise.withResolvers<HttpAnswer>();
  send(
    {
      ...to,
      method,
      path,
      agent: false,
      headers: {
        ...(body !== undefined && !isRaw && { 'content-type': 'application/json' }),
        ...(bytes !== undefined && { 'content-length': String(Buffer.byteLength(bytes)) }),
        ...(key !== undefined && { authorization: `Bearer ${key}` }),
        ...headers,
      },
    },
    (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () => {
        const all = Buffer.concat(chunks);
        const text = all.toString();
        const isJson = /json/.test(String(response.headers['content-type']));
        resolve({
          status: response.statusCode!,
          headers: response.headers,
          bytes: all,
          text,
          json: (isJson && text !== '' ? JSON.parse(text) : undefined) as Json,
        });
      });
    },
  )
    .on('error', reject)
    .end(bytes);
  return promise;
};

const hostOf = (url: string) => {
  const { hostname, port } = new URL(url);
  return { host: hostname.replace(/^\[|\]$/g, ''), port };
};

export interface ReadEvent {
  readonly event: string;
  readonly id: string | undefined;
  readonly data: Json;
}

/** The first events of a stream; then the connection is closed. */
export const readEvents = (
  { socketPath }: { readonly socketPath: string },
  { path, url, key, headers = {} }: HttpRequest,
  count: number,
): Promise<ReadEvent[]> => {
  const to = url === undefined ? { socketPath } : hostOf(url);
  const { promise, resolve, reject } = Promise.withResolvers<ReadEvent[]>();
  const sending = send(
    {
      ...to,
      path,
      agent: false,
      headers: { ...headers, ...(key !== undefined && { authorization: `Bearer ${key}` }) },
    },
    (response) => {
      if (response.statusCode !== 200) return reject(new Error(`the stream answered ${response.statusCode}`));
      let text = '';
      response.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        const events = parseEvents(text);
        if (events.length < count) return;
        resolve(events.slice(0, count));
        sending.destroy();
      });
      response.on('end', () => resolve(parseEvents(text)));
      response.on('error', (error) => reject(error));
    },
  );
  sending.on('error', reject).end();
  return promise;
};

export const parseEvents = (text: string): ReadEvent[] =>
  text
    .split('\n\n')
    .slice(0, -1)
    .flatMap((block) => {
      const fields = new Map(
        block.split('\n').map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 2)]),
      );
      const event = fields.get('event');
      return event === undefined
        ? []
        : [{ event, id: fields.get('id'), data: JSON.parse(fields.get('data')!) as Json }];
    });
