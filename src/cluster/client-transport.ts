/** One request of the client: over the unix socket or TCP, and the answer's head with its body still to be read. */
import { Agent, type ClientRequest, type IncomingMessage, request } from 'node:http';
import { Agent as TlsAgent, request as tlsRequest } from 'node:https';

/** Where the server is: its socket on this machine, or an address with a key. */
export type ClientTarget =
  | { readonly socketPath: string }
  | {
      /** `https://HOST:PORT`, or `http://` on loopback. */
      readonly url: string;
      /** `ph_ID_SECRET`. */
      readonly key: string;
      /** PEM, where the server's certificate is signed by nobody whom this machine trusts. */
      readonly ca?: string | undefined;
    };

/** Sent when the server says that it takes it. Not read at all when it refuses. */
export interface LongBody {
  readonly sizeBytes: number;
  readonly chunks: AsyncIterable<Uint8Array>;
}

export interface TransportRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | LongBody | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Nothing comes for so long: the connection is taken for dead. */
  readonly idleMs: number;
}

/** The server could not be reached, or the connection broke before an answer came. */
export class ConnectionError extends Error {
  readonly code = 'CONNECTION_FAILED';
  /** No byte of the request can have been handled. */
  readonly isRefused: boolean;

  constructor(message: string, isRefused: boolean, cause: unknown) {
    super(message, { cause });
    this.name = 'ConnectionError';
    this.isRefused = isRefused;
  }
}

export class Transport implements Disposable {
  readonly #target: ClientTarget;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #agent: Agent;

  /** @param headers of every request */
  constructor(target: ClientTarget, headers: Readonly<Record<string, string>> = {}) {
    this.#target = target;
    this.#headers = headers;
    const isTls = 'url' in target && target.url.startsWith('https:');
    this.#agent = isTls
      ? new TlsAgent({ keepAlive: true, ...(target.ca && { ca: target.ca }) })
      : new Agent({ keepAlive: true });
  }

  /** ConnectionError, or the reason of the signal. */
  send({ method, path, headers, body, signal, idleMs }: TransportRequest): Promise<IncomingMessage> {
    const target = this.#target;
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const common = {
      method,
      path,
      agent: this.#agent,
      headers: { ...this.#headers, ...headers, ...headersOf(body) },
      ...(signal && { signal }),
      timeout: idleMs,
    };
    let sending: ReturnType<typeof request>;
    if ('socketPath' in target) sending = request({ ...common, socketPath: target.socketPath, host: 'localhost' });
    else {
      const url = new URL(path, target.url);
      const options = { ...common, headers: { ...common.headers, authorization: `Bearer ${target.key}` } };
      sending = url.protocol === 'https:' ? tlsRequest(url, options) : request(url, options);
    }
    sending.on('response', resolve);
    sending.on('timeout', () => sending.destroy(new Error(`nothing came for ${idleMs / 1000} s`)));
    sending.on('error', (error: NodeJS.ErrnoException) => {
      if (signal?.aborted) return reject(signal.reason as Error);
      const isRefused = error.code === 'ECONNREFUSED' || error.code === 'ENOENT';
      reject(new ConnectionError(this.#words(error), isRefused, error));
    });
    if (body === undefined || body instanceof Uint8Array) sending.end(body);
    else sendLong(sending, body, reject);
    return promise;
  }

  #words({ code, message }: NodeJS.ErrnoException): string {
    const target = this.#target;
    const where = 'socketPath' in target ? `"${target.socketPath}"` : target.url;
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return `nobody listens at ${where}; is \`porthole up\` running?`;
    if (code === 'EACCES') return `you may not use ${where}; ask for the group of --socket-group, or use a key`;
    return `asking ${where} failed: ${code ?? message}`;
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }
}

const headersOf = (body: TransportRequest['body']): Record<string, string> => {
  if (body === undefined) return {};
  if (body instanceof Uint8Array) return { 'content-length': String(body.length) };
  // A connection of its own: what is left unsent of a body would be taken for the next request.
  return { 'content-length': String(body.sizeBytes), expect: '100-continue', connection: 'close' };
};

/** Node reports a connection that breaks by itself; a body that cannot be read is the caller's own error. */
const sendLong = (sending: ClientRequest, { chunks }: LongBody, reject: (error: unknown) => void): void => {
  const send = async (): Promise<void> => {
    for await (const chunk of chunks) {
      if (sending.destroyed) return;
      if (!sending.write(chunk)) await drained(sending);
    }
    sending.end();
  };
  sending.once('continue', () => {
    send().catch((error: unknown) => {
      reject(error);
      sending.destroy();
    });
  });
  sending.once('response', (answer) => answer.once('close', () => sending.destroy()));
  sending.flushHeaders();
};

/** Or closed: then there is nothing to wait for. */
const drained = (sending: ClientRequest): Promise<void> =>
  new Promise((resolve) => {
    const goOn = (): void => {
      sending.off('drain', goOn).off('close', goOn);
      resolve();
    };
    sending.on('drain', goOn).on('close', goOn);
  });

export const readAll = async (answer: IncomingMessage): Promise<Buffer> => {
  const chunks: Buffer[] = [];
  for await (const chunk of answer) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
};
