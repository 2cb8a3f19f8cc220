import { createRoute, z } from '@hono/zod-openapi';
import { batchItemStates } from '../../records/index.ts';
import {
  body,
  changing,
  eventStream,
  IdempotencyHeaders,
  json,
  Next,
  PageQuery,
  problems,
  Role,
  StreamHeaders,
  security,
  Time,
  VmName,
} from './common.ts';
import { DeviceShape, OperationShape } from './vms.ts';

// Operations

const OperationParams = z.object({
  id: z
    .string()
    .regex(/^op-[0-9a-f]{22,24}$/)
    .openapi({ param: { name: 'id', in: 'path' } }),
});

export const listOperations = createRoute({
  operationId: 'listOperations',
  method: 'get',
  path: '/v1/operations',
  tags: ['Operations'],
  summary: 'List operations, oldest first',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: { query: z.strictObject(PageQuery) },
  responses: {
    200: json(z.object({ operations: z.array(OperationShape), next: Next }), 'A page.'),
    ...problems('BAD_CURSOR', 'COMPACTED'),
  },
});

export const getOperation = createRoute({
  operationId: 'getOperation',
  method: 'get',
  path: '/v1/operations/{id}',
  tags: ['Operations'],
  summary: 'Show an operation',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: { params: OperationParams },
  responses: { 200: json(OperationShape, 'The operation.'), ...problems('NOT_FOUND') },
});

export const watchOperation = createRoute({
  operationId: 'watchOperation',
  method: 'get',
  path: '/v1/operations/{id}/events',
  tags: ['Operations'],
  summary: 'Follow an operation until it has finished',
  description:
    'Server-sent events `operation`, ids being revisions. The stream ends after the one that says it has finished.',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: { params: OperationParams, headers: StreamHeaders },
  responses: { 200: eventStream('Until it has finished.'), ...problems('NOT_FOUND') },
});

export const listOperationVms = createRoute({
  operationId: 'listOperationVms',
  method: 'get',
  path: '/v1/operations/{id}/vms',
  tags: ['Operations'],
  summary: 'How far each VM of an operation on many is',
  description: 'In order of their names, those that were found or asked for up to now.',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: { params: OperationParams, query: z.strictObject(PageQuery) },
  responses: {
    200: json(
      z.object({
        vms: z.array(
          z
            .object({
              name: z.string(),
              state: z.enum(batchItemStates),
              operation: z.string().optional(),
              error: z.object({ code: z.string(), detail: z.string() }).optional(),
            })
            .openapi('OperationVm'),
        ),
        next: Next,
      }),
      'A page.',
    ),
    ...problems('NOT_FOUND', 'BAD_CURSOR', 'COMPACTED'),
  },
});

export const cancelOperation = createRoute({
  operationId: 'cancelOperation',
  method: 'post',
  path: '/v1/operations/{id}/cancel',
  tags: ['Operations'],
  summary: 'Cancel an operation',
  description:
    'A VM that is being created is deleted; a start that has not happened yet becomes a stop; an image that is being added is dropped; a rotation of keys is left to the next one; of many VMs, those that were not asked for yet are not, and the others go on. Others run to their end.',
  'x-access': 'operator',
  'x-scope': 'vms',
  security,
  request: { params: OperationParams, headers: IdempotencyHeaders },
  responses: {
    202: json(OperationShape, 'It ends soon.'),
    ...problems('NOT_FOUND', 'WRONG_STATE', 'CONFLICT', 'IDEMPOTENCY_MISMATCH', 'IDEMPOTENCY_BUSY', 'FULL'),
  },
});

// Keys

const KeyVms = z
  .strictObject({
    names: z.array(VmName).max(100).default([]).openapi({ description: 'VMs of these names.' }),
    prefixes: z
      .array(z.string().regex(/^[a-z0-9][a-z0-9-]{0,61}$/, 'the beginning of a VM’s name'))
      .max(100)
      .default([])
      .openapi({ description: 'VMs whose names begin so.' }),
  })
  .openapi('KeyVms', { description: 'The only VMs that a key may touch, also those that are made later.' });

const AccountQuery = z.strictObject({
  account: VmName.optional().openapi({ description: 'Another account, for admins of the account `default`.' }),
});

export const KeyShape = z
  .object({
    id: z.string(),
    name: z.string(),
    role: Role,
    account: z.string(),
    vms: z.object({ names: z.array(z.string()), prefixes: z.array(z.string()) }).optional(),
    createdAt: Time,
    expiresAt: Time.optional(),
  })
  .openapi('Key');

const KeyParams = z.object({
  id: z
    .string()
    .regex(/^[0-9a-f]{16}$/)
    .openapi({ param: { name: 'id', in: 'path' } }),
});

export const listKeys = createRoute({
  operationId: 'listKeys',
  method: 'get',
  path: '/v1/keys',
  tags: ['Keys'],
  summary: 'List keys, without their secrets',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: { query: AccountQuery },
  responses: { 200: json(z.object({ keys: z.array(KeyShape) }), 'All of them.'), ...problems() },
});

export const createKey = createRoute({
  operationId: 'createKey',
  method: 'post',
  path: '/v1/keys',
  tags: ['Keys'],
  summary: 'Create a key',
  description:
    'The answer has the key’s text, which is told this once. A repeat with the same `Idempotency-Key` makes no second key and answers IDEMPOTENCY_SECRET.',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: {
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          name: z.string().min(1).max(100),
          role: Role,
          account: VmName.optional().openapi({
            description: 'Another account, for admins of the account `default`.',
          }),
          vms: KeyVms.optional(),
          expiresInSeconds: z
            .int()
            .min(1)
            .max(10 * 366 * 24 * 3600)
            .optional()
            .openapi({ description: 'Default: never.' }),
        })
        .refine(({ role, vms }) => vms === undefined || role !== 'admin', {
          path: ['vms'],
          message: 'a key for certain VMs is an operator’s or a viewer’s: admins have to do with more than VMs',
        })
        .openapi('CreateKey'),
    ),
  },
  responses: {
    201: json(z.object({ key: KeyShape, text: z.string().openapi({ example: 'ph_ID_SECRET' }) }), 'The key.'),
    ...problems('IDEMPOTENCY_SECRET', 'NOT_FOUND', 'WRONG_STATE', 'CONFLICT', ...changing),
  },
});

export const revokeKey = createRoute({
  operationId: 'revokeKey',
  method: 'delete',
  path: '/v1/keys/{id}',
  tags: ['Keys'],
  summary: 'Revoke a key',
  description:
    'Takes effect within 5 s everywhere; streams that were opened with it end. In a region that is cut off from the global store: there at once, elsewhere when it is back.',
  'x-access': 'admin',
  'x-scope': 'account',
  security,
  request: { params: KeyParams, query: AccountQuery, headers: IdempotencyHeaders },
  responses: { 204: { description: 'Revoked.' }, ...problems('NOT_FOUND', ...changing) },
});

export const WhoShape = z.object({
  account: z.string(),
  role: Role,
  vms: KeyShape.shape.vms,
  key: z.string().optional(),
  uid: z.int().optional(),
});

export const whoAmI = createRoute({
  operationId: 'whoAmI',
  method: 'get',
  path: '/v1/self',
  tags: ['Keys'],
  summary: 'Who the server takes you for',
  'x-access': 'viewer',
  'x-scope': 'self',
  security,
  responses: {
    200: json(WhoShape, 'Account and role, and the id of your key or your uid.'),
    ...problems(),
  },
});

// Host and server

const StoreShape = z
  .object({
    engine: z.enum(['sqlite', 'etcd', 'managers']),
    endpoints: z.array(z.string()).readonly().optional().openapi({ description: 'Members of etcd, each HOST:PORT.' }),
    prefix: z.string().optional().openapi({ description: 'In etcd all its keys begin with it and a slash.' }),
    reachable: z.boolean().openapi({ description: 'Whether it answered just now; etcd within 2 s.' }),
  })
  .openapi('Store');

export const getHost = createRoute({
  operationId: 'getHost',
  method: 'get',
  path: '/v1/host',
  tags: ['Host'],
  summary: 'How the host is',
  'x-access': 'viewer',
  'x-scope': 'cluster',
  security,
  responses: {
    200: json(
      z
        .object({
          name: z.string(),
          version: z.string(),
          startedAt: Time,
          accelerator: z.enum(['kvm', 'tcg']),
          cpus: z.int(),
          memoryBytes: z.int(),
          freeMemoryBytes: z.int(),
          diskBytes: z.int(),
          freeDiskBytes: z.int(),
          hosts: z.int().optional().openapi({
            description:
              'Of a manager whose hosts are machines of their own: how many are connected, whose sum this is.',
          }),
          warnings: z.array(z.string()),
          vms: z.array(
            z.object({
              name: z.string(),
              deviceVersion: z.string().optional(),
              replicas: z.int(),
              outdated: z.boolean(),
            }),
          ),
          deviceVersion: z.string().openapi({ description: 'What device processes run that are started now.' }),
          keeper: DeviceShape.openapi({ description: 'The process that holds what outlives device processes.' }),
          stores: z
            .object({ region: StoreShape, global: StoreShape })
            .openapi({ description: 'Where the manager that answers keeps what it knows.' }),
        })
        .openapi('Host'),
      'The host.',
    ),
    ...problems(),
  },
});

export const getHealth = createRoute({
  operationId: 'getHealth',
  method: 'get',
  path: '/healthz',
  tags: ['Server'],
  summary: 'Whether the server can read the region’s store',
  'x-access': 'none',
  'x-scope': 'self',
  responses: { 200: json(z.object({ status: z.literal('ok') }), 'It can.'), ...problems() },
});

export const getMetrics = createRoute({
  operationId: 'getMetrics',
  method: 'get',
  path: '/metrics',
  tags: ['Server'],
  summary: 'Metrics for Prometheus',
  'x-access': 'viewer',
  'x-scope': 'cluster',
  security,
  responses: { 200: { description: 'Metrics.', content: { 'text/plain': { schema: z.string() } } }, ...problems() },
});

export const getDocument = createRoute({
  operationId: 'getDocument',
  method: 'get',
  path: '/openapi.json',
  tags: ['Server'],
  summary: 'This document',
  'x-access': 'none',
  'x-scope': 'self',
  responses: { 200: json(z.looseObject({ openapi: z.string() }), 'OpenAPI 3.1.'), ...problems() },
});

export const getDocsPage = createRoute({
  operationId: 'getDocsPage',
  method: 'get',
  path: '/docs',
  tags: ['Server'],
  summary: 'This document for people',
  'x-access': 'none',
  'x-scope': 'self',
  responses: {
    200: { description: 'A page that asks no other host.', content: { 'text/html': { schema: z.string() } } },
    ...problems(),
  },
});
