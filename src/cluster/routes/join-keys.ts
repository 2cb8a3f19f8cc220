import { createRoute, z } from '@hono/zod-openapi';
import { longestJoinSeconds } from '../../records/index.ts';
import { body, changing, IdempotencyHeaders, json, problems, security, Time, VmName } from './common.ts';

export const JoinKeyShape = z
  .object({
    id: z.string(),
    host: z.string().optional().openapi({ description: 'The only host that it is for; missing: any name.' }),
    isUsed: z.boolean().openapi({ description: 'A host has enrolled with it: it is of no more use.' }),
    createdAt: Time,
    expiresAt: Time,
  })
  .openapi('JoinKey');

export const createJoinKey = createRoute({
  operationId: 'createJoinKey',
  method: 'post',
  path: '/v1/join-keys',
  tags: ['Hosts'],
  summary: 'Create a key with which one host enrols',
  description:
    'The answer has the key’s text, which is told this once. A repeat with the same `Idempotency-Key` makes no second key and answers IDEMPOTENCY_SECRET. UNSUPPORTED where manager and host are one (`porthole up`).',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: {
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          host: VmName.optional().openapi({ description: 'The only host that it is to be for.' }),
          expiresInSeconds: z.int().min(1).max(longestJoinSeconds).default(3600),
        })
        .openapi('CreateJoinKey'),
    ),
  },
  responses: {
    201: json(
      z.object({ joinKey: JoinKeyShape, text: z.string().openapi({ example: 'phj_ID_SECRET_FINGERPRINT' }) }),
      'The key.',
    ),
    ...problems('IDEMPOTENCY_SECRET', 'UNSUPPORTED', 'CONFLICT', ...changing),
  },
});

export const listJoinKeys = createRoute({
  operationId: 'listJoinKeys',
  method: 'get',
  path: '/v1/join-keys',
  tags: ['Hosts'],
  summary: 'List keys with which hosts enrol',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  responses: {
    200: json(z.object({ joinKeys: z.array(JoinKeyShape) }), 'All of them, without their secrets.'),
    ...problems('UNSUPPORTED'),
  },
});

export const revokeJoinKey = createRoute({
  operationId: 'revokeJoinKey',
  method: 'delete',
  path: '/v1/join-keys/{id}',
  tags: ['Hosts'],
  summary: 'Take back a key with which a host could enrol',
  description: 'A host that has enrolled with it stays: remove that one to end it.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: {
    params: z.object({
      id: z
        .string()
        .regex(/^[0-9a-f]{16}$/)
        .openapi({ param: { name: 'id', in: 'path' } }),
    }),
    headers: IdempotencyHeaders,
  },
  responses: { 204: { description: 'It is gone.' }, ...problems('NOT_FOUND', 'UNSUPPORTED', ...changing) },
});
