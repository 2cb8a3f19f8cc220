/** The audit. */
import { createRoute, z } from '@hono/zod-openapi';
import { eventStream, json, Next, PageQuery, problems, StreamHeaders, security, Time, VmName } from './common.ts';

const AuditFilterShape = {
  vm: VmName.optional(),
  path: z.string().startsWith('/').max(4096).optional().openapi({ description: 'A path and all below it.' }),
  uid: z.coerce.number().int().min(0).max(0xffff_fffe).optional(),
  operation: z.string().max(63).optional(),
  verdict: z.enum(['allowed', 'denied']).optional(),
};

export const AuditEventShape = z
  .object({
    id: z
      .string()
      .regex(/^\d{1,15}$/)
      .openapi({ description: 'Its number at its host.' }),
    region: z.string().optional(),
    host: z.string().optional().openapi({ description: 'Which keeps the record; not told in a stream.' }),
    time: Time,
    keptAt: Time.openapi({ description: 'When the host kept it, a moment later. Pages are in order of it.' }),
    vm: z.string(),
    bootId: z.string().optional(),
    way: z.string(),
    operation: z.string(),
    path: z.string(),
    uid: z.int().openapi({ description: 'Of the program in the guest; 4294967295 where none asked.' }),
    gid: z.int(),
    pid: z.int(),
    program: z.string().optional(),
    by: z.string().optional().openapi({ description: 'Who was shown it by the API.', example: 'key 0123456789abcdef' }),
    revision: z.int(),
    verdict: z.enum(['allowed', 'denied']),
    rule: z.string(),
    errno: z.string().optional(),
    dropped: z.int().optional(),
    droppedOthers: z.int().optional(),
  })
  .openapi('AuditEvent');

export const AuditQueryShape = z.strictObject({
  ...AuditFilterShape,
  ...PageQuery,
  from: Time.optional(),
  until: Time.optional(),
  order: z.enum(['oldest', 'newest']).default('oldest'),
  regions: z.enum(['own', 'all']).default('own').openapi({
    description: 'own: all hosts of the region that is asked. all: those of every region.',
  }),
});

export const AuditPageShape = z.object({
  events: z.array(AuditEventShape),
  missing: z
    .array(z.object({ region: z.string(), host: z.string().optional(), reason: z.string() }))
    .openapi({ description: 'Hosts that did not answer, and regions: what they keep is not in `events`.' }),
  next: Next,
});

export const queryAudit = createRoute({
  operationId: 'queryAudit',
  method: 'get',
  path: '/v1/audit',
  tags: ['Audit'],
  summary: 'Who read or was refused what',
  description:
    'A page looks through a part of the logs: it may have fewer events than `limit`, or none, and yet a `next`. Only the last page has none. Who does not have the cluster sees the VMs that are its own now, since they were made.',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: { query: AuditQueryShape },
  responses: {
    200: json(AuditPageShape, 'A page.'),
    ...problems('VM_NOT_FOUND', 'BAD_CURSOR', 'BAD_PATH'),
  },
});

export const followAudit = createRoute({
  operationId: 'followAudit',
  method: 'get',
  path: '/v1/audit/stream',
  tags: ['Audit'],
  summary: 'Follow the audit',
  description: 'Server-sent events `audit`, none lost and none twice when `Last-Event-ID` is given after a break.',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: { headers: StreamHeaders, query: z.strictObject(AuditFilterShape) },
  responses: { 200: eventStream('Until the client closes it.'), ...problems('VM_NOT_FOUND', 'COMPACTED') },
});

const linkPattern = /^\d{1,15}\.[0-9a-f]{64}$/;

export const checkAudit = createRoute({
  operationId: 'checkAudit',
  method: 'get',
  path: '/v1/hosts/{host}/audit/check',
  tags: ['Audit'],
  summary: 'Check that nothing of a host’s audit log was changed or taken out',
  description:
    'Some megabytes of it. Go on with `last` as `after` until `isEnd`. Who keeps the last one elsewhere sees with it, later, that all up to there is as it was.',
  'x-access': 'viewer',
  'x-scope': 'cluster',
  security,
  request: {
    params: z.object({ host: VmName.openapi({ param: { name: 'host', in: 'path' } }) }),
    query: z.strictObject({
      after: z.string().regex(linkPattern).optional().openapi({ description: '`last` of a check before.' }),
    }),
  },
  responses: {
    200: json(
      z.object({
        records: z.int().openapi({ description: 'How many were checked.' }),
        problems: z.array(
          z.object({
            file: z.string().openapi({ description: 'Of the audit directory of the host.' }),
            line: z.int().openapi({ description: 'Counted from 1; 0: of none.' }),
            what: z.string(),
          }),
        ),
        last: z.string().regex(linkPattern),
        isEnd: z.boolean(),
      }),
      'What was found.',
    ),
    ...problems('NOT_FOUND'),
  },
});
