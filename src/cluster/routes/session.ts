import { createRoute, z } from '@hono/zod-openapi';
import { json, problems, security, Time } from './common.ts';
import { WhoShape } from './rest.ts';

const SessionShape = z
  .object({
    ...WhoShape.shape,
    expiresAt: Time.openapi({ description: 'When it ends unless it is used before.' }),
  })
  .openapi('Session');

export const createSession = createRoute({
  operationId: 'createSession',
  method: 'post',
  path: '/v1/session',
  tags: ['Sessions'],
  summary: 'Sign in a browser with a key',
  description:
    'The answer sets a cookie that no script can read and that is sent to this server alone. What asks with it must be a page of this server: `Origin` (needed where something is changed) and `Sec-Fetch-Site` say so, and the header `Porthole-Console` is there; else BAD_ORIGIN. It ends after 12 hours without use, after 7 days, and with the key.',
  'x-access': 'viewer',
  'x-scope': 'self',
  security,
  responses: { 201: json(SessionShape, 'Signed in.'), ...problems('WRONG_STATE', 'FULL') },
});

export const getSession = createRoute({
  operationId: 'getSession',
  method: 'get',
  path: '/v1/session',
  tags: ['Sessions'],
  summary: 'Who is signed in, and for how long',
  'x-access': 'viewer',
  'x-scope': 'self',
  security,
  responses: { 200: json(SessionShape, 'The session that the cookie is of.'), ...problems('NOT_FOUND') },
});

export const endSession = createRoute({
  operationId: 'endSession',
  method: 'delete',
  path: '/v1/session',
  tags: ['Sessions'],
  summary: 'Sign out',
  description: 'Streams of the session end, at every manager of the region.',
  'x-access': 'viewer',
  'x-scope': 'self',
  security,
  responses: { 204: { description: 'The session has ended.' }, ...problems('NOT_FOUND', 'FULL') },
});
