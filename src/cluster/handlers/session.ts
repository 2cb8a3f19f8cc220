/** Signing in and out, for the console. */
import type { Context } from 'hono';
import { clearCookie, readCookie, setCookie } from '../own-page.ts';
import { ApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import type { CheckedSession } from '../sessions.ts';
import { whoView } from './rest.ts';
import { type Api, type Env, identityOf, noContent, reply, send, serve } from './serve.ts';
import { isoTime } from './vms.ts';

const sessionOf = (c: Context<Env>): CheckedSession => {
  const session = c.get('session');
  if (session === undefined)
    throw new ApiError('NOT_FOUND', 'you ask by other means than a session, which needs no end');
  return session;
};

export const serveSession = (api: Api): void => {
  const { sessions } = api.manager;

  serve(api, routes.createSession, async (c) => {
    const identity = identityOf(c);
    if (identity.key === undefined || c.get('session') !== undefined)
      throw new ApiError('WRONG_STATE', 'a session is begun with a key: "Authorization: Bearer ph_…"');
    const { id, expiresAtMs } = await sessions.create(identity.key);
    const view = { ...whoView(identity), expiresAt: isoTime(expiresAtMs) };
    return reply(routes.createSession, 201, view, { 'set-cookie': setCookie(c.get('cookie'), id) });
  });

  serve(api, routes.getSession, async (c) => {
    const { expiresAtMs } = sessionOf(c);
    return reply(routes.getSession, 200, { ...whoView(identityOf(c)), expiresAt: isoTime(expiresAtMs) });
  });

  serve(api, routes.endSession, async (c) => {
    sessionOf(c);
    await sessions.end(readCookie(c.req.header('cookie'), c.get('cookie'))!);
    return send({ ...noContent, headers: { 'set-cookie': clearCookie(c.get('cookie')) } });
  });
};
