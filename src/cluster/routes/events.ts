import { createRoute, z } from '@hono/zod-openapi';
import { eventStream, problems, StreamHeaders, security } from './common.ts';
import { OperationShape, VmShape } from './vms.ts';

/** What an event of `followEvents` has. */
export const EventsShape = z
  .object({
    vms: z.array(VmShape),
    gone: z.array(z.string()).openapi({ description: 'Names of VMs that are no more.' }),
    operations: z.array(OperationShape),
  })
  .openapi('Events');

export const followEvents = createRoute({
  operationId: 'followEvents',
  method: 'get',
  path: '/v1/events',
  tags: ['VMs'],
  summary: 'Follow all VMs and operations of the region',
  description:
    'Server-sent events. First what there is: `begin`, then `entries` as often as it takes, with every VM and every operation that has not finished; `ready` ends it. From then on `changes`. `entries` and `changes` have lists `vms`, `gone` (names) and `operations`, each as it is now: what changes twice in a moment may be told once. With `Last-Event-ID` it goes on with changes.',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: { headers: StreamHeaders },
  responses: { 200: eventStream('Until the client ends it.'), ...problems('COMPACTED') },
});
