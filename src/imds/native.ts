/** The native API of a metadata server: for the agent in the guest, which has this boot's token and says who asks. */
import type * as z from 'zod';
import type { Mutation, Outcome, Replica, Settle, TreeFileSystem } from '../tree/index.ts';
import { EACCES, EIO, ENOENT, EPERM, ESTALE, errnoName } from '../wire/index.ts';
import { type RateLimits, Rejection, type RejectReason, type ServerLimits } from './limits.ts';
import type { Channel } from './metadata-server.ts';
import {
  type Answer,
  answerBytes,
  batchInput,
  batchLimits,
  byName,
  isRefusal,
  type NativeContext,
  type NativeRoute,
} from './native-routes.ts';
import { inputs } from './native-schemas.ts';
import { nodeJson } from './node-json.ts';
import { openApiDocument } from './openapi.ts';
import { failure, notAllowed, notFound, plain, type Reply, type Request, type StreamReply } from './reply.ts';
import type { TokenDesk } from './token.ts';
import { Watch } from './watch.ts';

export interface NativeApiOptions {
  readonly vm: string;
  readonly replica: Replica;
  readonly fileSystem: TreeFileSystem;
  readonly commit: (mutation: Mutation, sequence: number | undefined, settle: Settle) => void;
  readonly tokens: TokenDesk;
  readonly rates: RateLimits;
  readonly limits: ServerLimits;
  readonly onReject: (reason: RejectReason) => void;
}

const claimBytes = 1024;
const appliedBytes = 1024;
/** Foreign bytes as a value that a schema has passed; a `Rejection` 400 says where it has not. */
export const parseBody = <S extends z.ZodType>(schema: S, bytes: Uint8Array): z.output<S> => {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw new Rejection(400, 'malformed', 'the body is no JSON');
  }
  return checked(schema, value);
};

const checked = <S extends z.ZodType>(schema: S, value: unknown): z.output<S> => {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0]!;
  // Of the message only what the schema says: a value may be a secret.
  throw new Rejection(400, 'malformed', `${path.join('.') || 'the body'}: ${message.slice(0, 200)}`);
};

export class NativeApi implements Disposable {
  readonly #options: NativeApiOptions;
  readonly #watch: Watch;
  readonly #context: NativeContext;
  readonly #stopHolding: () => void;

  constructor(options: NativeApiOptions) {
    this.#options = options;
    this.#watch = new Watch(options.replica, options.limits.heartbeatMs);
    // What agents have open is not known here: a file without a name lives until the agent says "forget", or is gone.
    this.#stopHolding = options.replica.unlinked.ask(() => this.#watch.streams > 0);
    this.#context = {
      replica: options.replica,
      fileSystem: options.fileSystem,
      commit: (mutation, sequence) => new Promise<Outcome>((resolve) => options.commit(mutation, sequence, resolve)),
    };
  }

  applied(revision: number, withinMs: number): Promise<boolean> {
    return this.#watch.applied(revision, withinMs);
  }

  /** Of a boot that is over: nothing is open in the guest any more. */
  endStreams(): void {
    this.#watch.endStreams();
    this.#options.fileSystem.dropUnlinked();
  }

  [Symbol.dispose](): void {
    this.#stopHolding();
    this.#watch[Symbol.dispose]();
  }

  /** Of a path below `/porthole`. Throws a `Rejection`. */
  async answer(request: Request, channel: Channel): Promise<Reply | StreamReply> {
    const [, version, operation, rest] = request.names;
    if (version !== 'v1' || request.names.length > 4 || request.endsInSlash) return notFound;
    const name = rest === undefined ? operation : `${operation}/${rest}`;
    if (name === 'openapi.json') {
      this.#options.rates.anonymous();
      return request.method === 'GET' ? json(openApiDocument()) : notAllowed('GET');
    }
    if (name === 'token') return request.method === 'POST' ? this.#claim(request, channel) : notAllowed('POST');
    const method = name === 'tree' || name === 'watch' ? 'GET' : 'POST';
    const route = byName.get(name ?? '');
    if (route === undefined && !['tree', 'watch', 'token/return', 'applied', 'batch'].includes(name ?? ''))
      return notFound;
    if (request.method !== method) return notAllowed(method);
    const token = await this.#authenticate(request);
    const { rates, tokens } = this.#options;
    switch (name) {
      case 'token/return':
        return (await tokens.handBack(token)) ? json({}) : failure(401);
      case 'applied': {
        const { stream, revision } = parseBody(inputs.applied, await this.#body(request, appliedBytes));
        return this.#watch.acknowledge(stream, revision) ? json({}) : notFound;
      }
    }
    rates.bytes();
    const reply = await this.#answer(name, route, request);
    if (reply.body !== undefined) rates.spent(reply.body.length);
    return reply;
  }

  async #answer(
    name: string | undefined,
    route: NativeRoute | undefined,
    request: Request,
  ): Promise<Reply | StreamReply> {
    switch (name) {
      case 'tree':
        this.#options.rates.agent(undefined);
        return this.#tree(request);
      case 'watch':
        this.#options.rates.agent(undefined);
        return this.#follow(request);
      case 'batch':
        return this.#batch(parseBody(batchInput, await this.#spentBody(request)), request);
      default: {
        const input = parseBody(route!.input, await this.#spentBody(request));
        request.hold(answerBytes(route!));
        return replyOf(await this.#run(route!, input));
      }
    }
  }

  async #spentBody(request: Request): Promise<Uint8Array> {
    const { limits, rates } = this.#options;
    const body = await this.#body(request, limits.bodyBytes);
    rates.spent(body.length);
    return body;
  }

  #body(request: Request, maxBytes: number): Promise<Uint8Array> {
    if (request.header('content-type')?.split(';')[0]?.trim() !== 'application/json')
      throw new Rejection(415, 'malformed', 'a body here is application/json');
    return request.body(maxBytes);
  }

  async #claim(request: Request, channel: Channel): Promise<Reply> {
    const { tokens, rates, onReject } = this.#options;
    // What nobody asks for must not hold up the agent's claim.
    if (channel.privileged) rates.agent(undefined);
    else rates.anonymous();
    if (request.header('content-type')?.split(';')[0]?.trim() !== 'application/json')
      throw new Rejection(415, 'malformed', 'a body here is application/json');
    // Before its body is looked at: who may not ask learns nothing.
    if (!channel.privileged)
      throw new Rejection(403, 'not-privileged', 'the token is given out on privileged channels only');
    const { nonce } = parseBody(inputs.claim, await request.body(claimBytes));
    const claim = await tokens.claim(nonce, channel.kind, channel.privileged);
    if ('token' in claim) return json({ token: claim.token, boot: tokens.currentBoot });
    if (claim.refused === 'malformed')
      throw new Rejection(400, 'malformed', 'nonce: 22 to 128 of A-Z, a-z, 0-9, "_" and "-"');
    if (claim.refused === 'no-boot')
      throw new Rejection(503, 'no-boot', 'no boot of this machine was told of; tell of it, then ask again');
    onReject('token-taken');
    return failure(409, "this boot's token was given out");
  }

  /** The token, if it is this boot's. */
  async #authenticate(request: Request): Promise<string> {
    const { tokens, rates } = this.#options;
    const token = /^Bearer ([\w-]{1,128})$/.exec(request.header('authorization') ?? '')?.[1];
    if (token !== undefined && (await tokens.verify(token))) return token;
    // An orderly stop may have to say twice that it hands its token back.
    if (token !== undefined && request.names[3] === 'return' && (await tokens.handBack(token))) return token;
    rates.anonymous();
    throw new Rejection(401, token === undefined ? 'no-token' : 'bad-token', "this needs this boot's token");
  }

  async #run(route: NativeRoute, input: unknown): Promise<Answer> {
    const { caller } = input as { readonly caller?: { readonly uid: number } };
    this.#options.rates.agent(caller?.uid);
    return route.run(this.#context, input);
  }

  /** One after the other, each decided by itself; what comes after a refusal, or after too long an answer, is not tried. */
  async #batch({ requests }: z.output<typeof batchInput>, request: Request): Promise<Reply> {
    const checkedRequests = requests.map(({ operation, input }) => {
      const route = byName.get(operation)!;
      return { route, input: checked(route.input, input) };
    });
    request.hold(batchLimits.mostBytes);
    const results: string[] = [];
    let bytes = 0;
    for (const { route, input } of checkedRequests) {
      const answer = await this.#run(route, input);
      const result = JSON.stringify(isRefusal(answer) ? { errno: errnoName(answer) } : answer);
      results.push(result);
      bytes += result.length;
      if (isRefusal(answer) || bytes >= batchLimits.answerBytes) break;
    }
    return plain(`{"results":[${results.join(',')}]}`, jsonType);
  }

  #tree(request: Request): Reply {
    const { replica, tokens } = this.#options;
    const { snapshot, policy, usage } = replica;
    request.hold(usage.bytes);
    return json({
      boot: tokens.currentBoot,
      revision: snapshot.revision,
      policy: policy.spec,
      usage,
      nodes: [...snapshot.nodes.values()].map((node) => nodeJson(replica, node)),
    });
  }

  #follow(request: Request): Reply | StreamReply {
    const { limits, rates } = this.#options;
    const from = request.query.get('from') ?? '';
    if (!/^\d{1,15}$/.test(from)) throw new Rejection(400, 'malformed', 'from: the revision of the tree that is there');
    if (this.#watch.streams >= limits.watchers) throw new Rejection(503, 'watchers', 'too many watch streams');
    if (!this.#watch.reaches(Number(from)))
      return { status: 410, headers: jsonType, body: JSON.stringify({ compacted: true }) };
    const id = this.#watch.nextId();
    return {
      status: 200,
      headers: { 'content-type': 'application/x-ndjson', 'x-porthole-stream': String(id) },
      stream: (outgoing) => rates.spent(this.#watch.follow(id, Number(from), outgoing)),
    };
  }
}

const jsonType = { 'content-type': 'application/json' } as const;

const json = (value: unknown): Reply => plain(JSON.stringify(value), jsonType);

const statusOf = (errno: number): number => {
  if (errno === EACCES || errno === EPERM) return 403;
  if (errno === ENOENT || errno === ESTALE) return 404;
  return errno === EIO ? 503 : 409;
};

const replyOf = (answer: Answer): Reply =>
  isRefusal(answer)
    ? { status: statusOf(answer), headers: jsonType, body: JSON.stringify({ errno: errnoName(answer) }) }
    : json(answer);
