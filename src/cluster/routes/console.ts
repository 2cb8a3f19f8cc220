/** A VM's console: its log, live, and what is typed. */
import { createRoute, z } from '@hono/zod-openapi';
import {
  bytes,
  changing,
  eventStream,
  IdempotencyHeaders,
  problems,
  StreamHeaders,
  security,
  VmParams,
} from './common.ts';

const mostConsole = 1024 * 1024;

export const getConsole = createRoute({
  operationId: 'getConsole',
  method: 'get',
  path: '/v1/vms/{name}/console',
  tags: ['Console'],
  summary: 'The console’s log',
  description:
    'Raw bytes; `Console-Offset` is that of the first, `Console-Start` of the oldest that is kept, `Console-End` after the newest.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: {
    params: VmParams,
    query: z.strictObject({
      offset: z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional(),
      tail: z.coerce
        .number()
        .int()
        .min(0)
        .max(mostConsole)
        .optional()
        .openapi({ description: 'The last so many bytes.' }),
      limit: z.coerce.number().int().min(1).max(mostConsole).default(mostConsole),
    }),
  },
  responses: { 200: bytes('Part of the log.'), ...problems('VM_NOT_FOUND', 'UNSUPPORTED') },
});

export const streamConsole = createRoute({
  operationId: 'streamConsole',
  method: 'get',
  path: '/v1/vms/{name}/console/stream',
  tags: ['Console'],
  summary: 'The console, live',
  description:
    'Server-sent events. `output`: base64 of bytes, the event’s id being the offset after them. `start`: where the stream begins. After a break: `Last-Event-ID`.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: {
    params: VmParams,
    headers: StreamHeaders,
    query: z.strictObject({
      offset: z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional().openapi({
        description: 'Where to begin; default: now.',
      }),
    }),
  },
  responses: { 200: eventStream('Until the client closes it.'), ...problems('VM_NOT_FOUND', 'UNSUPPORTED') },
});

export const writeConsole = createRoute({
  operationId: 'writeConsole',
  method: 'post',
  path: '/v1/vms/{name}/console/input',
  tags: ['Console'],
  summary: 'Type into the console',
  description:
    'Raw bytes, in order when each request is answered before the next is sent. A repeat with the same `Idempotency-Key` is CONFLICT where nobody knows whether the bytes were typed: it types nothing.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: {
    params: VmParams,
    headers: IdempotencyHeaders,
    body: {
      required: true,
      content: { 'application/octet-stream': { schema: z.string().openapi({ format: 'binary' }) } },
    },
  },
  responses: {
    204: { description: 'The console has them.' },
    ...problems('VM_NOT_FOUND', 'WRONG_STATE', 'CONFLICT', 'UNSUPPORTED', ...changing),
  },
});
