/** How a handler is bound to its route: access, size of the body, idempotency, and answers of the shape that was promised. */
import { createHash } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import type { HttpBindings } from '@hono/node-server';
import type { OpenAPIHono, RouteConfig, RouteHandler, z } from '@hono/zod-openapi';
import type { Context, MiddlewareHandler } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import type { Answer, OnceRequest } from '../idempotency.ts';
import { checkAccess, type Identity, nameOf } from '../identity.ts';
import type { Manager } from '../manager.ts';
import type { SessionCookie } from '../own-page.ts';
import { ApiError } from '../problem.ts';
import type { Access, Scope } from '../routes/common.ts';
import type { CheckedSession } from '../sessions.ts';
import { eventStream, type ServerEvent } from '../sse.ts';
import type { Streams } from '../streams.ts';
import type { Turns } from '../turns.ts';

export interface Env {
  Bindings: HttpBindings;
  Variables: {
    identity: Identity | undefined;
    /** Where the identity is by a cookie. */
    session: CheckedSession | undefined;
    /** Of the cookie that a page of this server has. */
    cookie: SessionCookie;
    requestId: string;
    isLocal: boolean;
    route: string;
  };
}

export type App = OpenAPIHono<Env>;

/** What handlers are made of. */
export interface Api {
  readonly app: App;
  readonly manager: Manager;
  readonly streams: Streams;
  readonly turns: Turns;
  /** Tells a client that waits for it to go on, and lets the request take as long as it likes. */
  readonly expectLong: (bindings: HttpBindings) => void;
}

/** Bytes of a body unless the route says otherwise. */
const ordinaryBody = 64 * 1024;

type RouteContext<R extends RouteConfig> = Parameters<RouteHandler<R, Env>>[0];

export const identityOf = (c: Context<Env>): Identity => c.get('identity')!;

/** Access, and the size of the body. */
const guards = (route: RouteConfig, bodyBytes: number): MiddlewareHandler<Env>[] => {
  const access = route['x-access'] as Access;
  const scope = route['x-scope'] as Scope;
  const check: MiddlewareHandler<Env> = async (c, next) => {
    c.set('route', route.path);
    checkAccess(c.get('identity'), { access, scope, vm: c.req.param('name') });
    await next();
  };
  const refuse = (): never => {
    throw new ApiError('TOO_LARGE', `the body has more than the ${bodyBytes} bytes that are allowed here`);
  };
  const counted = bodyLimit({ maxSize: bodyBytes, onError: refuse });
  const limit: MiddlewareHandler<Env> = async (c, next) => {
    const { 'content-length': length, 'transfer-encoding': coding } = c.env.incoming.headers;
    // Node has checked that it is a number, and gives no byte more. Looking at the body would make a stream of it, which
    // costs as much as all the rest of a request.
    if (coding !== undefined) return counted(c, next);
    if (Number(length ?? 0) > bodyBytes) refuse();
    await next();
  };
  return route.request?.body === undefined ? [check] : [check, limit];
};

export interface ServeOptions {
  readonly bodyBytes?: number;
}

export const serve = <R extends RouteConfig>(
  { app }: Api,
  route: R,
  handler: (c: RouteContext<R>) => Promise<Response>,
  { bodyBytes = ordinaryBody }: ServeOptions = {},
): void => {
  // Answers are made by `reply`, which checks them against the route: the type of a Response says nothing of its body.
  app.openapi({ ...route, middleware: guards(route, bodyBytes) }, handler as unknown as RouteHandler<R, Env>);
};

/** For a route whose last part is a path of any length, which a template can't say. */
export const serveBelow = <R extends RouteConfig>(
  { app }: Api,
  route: R,
  handler: (c: Context<Env>) => Promise<Response>,
  { bodyBytes = ordinaryBody }: ServeOptions = {},
): void => {
  app.openAPIRegistry.registerPath(route);
  const pattern = route.path.replace('{name}', ':name').replace('{path}', '*');
  app.on(route.method.toUpperCase(), [pattern], ...guards(route, bodyBytes), handler);
};

type JsonOf<R extends RouteConfig, S extends keyof R['responses']> = R['responses'][S] extends {
  content: { 'application/json': { schema: infer Z extends z.ZodType } };
}
  ? z.input<Z>
  : never;

export const answerOf = <R extends RouteConfig, S extends keyof R['responses'] & number>(
  _route: R,
  status: S,
  value: JsonOf<R, S>,
  headers: Readonly<Record<string, string>> = {},
): Answer => ({ status, headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(value) });

export const send = (answer: Answer): Response =>
  new Response(answer.body === '' ? null : answer.body, {
    status: answer.status,
    headers: { 'cache-control': 'no-store', ...answer.headers },
  });

export const reply = <R extends RouteConfig, S extends keyof R['responses'] & number>(
  route: R,
  status: S,
  value: JsonOf<R, S>,
  headers: Readonly<Record<string, string>> = {},
): Response => send(answerOf(route, status, value, headers));

/** Text of a long answer that is made before others have their turn; one item may be longer. */
const textInTurn = 128 * 1024;

/** 200: `head` as JSON, with a list of what `view` makes of `items`, as fast as the client takes it. */
export const longJson = <T>(
  head: object,
  name: string,
  items: readonly T[],
  view: (item: T) => object,
  headers: Readonly<Record<string, string>>,
): Response => {
  const encoder = new TextEncoder();
  let text = `${JSON.stringify({ ...head, [name]: [] }).slice(0, -2)}`;
  let next = 0;
  const body = new ReadableStream<Uint8Array>(
    {
      pull: async (controller) => {
        await turn();
        while (next < items.length && text.length < textInTurn) {
          text += `${next === 0 ? '' : ','}${JSON.stringify(view(items[next]!))}`;
          next++;
        }
        const isLast = next === items.length;
        controller.enqueue(encoder.encode(isLast ? `${text}]}` : text));
        text = '';
        if (isLast) controller.close();
      },
    },
    { highWaterMark: 0 },
  );
  return new Response(body, {
    headers: { 'content-type': 'application/json', 'cache-control': 'no-store', ...headers },
  });
};

/** 204. */
export const noContent: Answer = { status: 204, headers: {}, body: '' };

export const idempotencyKey = (c: Context<Env>): string | undefined => {
  const key = c.req.header('idempotency-key');
  if (key === undefined || /^[\x21-\x7e]{1,255}$/.test(key)) return key;
  throw new ApiError('BAD_REQUEST', 'the Idempotency-Key must have 1 to 255 visible ASCII characters');
};

/** What makes a request the same as another: method, URL, conditions and body. */
export const onceRequest = async (c: Context<Env>): Promise<OnceRequest> => {
  const { account } = identityOf(c);
  const key = idempotencyKey(c);
  if (key === undefined) return { account, key, hash: '' };
  const hash = createHash('sha256');
  for (const part of [c.req.method, c.env.incoming.url ?? '', c.req.header('if-match'), c.req.header('if-none-match')])
    hash.update(JSON.stringify(part ?? null));
  hash.update(new Uint8Array(await c.req.arrayBuffer()));
  return { account, key, hash: hash.digest('hex') };
};

/** For a request that is long or large: one of few, until its answer was taken. TOO_MANY_REQUESTS. */
export const takeTurn = (c: Context<Env>, { turns }: Api): void => {
  c.env.outgoing.once('close', turns.take(nameOf(identityOf(c))));
};

/** An event stream, counted and bound to whoever opened it. `begin` may throw: then that is the answer. */
export const stream = async (
  c: Context<Env>,
  { streams }: Api,
  begin: (signal: AbortSignal) => Promise<AsyncIterable<ServerEvent>>,
): Promise<Response> => {
  const identity = identityOf(c);
  const opened = streams.open(nameOf(identity), [c.req.raw.signal, ...(identity.ended ? [identity.ended] : [])]);
  try {
    return eventStream(await begin(opened.signal), {
      requestId: c.get('requestId'),
      signal: opened.signal,
      cutOff: () => c.env.outgoing.destroy(),
      ended: opened.close,
      ...streams.timing,
    });
  } catch (error) {
    opened.close();
    throw error;
  }
};
