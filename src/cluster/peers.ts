/**
 * Managers of other regions. A request that names another region goes on to a manager there, as it came, with who asks: signed
 * with a secret that lies in the global store, which only managers can read. What it may do is decided there, as for every
 * other request.
 */
import { Buffer } from 'node:buffer';
import { createHmac, timingSafeEqual } from 'node:crypto';
import { type ClientRequest, type IncomingMessage, request } from 'node:http';
import { request as tlsRequest } from 'node:https';
import type { Socket } from 'node:net';
import { Readable } from 'node:stream';
import { z } from 'zod';
import { roles, VmScopeRecord } from '../records/index.ts';
import type { Identity } from './identity.ts';
import type { Kit } from './kit.ts';
import { ApiError } from './problem.ts';
import type { Regions } from './regions.ts';
import { isSafeAddress } from './safe-address.ts';

/** Which region a request is for. */
export const regionHeader = 'porthole-region';
const scheme = 'Peer';
const secretKey = 'peersecret';
const secretBytes = 32;
/** How long what was signed may be on its way; clocks of managers differ by less. */
const validMs = 60_000;
const connectMs = 3_000;
/** Nothing comes for so long: streams have a heartbeat. */
const idleMs = 60_000;

/** What goes on with a request. All else is between the client and the manager that it asked. */
const passedOn = [
  'accept',
  'content-type',
  'content-length',
  'if-match',
  'if-none-match',
  'idempotency-key',
  'last-event-id',
] as const;
/** What is not an answer's but its connection's. */
const ofConnection = new Set(['connection', 'keep-alive', 'transfer-encoding', 'x-request-id', 'date']);

const Claim = z.strictObject({
  region: z.string(),
  expiresAtMs: z.int(),
  account: z.string(),
  role: z.enum(roles),
  vms: VmScopeRecord.optional(),
  key: z.string().optional(),
  uid: z.int().optional(),
});

interface PeerRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: IncomingMessage | undefined;
}

export class Peers {
  readonly #kit: Kit;
  readonly #regions: Regions;
  #secret: Buffer | undefined;

  constructor(kit: Kit, regions: Regions) {
    this.#kit = kit;
    this.#regions = regions;
  }

  /** Finds the secret of all managers, or makes it. */
  async open(): Promise<void> {
    const { global, randomBytes } = this.#kit;
    const value = new Uint8Array(randomBytes(secretBytes));
    const conditions = [{ key: secretKey, exists: false }];
    await global.commit({ conditions, operations: [{ type: 'put', key: secretKey, value }] });
    this.#secret = Buffer.from((await global.get(secretKey))!.value);
  }

  isOther(region: string | undefined): region is string {
    return region !== undefined && region !== this.#kit.regionName;
  }

  #sign(text: string): Buffer {
    return createHmac('sha256', this.#secret!).update(text).digest();
  }

  #claim(region: string, { account, role, vms, key, uid }: Identity): string {
    const claim = { region, expiresAtMs: this.#kit.wallMs() + validMs, account, role, vms, key, uid };
    const text = Buffer.from(JSON.stringify(claim satisfies z.input<typeof Claim>)).toString('base64url');
    return `${scheme} ${text}.${this.#sign(text).toString('base64url')}`;
  }

  /** Who asks, as the manager of another region says; undefined when nobody of ours said it, or not just now. */
  identify(authorization: string): Identity | undefined {
    const [, text, signature] = /^Peer ([A-Za-z0-9_-]{1,16384})\.([A-Za-z0-9_-]{43})$/.exec(authorization) ?? [];
    if (text === undefined || signature === undefined) return undefined;
    if (!timingSafeEqual(this.#sign(text), Buffer.from(signature, 'base64url'))) return undefined;
    const claim = Claim.safeParse(JSON.parse(Buffer.from(text, 'base64url').toString()));
    const nowMs = this.#kit.wallMs();
    if (!claim.success || claim.data.region !== this.#kit.regionName) return undefined;
    if (claim.data.expiresAtMs < nowMs || claim.data.expiresAtMs > nowMs + 2 * validMs) return undefined;
    const { account, role, vms, key, uid } = claim.data;
    return { account, role, vms, key, uid, ended: undefined };
  }

  /** The answer of a manager of the region to a request as it came. BAD_REQUEST, UNAVAILABLE, or the reason of the signal. */
  async ask(region: string, identity: Identity, incoming: IncomingMessage, signal: AbortSignal): Promise<Response> {
    const headers: Record<string, string> = {};
    for (const name of passedOn) {
      const value = incoming.headers[name];
      if (typeof value === 'string') headers[name] = value;
    }
    const { url: path = '/', method = 'GET' } = incoming;
    const answer = await this.#answer(region, identity, { method, path, headers, body: incoming }, signal);
    return responseOf(answer, method);
  }

  /** As `ask`, a request of ours without a body, on behalf of that identity. */
  fetch(
    region: string,
    identity: Identity,
    { method, path }: Pick<PeerRequest, 'method' | 'path'>,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    return this.#answer(region, identity, { method, path, headers: {}, body: undefined }, signal);
  }

  /** What a manager of the region answers to a question of this one, on behalf of who asks it. As `ask`. */
  async get(region: string, identity: Identity, path: string, signal: AbortSignal): Promise<Response> {
    return responseOf(await this.fetch(region, identity, { method: 'GET', path }, signal), 'GET');
  }

  async #answer(
    region: string,
    identity: Identity,
    { method, path, headers, body }: PeerRequest,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    const found = await this.#regions.find(region);
    if (found === undefined)
      throw new ApiError('BAD_REQUEST', `there is no region "${region}"; "porthole region ls" lists them`);
    const { authority } = found;
    // Who asks is not told where others can listen, whatever the record says.
    const addresses = found.addresses.filter(isSafeAddress);
    const authorization = this.#claim(region, identity);
    // Which of several is asked first does not matter, as long as it is not always the same.
    const first = Math.floor(Math.random() * addresses.length);
    let cause: unknown;
    for (let i = 0; i < addresses.length; i++) {
      const url = new URL(addresses[(first + i) % addresses.length]!);
      try {
        // The path stays what it is: as a part of a URL, "//HOST/" would be another place to ask.
        const options = { path, method, headers: { ...headers, authorization }, agent: false, signal, timeout: idleMs };
        const sending =
          url.protocol === 'https:' ? tlsRequest(url, { ...options, ca: authority }) : request(url, options);
        await connected(sending, url.protocol === 'https:');
        return await answered(sending, body);
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof NotConnected)) throw this.#away(region, error);
        ({ cause } = error);
      }
    }
    throw this.#away(region, cause);
  }

  #away(region: string, cause: unknown): ApiError {
    this.#kit.log.warn({ err: cause, region }, 'a region does not answer');
    const words = `no manager of the region "${region}" answers`;
    return new ApiError(
      'UNAVAILABLE',
      `${words}; what it has goes on there, and can be asked for when it is connected`,
      {
        retryAfterSeconds: 5,
      },
    );
  }
}

/** Nothing of the request was sent. */
class NotConnected extends Error {}

const connected = async (sending: ClientRequest, isTls: boolean): Promise<void> => {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const failed = (error: Error): void => reject(new NotConnected('not connected', { cause: error }));
  const timer = setTimeout(() => sending.destroy(new Error('no connection in time')), connectMs);
  sending.once('error', failed);
  sending.once('socket', (socket: Socket) => socket.once(isTls ? 'secureConnect' : 'connect', resolve));
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    sending.off('error', failed);
  }
};

const answered = async (sending: ClientRequest, body: IncomingMessage | undefined): Promise<IncomingMessage> => {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  sending.once('response', resolve).on('error', reject);
  sending.once('timeout', () => sending.destroy(new Error('nothing came for a minute')));
  if (body === undefined) sending.end();
  else body.pipe(sending);
  return promise;
};

const responseOf = (answer: IncomingMessage, method: string): Response => {
  const headers = new Headers();
  for (const [name, value] of Object.entries(answer.headers))
    if (typeof value === 'string' && !ofConnection.has(name)) headers.set(name, value);
  const status = answer.statusCode!;
  const hasBody = status !== 204 && status !== 304 && method !== 'HEAD';
  if (!hasBody) answer.resume();
  return new Response(hasBody ? (Readable.toWeb(answer) as ReadableStream<Uint8Array>) : null, { status, headers });
};
