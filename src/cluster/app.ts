/** The API as one application: what every request goes through, and all routes. */
import { Buffer } from 'node:buffer';
import { OpenAPIHono } from '@hono/zod-openapi';
import { HTTPException } from 'hono/http-exception';
import { type Document, docsPage } from './docs-page.ts';
import type { FailedKeys } from './failed-keys.ts';
import { serveAudit } from './handlers/audit.ts';
import { serveCluster } from './handlers/cluster.ts';
import { serveEvents } from './handlers/events.ts';
import { serveImages } from './handlers/images.ts';
import { serveJoinKeys } from './handlers/join-keys.ts';
import { serveMetadata } from './handlers/metadata.ts';
import { serveRest } from './handlers/rest.ts';
import { type Api, type Env, reply, serve } from './handlers/serve.ts';
import { serveSession } from './handlers/session.ts';
import { serveStore } from './handlers/store.ts';
import { serveVms } from './handlers/vms.ts';
import { type Identity, nameOf } from './identity.ts';
import type { CheckedKey } from './keys.ts';
import type { Manager } from './manager.ts';
import type { Metrics } from './metrics.ts';
import { checkOwnPage, clearCookie, readCookie, sessionCookie } from './own-page.ts';
import { regionHeader } from './peers.ts';
import { ApiError, problemResponse, toApiError } from './problem.ts';
import * as routes from './routes/index.ts';
import { type CheckedSession, sessionEnded } from './sessions.ts';
import { type Site, serveSite } from './site.ts';
import type { Streams } from './streams.ts';
import { Turns } from './turns.ts';

/** What the server knows of a connection before a byte of it was read. */
export interface Connection {
  /** Over the unix socket: who it is, or why they are refused. Undefined over TCP. */
  readonly peer: Identity | ApiError | undefined;
  /** The other end of a TCP connection. */
  readonly address: string;
  /** Names that a Host header may have; undefined: any (a unix socket, which no web page reaches). */
  readonly hosts: ReadonlySet<string> | undefined;
  readonly scheme: 'http' | 'https';
}

export interface AppOptions {
  readonly manager: Manager;
  readonly metrics: Metrics;
  readonly streams: Streams;
  readonly failedKeys: FailedKeys;
  readonly version: string;
  readonly connectionOf: (incoming: Env['Bindings']['incoming']) => Connection;
  /** Origins of web pages that may use the API, besides its own: `https://console.example`. */
  readonly origins: ReadonlySet<string>;
  readonly expectLong: Api['expectLong'];
  /** The console; undefined where it was not built. */
  readonly site: Site | undefined;
}

const requestIdPattern = /^[A-Za-z0-9_-]{8,64}$/;
const requestIdBytes = 8;
const requestIdsAtOnce = 256;

/** Random bytes for many at once: asking for them costs more than a whole id does. */
const requestIds = (randomBytes: (bytes: number) => Buffer): (() => string) => {
  let pool: Buffer = Buffer.alloc(0);
  return () => {
    if (pool.length === 0) pool = randomBytes(requestIdBytes * requestIdsAtOnce);
    const id = pool.toString('hex', 0, requestIdBytes);
    pool = pool.subarray(requestIdBytes);
    return `req-${id}`;
  };
};

export const createApp = (options: AppOptions): OpenAPIHono<Env> => {
  const { manager, metrics, streams } = options;
  const { log } = manager.kit;
  const newRequestId = requestIds(manager.kit.randomBytes);
  const app = new OpenAPIHono<Env>({
    defaultHook: (result) => {
      if (result.success) return;
      throw new ApiError('BAD_REQUEST', 'the request is not as it must be: see fields', {
        fields: result.error.issues.map(({ path, message }) => ({ path: [result.target, ...path].join('.'), message })),
      });
    },
  });

  app.use('*', async (c, next) => {
    const began = performance.now();
    const given = c.req.header('x-request-id');
    const requestId = given !== undefined && requestIdPattern.test(given) ? given : newRequestId();
    c.set('requestId', requestId);
    c.set('route', 'none');
    // Not on the Response: to change headers there makes an object of the web's API of them, which is slow.
    const { outgoing } = c.env;
    outgoing.setHeader('x-request-id', requestId);
    outgoing.setHeader('x-content-type-options', 'nosniff');
    outgoing.setHeader('content-security-policy', pagePolicy);
    await next();
    const ms = performance.now() - began;
    const method = routeMethods.has(c.req.method) ? c.req.method : 'other';
    metrics.requests.inc({ method, route: c.get('route'), status: c.res.status });
    metrics.seconds.observe({ method, route: c.get('route') }, ms / 1000);
    log.info(
      {
        requestId,
        method: c.req.method,
        path: (c.env.incoming.url ?? '').split('?', 1)[0],
        status: c.res.status,
        ms: Math.round(ms * 10) / 10,
        who: nameOf(c.get('identity')),
      },
      'request',
    );
  });

  app.use('*', async (c, next) => {
    const { incoming } = c.env;
    const connection = options.connectionOf(incoming);
    c.set('isLocal', connection.peer !== undefined && !(connection.peer instanceof ApiError));
    checkTarget(incoming.url ?? '');
    checkHost(incoming.headers.host, connection);
    checkOrigin(c.req.header('origin'), incoming.headers.host, connection, options.origins);
    const authorization = c.req.header('authorization');
    const told = authorization?.startsWith('Peer ') === true;
    const cookie = sessionCookie(incoming.headers.host, connection.scheme);
    c.set('cookie', cookie);
    const id =
      connection.peer === undefined && authorization === undefined && c.req.path.startsWith('/v1/')
        ? readCookie(c.req.header('cookie'), cookie)
        : undefined;
    if (id !== undefined) {
      checkOwnPage(c.req.method, incoming.headers, connection.scheme);
      c.set(
        'session',
        await checkSession(id, connection, options, () => c.env.outgoing.setHeader('set-cookie', clearCookie(cookie))),
      );
    }
    const session = c.get('session');
    const identity =
      session !== undefined
        ? identityOfKey(session)
        : told
          ? toldBy(authorization, manager)
          : identify(authorization, connection, options);
    c.set('identity', identity);
    const region = c.req.header(regionHeader);
    // Whoever has no key is refused here, as for this region; and nothing goes on twice.
    if (told || identity === undefined || !manager.peers.isOther(region)) return next();
    c.set('route', 'another region');
    // How much comes, and for how long, is for that region to say.
    options.expectLong(c.env);
    const ends = [c.req.raw.signal, ...(identity.ended ? [identity.ended] : [])];
    return manager.peers.ask(region, identity, incoming, AbortSignal.any(ends));
  });

  app.onError((error, c) => {
    const problem = toApiError(error);
    if (error instanceof HTTPException) return problemResponse(fromHttp(error), c.get('requestId'));
    if (problem.code === 'INTERNAL') log.error({ err: error, requestId: c.get('requestId') }, 'a request failed');
    return problemResponse(problem, c.get('requestId'));
  });

  const methods = new Map<string, Set<string>>();
  app.notFound((c) => {
    const path = c.req.path;
    const page = serveSite(options.site, c);
    if (page !== undefined) return page;
    const allowed = [...methods].filter(([pattern]) => isOfRoute(path, pattern)).flatMap(([, of]) => [...of]);
    const error =
      allowed.length > 0
        ? new ApiError('METHOD_NOT_ALLOWED', `this takes ${allowed.join(', ')}`, { allow: allowed.join(', ') })
        : new ApiError('NOT_FOUND', 'there is nothing at this path; /docs shows what there is');
    return problemResponse(error, c.get('requestId'));
  });

  const api: Api = { app, manager, streams, turns: new Turns(), expectLong: options.expectLong };
  serveVms(api);
  serveMetadata(api);
  serveEvents(api);
  serveRest(api);
  serveSession(api);
  serveImages(api);
  serveAudit(api);
  serveStore(api);
  serveCluster(api);
  serveJoinKeys(api);
  serve(api, routes.getMetrics, async () => {
    const text = await metrics.registry.metrics();
    return new Response(text, { headers: { 'content-type': metrics.registry.contentType } });
  });
  serveDocument(api, options.version);
  for (const { route } of app.openAPIRegistry.definitions.filter((definition) => definition.type === 'route')) {
    const of = methods.get(route.path) ?? new Set();
    methods.set(route.path, of.add(route.method.toUpperCase()));
    if (route.method === 'get') of.add('HEAD');
  }
  return app;
};

const serveDocument = (api: Api, version: string): void => {
  const document = (): Document =>
    api.app.getOpenAPI31Document({
      openapi: '3.1.0',
      info: {
        title: 'Porthole API',
        version,
        description:
          'Virtual machines, and the directory with metadata and secrets that each of them sees. Errors are RFC 9457 problems; docs/api.md says what this document cannot.',
        license: { name: 'Apache-2.0', url: 'https://www.apache.org/licenses/LICENSE-2.0' },
      },
      servers: [{ url: '/' }],
    }) as unknown as Document;
  api.app.openAPIRegistry.registerComponent('securitySchemes', 'key', {
    type: 'http',
    scheme: 'bearer',
    description: 'A key, `ph_ID_SECRET`. Over the unix socket none is needed: the kernel says who is there.',
  });
  let text: string | undefined;
  serve(api, routes.getDocument, async () =>
    text === undefined
      ? reply(routes.getDocument, 200, JSON.parse((text = JSON.stringify(document()))) as { openapi: string })
      : new Response(text, { headers: { 'content-type': 'application/json' } }),
  );
  let page: string | undefined;
  serve(api, routes.getDocsPage, async () => {
    page ??= String(await docsPage(document()));
    return new Response(page, { headers: { 'content-type': 'text/html; charset=utf-8' } });
  });
};

const routeMethods = new Set(['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH']);

/** Nothing may run, load or frame; the page of /docs has a style of its own. */
const pagePolicy =
  "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox";

const isOfRoute = (path: string, pattern: string): boolean => {
  const want = pattern.split('/');
  const have = path.split('/');
  const isOpen = want.at(-1) === '{path}' && want.length > 2 && pattern.includes('/metadata/');
  return (
    (isOpen ? have.length >= want.length : have.length === want.length) &&
    want.every((part, i) => part.startsWith('{') || part === have[i])
  );
};

/**
 * The target of a request as it was sent. A URL parser would resolve dot segments and turn "\" into "/", so what is routed
 * would not be what was asked for.
 */
const checkTarget = (url: string): void => {
  const path = url.split('?', 1)[0]!;
  if (!path.startsWith('/') || /[^\x21-\x7e]|[\\#]/.test(url))
    throw new ApiError(
      'BAD_PATH',
      'the target of the request must be a path of visible ASCII characters, without "\\" and "#"',
    );
  if (path.split('/').some((segment) => /^(\.|%2e){1,2}$/i.test(segment)))
    throw new ApiError('BAD_PATH', 'the path has a name "." or "..", which is never resolved here');
};

const checkHost = (host: string | undefined, { hosts }: Connection): void => {
  if (hosts === undefined) return;
  const [, name] = /^(\[[0-9a-f:.]+\]|[^:/?#@\s]+)(?::\d{1,5})?$/i.exec(host ?? '') ?? [];
  const plain = name?.toLowerCase().replace(/\.$/, '');
  // A name that an attacker's DNS points here would make a page of theirs one of ours; an address has no DNS.
  if (plain !== undefined && (hosts.has(plain) || /^\[.*\]$|^\d{1,3}(\.\d{1,3}){3}$/.test(plain))) return;
  throw new ApiError(
    'BAD_HOST',
    `the Host ${JSON.stringify(host ?? '')} is not one of this server; allow it with --host`,
  );
};

const checkOrigin = (
  origin: string | undefined,
  host: string | undefined,
  { scheme }: Connection,
  origins: ReadonlySet<string>,
): void => {
  if (origin === undefined || origin === `${scheme}://${host}` || origins.has(origin)) return;
  throw new ApiError('BAD_ORIGIN', `pages of ${JSON.stringify(origin)} may not use this server`);
};

/** Who asks, as a manager of another region says. BAD_KEY. */
const toldBy = (authorization: string, { peers }: Manager): Identity => {
  const identity = peers.identify(authorization);
  if (identity === undefined)
    throw new ApiError('BAD_KEY', 'no manager of this cluster said this, or its clock differs from ours by a minute');
  return identity;
};

/** Nobody is let in by a wrong key, not even over the unix socket. BAD_KEY, TOO_MANY_REQUESTS, FORBIDDEN. */
const identify = (
  authorization: string | undefined,
  connection: Connection,
  options: AppOptions,
): Identity | undefined => {
  const { peer } = connection;
  if (peer instanceof ApiError) throw peer;
  if (authorization === undefined) return peer;
  const checked = options.manager.keys.check(/^Bearer +(\S+) *$/i.exec(authorization)?.[1] ?? '');
  if (checked !== undefined) return identityOfKey(checked);
  countFailed(peer === undefined ? connection.address : nameOf(peer), options);
  throw new ApiError('BAD_KEY', 'the key is unknown, revoked or out of date; ask an admin for a new one');
};

const identityOfKey = ({ key, ended }: CheckedKey): Identity => ({
  account: key.account,
  role: key.role,
  vms: key.vms,
  key: key.id,
  uid: undefined,
  ended,
});

/** Whoever has a right key or session is never held up: addresses are shared, by this machine's guests and its users among others. TOO_MANY_REQUESTS. */
const countFailed = (from: string, { failedKeys, metrics }: AppOptions): void => {
  const waitSeconds = failedKeys.waitSeconds(from);
  if (waitSeconds > 0)
    throw new ApiError('TOO_MANY_REQUESTS', 'too many wrong keys came from your address; wait a little', {
      retryAfterSeconds: waitSeconds,
    });
  failedKeys.failed(from);
  metrics.failedKeys.inc();
};

/** As `identify`, by the cookie. `forget`: tells the browser that it has none any more. */
const checkSession = async (
  id: string,
  { address }: Connection,
  options: AppOptions,
  forget: () => void,
): Promise<CheckedSession> => {
  const session = await options.manager.sessions.check(id);
  if (session !== undefined) return session;
  forget();
  countFailed(address, options);
  throw sessionEnded();
};

/** What hono itself refuses. */
const fromHttp = ({ status, message }: HTTPException): ApiError => {
  if (status === 415) return new ApiError('WRONG_MEDIA_TYPE', 'send JSON, with "Content-Type: application/json"');
  if (status === 413) return new ApiError('TOO_LARGE', 'the body is too large');
  return new ApiError('BAD_REQUEST', message === '' ? 'the body is no valid JSON' : message.toLowerCase());
};
