/** A metadata server over a tree in this process, asked over streams that are no sockets, or over TCP. */
import { randomBytes } from 'node:crypto';
import { Agent, type ClientRequest, type IncomingHttpHeaders, request } from 'node:http';
import { type Duplex, duplexPair } from 'node:stream';
import {
  type Channel,
  MetadataServer,
  type MetadataServerOptions,
  TokenDesk,
  type TokenEvent,
  tokenStoreInMemory,
} from '../../src/imds/index.ts';
import { Replica } from '../../src/tree/index.ts';
import { World, type WorldSpec } from '../tree/world.ts';

export interface Answered {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export interface Asked {
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array;
}

export class Stage implements AsyncDisposable {
  readonly world: World;
  readonly server: MetadataServer;
  readonly tokens: TokenDesk;
  readonly events: TokenEvent[] = [];
  readonly errors: unknown[] = [];
  readonly #agents = new Map<boolean, Agent>();
  #leave: () => void;

  private constructor(world: World, options: Partial<MetadataServerOptions>) {
    this.world = world;
    this.tokens = new TokenDesk({
      store: tokenStoreInMemory(),
      onEvent: (event) => this.events.push(event) > 0,
      randomBytes,
      monotonicMs: world.clock.monotonicMs,
      wallMs: world.clock.wallMs,
    });
    const replica = new Replica();
    this.#leave = world.authority.subscribe('metadata', (delta) => replica.apply(delta));
    const secret = randomBytes(32);
    this.server = new MetadataServer({
      vm: 'test',
      replica,
      commit: (mutation, way, sequence, settle) => world.authority.commit(mutation, way, 'metadata', sequence, settle),
      audit: world.sink,
      clock: world.clock,
      tokens: this.tokens,
      sessionSecret: () => secret,
      onError: (error) => this.errors.push(error),
      ...options,
    });
  }

  static async start(spec: WorldSpec, options: Partial<MetadataServerOptions> = {}): Promise<Stage> {
    const stage = new Stage(new World(spec), options);
    await stage.tokens.boot('boot-1');
    return stage;
  }

  /** One end of a connection whose other end the server has. */
  connect(channel: Channel = { kind: 'vsock', privileged: true }): Duplex {
    const [ours, theirs] = duplexPair();
    // As with sockets: the end of one is that of the other.
    ours.once('close', () => theirs.destroy());
    theirs.once('close', () => ours.destroy());
    this.server.accept(theirs, channel);
    return ours;
  }

  request(path: string, { method = 'GET', headers = {}, body }: Asked = {}, privileged = true): ClientRequest {
    let agent = this.#agents.get(privileged);
    if (agent === undefined) {
      agent = new Agent({ keepAlive: true, maxSockets: 8 });
      const chained = function chained(this: unknown): unknown {
        return this;
      };
      // What an agent of node:http asks of its sockets.
      const socketLike = {
        setKeepAlive: chained,
        setNoDelay: chained,
        setTimeout: chained,
        ref: chained,
        unref: chained,
      };
      const connect = (): Duplex => Object.assign(this.connect({ kind: 'vsock', privileged }), socketLike);
      Object.assign(agent, { createConnection: connect });
      this.#agents.set(privileged, agent);
    }
    const sent = request({ path, method, headers, agent });
    sent.end(body);
    return sent;
  }

  ask(path: string, asked: Asked = {}, privileged = true): Promise<Answered> {
    const { promise, resolve, reject } = Promise.withResolvers<Answered>();
    const sent = this.request(path, asked, privileged);
    sent.once('error', reject);
    sent.once('response', (response) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part));
      response.once('error', reject);
      response.once('end', () => {
        const { statusCode: status = 0, headers } = response;
        resolve({ status, headers, body: Buffer.concat(parts).toString() });
      });
    });
    return promise;
  }

  /** A request of the native API. */
  async native(
    operation: string,
    body: unknown,
    token: string | undefined,
    privileged = true,
  ): Promise<Answered & { readonly json: Record<string, unknown> }> {
    const answered = await this.ask(
      `/porthole/v1/${operation}`,
      {
        method: body === undefined ? 'GET' : 'POST',
        headers: {
          ...(body !== undefined && { 'content-type': 'application/json' }),
          ...(token !== undefined && { authorization: `Bearer ${token}` }),
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      },
      privileged,
    );
    const isJson = answered.headers['content-type'] === 'application/json';
    return { ...answered, json: isJson ? (JSON.parse(answered.body) as Record<string, unknown>) : {} };
  }

  /** This boot's token. */
  async token(nonce = 'n'.repeat(22)): Promise<string> {
    const { json } = await this.native('token', { nonce }, undefined);
    return json['token'] as string;
  }

  /** A session of EC2's. */
  async ec2(path: string): Promise<Answered> {
    const session = await this.ask('/latest/api/token', {
      method: 'PUT',
      headers: { 'x-aws-ec2-metadata-token-ttl-seconds': '60' },
    });
    return this.ask(path, { headers: { 'x-aws-ec2-metadata-token': session.body } });
  }

  gce(path: string): Promise<Answered> {
    return this.ask(path, { headers: { 'metadata-flavor': 'Google' } });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const agent of this.#agents.values()) agent.destroy();
    await this.server[Symbol.asyncDispose]();
    this.#leave();
  }
}
