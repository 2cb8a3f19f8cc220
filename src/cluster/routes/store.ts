import { createRoute, z } from '@hono/zod-openapi';
import { body, bytes, changing, IdempotencyHeaders, json, problems, security } from './common.ts';
import { OperationShape } from './vms.ts';

export const createBackup = createRoute({
  operationId: 'createBackup',
  method: 'post',
  path: '/v1/store/backup',
  tags: ['Store'],
  summary: 'Back up the stores',
  description:
    'Answers with one file: both stores as they are at one moment, sealed as they are. It holds no disk, no image, no audit record, and not the key file, without which it is worth nothing. The connection breaks when it cannot be sent to its end: compare with `Content-Length`.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  responses: { 200: bytes('The backup.'), ...problems('CONFLICT', 'FULL', 'UNSUPPORTED') },
});

export const rotateKeys = createRoute({
  operationId: 'rotateKeys',
  method: 'post',
  path: '/v1/store/rotate',
  tags: ['Store'],
  summary: 'Seal everything anew',
  description:
    'By a new data key; with `keyFile`, data keys are wrapped by that key first, and from then on the server must be started with that file. Writers go on meanwhile. Cancelled or cut short, all stays readable, and the next rotation does the rest.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: {
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          keyFile: z.string().startsWith('/').max(4096).optional().openapi({
            description:
              'Absolute path of a key file on the host, made where there is none. Only over the unix socket: it is used with the daemon’s rights.',
          }),
        })
        .openapi('RotateKeys'),
    ),
  },
  responses: {
    202: json(OperationShape, 'It has begun.'),
    ...problems('CONFLICT', 'UNSUPPORTED', ...changing),
  },
});
