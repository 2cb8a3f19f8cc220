/** The native API of a metadata server, as a client: requests with an answer, and the one stream. Keeps connections. */
import { type ClientRequest, Agent as HttpAgent, type IncomingMessage, type RequestOptions, request } from 'node:http';
import { Agent as HttpsAgent, request as requestTls } from 'node:https';
import { AgentError } from './agent-error.ts';
import type { StreamLoop } from './fd-stream.ts';
import { GuestPortAgent } from './guest-port.ts';
import { privilegedPort } from './privileged-port.ts';
import type { ServerAddress } from './server-address.ts';

/** A tree has 10,000 nodes of 1 MiB at most by its quota of 16 MiB; what is longer is no answer. */
const ANSWER_BYTES = 256 * 1024 * 1024;
const CONNECTIONS = 32;

export interface Answered {
  readonly status: number;
  /** Parsed JSON, or undefined where there is none. */
  readonly body: unknown;
}

export interface AskOptions {
  readonly token?: string | undefined;
  readonly withinMs: number;
  /** Over a connection of its own from a privileged port, where that is how the server tells. */
  readonly privileged?: boolean;
}

export class ServerClient implements Disposable {
  readonly address: ServerAddress;
  readonly #connections: HttpAgent | HttpsAgent;
  readonly #onBusy: () => void;
  #inFlight = 0;

  /** `loop`: told when work was given to Node; needed where the server is at a port of the guest's own. */
  constructor(address: ServerAddress, loop?: StreamLoop) {
    this.address = address;
    this.#onBusy = () => loop?.yieldToNode();
    const options = { keepAlive: true, maxSockets: CONNECTIONS, scheduling: 'lifo' } as const;
    if (address.guestPort === undefined)
      this.#connections = address.isTls ? new HttpsAgent(options) : new HttpAgent(options);
    else if (loop !== undefined) this.#connections = new GuestPortAgent(address.guestPort, loop, options);
    else throw new AgentError('ADDRESS', `"${address.text}" needs a loop`);
  }

  /** Requests that are not answered. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Rejects with an AgentError `SERVER_UNREACHED`, `SERVER_AWAY` or `SERVER_GARBAGE`; any status is an answer. */
  async ask(method: 'GET' | 'POST', operation: string, input: unknown, options: AskOptions): Promise<Answered> {
    this.#inFlight++;
    try {
      const { response } = await this.#send(method, operation, input, options);
      const text = await textOf(response, options.withinMs);
      if (text === '' || !/^application\/json\b/.test(response.headers['content-type'] ?? ''))
        return { status: response.statusCode ?? 0, body: undefined };
      try {
        return { status: response.statusCode ?? 0, body: JSON.parse(text) };
      } catch {
        throw new AgentError('SERVER_GARBAGE', `the server answered ${operation} with what is no JSON`);
      }
    } finally {
      this.#inFlight--;
    }
  }

  /** The stream of commits after `revision`. The caller reads it to its end, or destroys it. */
  async follow(
    revision: number,
    { token, withinMs }: AskOptions,
  ): Promise<{ readonly stream: IncomingMessage; readonly id: number }> {
    const { response } = await this.#send('GET', `watch?from=${revision}`, undefined, { token, withinMs });
    const { statusCode = 0, headers } = response;
    const id = Number(headers['x-porthole-stream']);
    if (statusCode === 200 && Number.isSafeInteger(id)) return { stream: response, id };
    response.destroy();
    if (statusCode === 401) throw new AgentError('TOKEN_INVALID', "the server does not know this boot's token");
    if (statusCode === 410) throw new AgentError('COMPACTED', `the server has forgotten what came after ${revision}`);
    throw new AgentError('SERVER_AWAY', `the server answered the watch with ${statusCode}`);
  }

  [Symbol.dispose](): void {
    this.#connections.destroy();
  }

  #send(
    method: 'GET' | 'POST',
    operation: string,
    input: unknown,
    { token, withinMs, privileged = false }: AskOptions,
  ): Promise<{ readonly response: IncomingMessage; readonly sent: ClientRequest }> {
    const { promise, resolve, reject } = Promise.withResolvers<{
      readonly response: IncomingMessage;
      readonly sent: ClientRequest;
    }>();
    const { isTls, options, guestPort, text } = this.address;
    const body = input === undefined ? undefined : Buffer.from(JSON.stringify(input));
    const viaPrivileged = privileged && options.socketPath === undefined && guestPort === undefined;
    const requestOptions: RequestOptions = {
      ...options,
      method,
      path: `/porthole/v1/${operation}`,
      agent: viaPrivileged ? false : this.#connections,
      ...(viaPrivileged && { localPort: privilegedPort() }),
      headers: {
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...(body !== undefined && { 'content-type': 'application/json', 'content-length': body.length }),
      },
    };
    const sent = (isTls ? requestTls : request)(requestOptions);
    const away = (why: string, unreached = false): AgentError =>
      new AgentError(unreached ? 'SERVER_UNREACHED' : 'SERVER_AWAY', `asking the server at "${text}" failed: ${why}`);
    const timer = setTimeout(() => sent.destroy(away(`no answer in ${withinMs} ms`)), withinMs);
    sent.once('response', (response) => {
      clearTimeout(timer);
      resolve({ response, sent });
    });
    sent.on('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      reject(error instanceof AgentError ? error : away(error.message, error.syscall === 'connect'));
    });
    sent.end(body);
    this.#onBusy();
    return promise;
  }
}

const textOf = (response: IncomingMessage, withinMs: number): Promise<string> => {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const parts: Buffer[] = [];
  let length = 0;
  const fail = (error: Error): void => {
    clearTimeout(timer);
    response.destroy();
    reject(error);
  };
  const timer = setTimeout(() => fail(new AgentError('SERVER_AWAY', 'the answer of the server did not end')), withinMs);
  response.on('data', (part: Buffer) => {
    length += part.length;
    if (length > ANSWER_BYTES) return fail(new AgentError('SERVER_GARBAGE', 'the answer of the server has no end'));
    return parts.push(part);
  });
  response.once('end', () => {
    clearTimeout(timer);
    resolve(Buffer.concat(parts, length).toString('utf8'));
  });
  const cutShort = (): void => fail(new AgentError('SERVER_AWAY', 'the answer of the server was cut short'));
  response.once('error', cutShort);
  response.once('aborted', cutShort);
  return promise;
};
