/**
 * Calls to the members of one etcd: each goes to the member that answered last, the next one to another when that fails.
 * `call` sends nothing twice; `ask` is for what may happen twice.
 */
import { isIP } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { checkServerIdentity, type PeerCertificate } from 'node:tls';
import {
  Client,
  type ClientDuplexStream,
  credentials as grpcCredentials,
  Metadata,
  type MethodDefinition,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import { StoreError } from './error.ts';
import { methodOf, type Streams, type Unary } from './etcd-schema.ts';

export interface EtcdTls {
  /** PEM: who signed the members' certificates. */
  readonly ca: Buffer;
  /** PEM: of ours, where members want one. */
  readonly client?: { readonly cert: Buffer; readonly key: Buffer } | undefined;
}

export interface EtcdPassword {
  readonly user: string;
  readonly password: string;
}

export interface EtcdClientOptions {
  /** Each "HOST:PORT". */
  readonly endpoints: readonly string[];
  readonly tls?: EtcdTls | undefined;
  readonly password?: EtcdPassword | undefined;
  /** How long one member may take for one call. Default 5 s. */
  readonly callMs?: number | undefined;
  /** How long members are asked, one after the other, before it is said that there is none. Default 30 s. */
  readonly patienceMs?: number | undefined;
}

/** No answer, or one that does not say whether anything happened: whatever was asked may have, or may yet happen. */
export class EtcdLost extends Error {
  constructor(message: string, cause: unknown) {
    super(message, { cause });
    this.name = 'EtcdLost';
  }
}

/** etcd said no: nothing happened. */
export class EtcdRefused extends Error {
  readonly status: number;

  constructor({ code, details }: ServiceError) {
    super(details);
    this.name = 'EtcdRefused';
    this.status = code;
  }
}

/** What etcd says, as in `api/v3rpc/rpctypes/error.go`. */
export const refusals = {
  compacted: /required revision has been compacted/,
  future: /required revision is a future revision/,
  leaseGone: /requested lease not found/,
  leaseExists: /lease already exists/,
} as const;

export const isRefusal = (error: unknown, refusal: RegExp): boolean =>
  error instanceof EtcdRefused && refusal.test(error.message);

/** An answer that is longer than `answerBytes`: ask for less. */
export const isTooLong = (error: unknown): boolean =>
  error instanceof EtcdRefused && /Received message larger than max/.test(error.message);

/** A piece of a watch has at most 2 MiB (rpc.proto, `fragment`); a value at most 1 MiB. */
const answerBytes = 16 * 1024 * 1024;

const channelOptions = {
  'grpc.max_receive_message_length': answerBytes,
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 2_000,
  // Members take it ill when they are asked more often than every 5 s.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 0,
  // No proxy of the environment is told the password, or any key.
  'grpc.enable_http_proxy': 0,
  // So that two stores in one process do not share a connection that one of them closes.
  'grpc.use_local_subchannel_pool': 1,
};

const tokenGone = /invalid auth token|revision of auth store is old/;

/** What says that the call itself is wrong, and another member would say so too. */
const finalStatuses: ReadonlySet<number> = new Set([
  status.INVALID_ARGUMENT,
  status.NOT_FOUND,
  status.ALREADY_EXISTS,
  status.PERMISSION_DENIED,
  status.FAILED_PRECONDITION,
  status.OUT_OF_RANGE,
  status.UNIMPLEMENTED,
  status.UNAUTHENTICATED,
]);

const fromService = (error: ServiceError, endpoint: string): Error => {
  if (error.code === status.RESOURCE_EXHAUSTED) {
    if (/database space exceeded/.test(error.details)) return full(error);
    return /too many requests/.test(error.details)
      ? new EtcdLost(`the etcd member ${endpoint} is too busy`, error)
      : new EtcdRefused(error);
  }
  if (finalStatuses.has(error.code)) return new EtcdRefused(error);
  return new EtcdLost(`the etcd member ${endpoint} gave no answer: ${error.details}`, error);
};

const full = (cause: unknown): StoreError =>
  new StoreError(
    'STORE_FULL',
    'etcd refuses to grow: its database has reached its quota; compact and defragment it, or raise --quota-backend-bytes, then run: etcdctl alarm disarm',
    cause,
  );

/** What is left when nobody above knows the refusal by name. */
export const refused = (error: EtcdRefused, action: string): StoreError => {
  const say = (why: string): StoreError => new StoreError('STORE_REFUSED', `${action} failed: ${why}`, error);
  if (error.status === status.PERMISSION_DENIED)
    return say("etcd's user may not do it; grant its role readwrite on the whole prefix of the store");
  if (/authentication failed/.test(error.message))
    return say('etcd does not know this user, or the password is another; look at the file with the credentials');
  if (/authentication is not enabled/.test(error.message))
    return say('etcd has no authentication; enable it, or give no file with credentials');
  if (/user name is empty/.test(error.message))
    return say('etcd wants a user and a password; give a file with credentials');
  return say(`etcd says "${error.message}"`);
};

/** Between two tries; doubled each time up to the second. */
const pauseMs = { first: 20, most: 500 };

/** Bounds how long one is asked again who gives no answer. */
export class Patience {
  readonly #untilMs: number;
  readonly #signal: AbortSignal | undefined;
  #pauseMs = pauseMs.first;

  constructor(ms: number, signal?: AbortSignal) {
    this.#untilMs = performance.now() + ms;
    this.#signal = signal;
  }

  get leftMs(): number {
    return Math.max(0, this.#untilMs - performance.now());
  }

  /** After a failure: resolves when to try again. What it is given, unless that is EtcdLost; STORE_UNAVAILABLE. */
  async after(error: unknown, consequence: string): Promise<void> {
    if (!(error instanceof EtcdLost)) throw error;
    this.#signal?.throwIfAborted();
    if (performance.now() > this.#untilMs)
      throw new StoreError(
        'STORE_UNAVAILABLE',
        `${error.message}; ${consequence}. See that a majority of the members run and are reached`,
        error,
      );
    try {
      await pause(this.#pauseMs * (0.5 + Math.random() / 2), undefined, { signal: this.#signal });
    } catch (aborted) {
      throw this.#signal?.reason ?? aborted;
    }
    this.#pauseMs = Math.min(pauseMs.most, this.#pauseMs * 2);
  }
}

const clientOf = (endpoint: string, tls: EtcdTls | undefined): Client => {
  if (tls === undefined) return new Client(endpoint, grpcCredentials.createInsecure(), channelOptions);
  const host = endpoint.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  const [key, cert] = [tls.client?.key ?? null, tls.client?.cert ?? null];
  if (isIP(host) === 0) return new Client(endpoint, grpcCredentials.createSsl(tls.ca, key, cert), channelOptions);
  // grpc-js asks for the address by name, which Node refuses (RFC 6066 §3); the certificate is for the address still.
  const checkIdentity = (_name: string, certificate: PeerCertificate): Error | undefined =>
    checkServerIdentity(host, certificate);
  const credentials = grpcCredentials.createSsl(tls.ca, key, cert, { checkServerIdentity: checkIdentity });
  return new Client(endpoint, credentials, { ...channelOptions, 'grpc.ssl_target_name_override': 'etcd.invalid' });
};

interface Member {
  readonly endpoint: string;
  readonly client: Client;
}

export interface EtcdStream<Request, Response> {
  send(request: Request): void;
  /** The next message; EtcdLost when there is none any more. What is not taken is not read from the network either. */
  next(): Promise<Response>;
  close(): void;
}

export class EtcdClient {
  readonly patienceMs: number;
  readonly #members: readonly Member[];
  readonly #password: EtcdPassword | undefined;
  readonly callMs: number;
  #current = 0;
  #token: Promise<string> | undefined;
  #closed = false;

  constructor({ endpoints, tls, password, callMs = 5_000, patienceMs = 30_000 }: EtcdClientOptions) {
    this.#members = endpoints.map((endpoint) => ({ endpoint, client: clientOf(endpoint, tls) }));
    this.#password = password;
    this.callMs = callMs;
    this.patienceMs = patienceMs;
  }

  /** One try. EtcdLost, EtcdRefused; StoreError STORE_FULL, STORE_CLOSED; the reason of an aborted signal. */
  async call<M extends keyof Unary>(name: M, request: Unary[M][0], signal?: AbortSignal): Promise<Unary[M][1]> {
    signal?.throwIfAborted();
    try {
      return await this.#send(name, request, await this.#metadata(signal), signal);
    } catch (error) {
      if (!this.noteTokenGone(error)) throw error;
      return this.#send(name, request, await this.#metadata(signal), signal);
    }
  }

  /** Again, until a member answers: for what may happen twice. As `call`, and STORE_UNAVAILABLE instead of EtcdLost. */
  async ask<M extends keyof Unary>(name: M, request: Unary[M][0], signal?: AbortSignal): Promise<Unary[M][1]> {
    const patience = new Patience(this.patienceMs, signal);
    for (;;) {
      try {
        return await this.call(name, request, signal);
      } catch (error) {
        await patience.after(error, 'nothing was read');
      }
    }
  }

  /** A stream to one member. Errors come from `next`. */
  async open<M extends keyof Streams>(
    name: M,
    signal?: AbortSignal,
  ): Promise<EtcdStream<Streams[M][0], Streams[M][1]>> {
    signal?.throwIfAborted();
    const metadata = await this.#metadata(signal);
    const member = this.#member();
    const { path, requestSerialize, responseDeserialize } = methodOf(name);
    const call = member.client.makeBidiStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      metadata,
    ) as ClientDuplexStream<Streams[M][0], Streams[M][1]>;
    const messages = call[Symbol.asyncIterator]() as AsyncIterator<Streams[M][1]>;
    return {
      send: (request) => call.write(request),
      next: async () => {
        try {
          const { value, done } = await messages.next();
          if (done !== true) return value;
          throw new EtcdLost(`the etcd member ${member.endpoint} ended the stream`, undefined);
        } catch (error) {
          throw this.#failed(error, member);
        }
      },
      close: () => {
        // What is cancelled emits an error that nobody waits for any more.
        call.on('error', () => {});
        call.cancel();
      },
    };
  }

  /** The next call goes to another member: this one answers, but not what it should. */
  turnAway(): void {
    this.#current = (this.#current + 1) % this.#members.length;
  }

  /** Whether etcd did nothing because the token ran out: the next call gets another. */
  noteTokenGone(error: unknown): boolean {
    if (this.#password === undefined || !tokenGone.test((error as Error).message)) return false;
    this.#token = undefined;
    return true;
  }

  get endpoints(): readonly string[] {
    return this.#members.map(({ endpoint }) => endpoint);
  }

  close(): void {
    this.#closed = true;
    for (const { client } of this.#members) client.close();
  }

  #member(): Member {
    if (this.#closed) throw new StoreError('STORE_CLOSED', 'the store is closed');
    return this.#members[this.#current]!;
  }

  #failed(error: unknown, member: Member): Error {
    if (this.#closed) return new StoreError('STORE_CLOSED', 'the store is closed');
    if (typeof (error as Partial<ServiceError>).code !== 'number') return error as Error;
    const failure = fromService(error as ServiceError, member.endpoint);
    if (failure instanceof EtcdLost && this.#member() === member) this.turnAway();
    return failure;
  }

  async #metadata(signal: AbortSignal | undefined): Promise<Metadata> {
    const metadata = new Metadata();
    // A member that has lost the others says so at once, and does not leave us waiting.
    metadata.set('hasleader', 'true');
    if (this.#password === undefined) return metadata;
    this.#token ??= this.#authenticate(this.#password);
    const token = this.#token;
    try {
      metadata.set('token', await token);
    } catch (error) {
      if (this.#token === token) this.#token = undefined;
      throw error;
    }
    signal?.throwIfAborted();
    return metadata;
  }

  async #authenticate({ user, password }: EtcdPassword): Promise<string> {
    return (await this.#send('Authenticate', { name: user, password }, new Metadata())).token;
  }

  #send<M extends keyof Unary>(
    name: M,
    request: Unary[M][0],
    metadata: Metadata,
    signal?: AbortSignal,
  ): Promise<Unary[M][1]> {
    signal?.throwIfAborted();
    const member = this.#member();
    const { path, requestSerialize, responseDeserialize } = methodOf(name) as unknown as MethodDefinition<
      Unary[M][0],
      Unary[M][1]
    >;
    const { promise, resolve, reject } = Promise.withResolvers<Unary[M][1]>();
    const deadline = Date.now() + this.callMs;
    const call = member.client.makeUnaryRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      metadata,
      { deadline },
      (error, answer) => {
        signal?.removeEventListener('abort', abort);
        if (error === null) resolve(answer!);
        else reject(signal?.aborted === true ? signal.reason : this.#failed(error, member));
      },
    );
    const abort = (): void => call.cancel();
    signal?.addEventListener('abort', abort, { once: true });
    return promise;
  }
}
