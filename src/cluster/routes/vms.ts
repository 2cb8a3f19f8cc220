import { createRoute, z } from '@hono/zod-openapi';
import { metadataWays, operationStates, tokenStates, vmStatuses } from '../../records/index.ts';
import {
  body,
  changing,
  IdempotencyHeaders,
  json,
  Next,
  PageQuery,
  problems,
  security,
  Time,
  VmName,
  VmParams,
} from './common.ts';
import { CreateVm, manyMost } from './new-vm.ts';

export const DeviceShape = z
  .object({
    version: z.string().openapi({ description: 'Version and digest of what it runs.', example: '0.1.0+1a2b3c4d5e6f' }),
    outdated: z.boolean().openapi({ description: 'One that is started now would run something else.' }),
  })
  .openapi('Device');

export const VmShape = z
  .object({
    id: z.string(),
    name: z.string(),
    kind: z.enum(['managed', 'attached']),
    type: z.string(),
    vcpus: z.int(),
    memoryMiB: z.int(),
    image: z.object({ name: z.string(), version: z.string(), digest: z.string() }).optional(),
    diskBytes: z.int().optional(),
    host: z.string().openapi({ description: 'The host that it was placed on.' }),
    network: z.looseObject({ mode: z.string() }),
    labels: z.record(z.string(), z.string()),
    restart: z.enum(['always', 'on-failure', 'never']),
    restartWhere: z.enum(['here', 'elsewhere']),
    stateless: z.boolean(),
    disk: z.enum(['local', 'network']),
    epoch: z.int().openapi({ description: 'Rises whenever it goes to another host; 1 at first.' }),
    desired: z.enum(['running', 'stopped', 'deleted']).openapi({ description: 'What was asked for last.' }),
    status: z.enum(vmStatuses),
    reason: z.string().openapi({ description: 'Why it has this status, in words; may be empty.' }),
    since: Time.optional(),
    ninep: z.boolean().openapi({ description: 'Whether the machine has a console that speaks 9P.' }),
    vsock: z.boolean().openapi({ description: 'Whether the machine has a vsock device to its host.' }),
    metadataServer: z
      .object({
        ways: z.array(z.enum(metadataWays)),
        addresses: z.array(z.string()).openapi({ description: 'What the guest asks, one for each way.' }),
        hopLimit: z.int().optional(),
        facades: z.array(z.string()).optional(),
        imdsV1: z.boolean().optional(),
        token: z
          .object({
            state: z.enum(tokenStates),
            claimedAt: Time.optional(),
            usedAt: Time.optional(),
          })
          .optional()
          .openapi({ description: 'How far the token of the last boot is, which its agent asks for once.' }),
      })
      .optional(),
    libvirtDomain: z.string().optional(),
    bootId: z.string().optional(),
    bootNumber: z.int(),
    addresses: z.array(z.string()).openapi({ description: 'IPv4 and IPv6, of a VM with a routed network.' }),
    udp: z
      .object({ address: z.string(), ports: z.array(z.int()) })
      .optional()
      .openapi({
        description: 'Ports of the address that all VMs of the region share; what comes there is for this VM.',
      }),
    device: DeviceShape.optional().openapi({ description: 'The process that serves its directory now.' }),
    createdAt: Time,
  })
  .openapi('Vm');

export const OperationShape = z
  .object({
    id: z.string(),
    kind: z.string().openapi({ example: 'vm.create' }),
    target: z.object({ name: z.string(), version: z.string().optional() }),
    state: z.enum(operationStates),
    step: z.string().openapi({ description: 'What is being done, in words; may be empty.' }),
    done: z.number(),
    total: z.number().optional(),
    failed: z.number().optional().openapi({ description: 'Of many VMs: how many of those that are done failed.' }),
    error: z.object({ code: z.string(), detail: z.string() }).optional(),
    createdAt: Time,
    finishedAt: Time.optional(),
  })
  .openapi('Operation');

const VmAndOperation = z.object({ vm: VmShape, operation: OperationShape }).openapi('VmAndOperation');

export const createVm = createRoute({
  operationId: 'createVm',
  method: 'post',
  path: '/v1/vms',
  tags: ['VMs'],
  summary: 'Create a VM',
  description:
    'Answers when it is durable; the operation is done when the VM runs (or, with `start: false`, is stopped).',
  'x-access': 'operator',
  'x-scope': 'vms',
  security,
  request: { headers: IdempotencyHeaders, body: body(CreateVm) },
  responses: {
    202: json(
      z.object({ vm: VmShape.optional(), operation: OperationShape }),
      'It is being made; with `count`, they are, and there is no `vm`.',
    ),
    ...problems(
      'NAME_TAKEN',
      'NOT_FOUND',
      'BAD_SPEC',
      'CONFLICT',
      'QUOTA_EXCEEDED',
      'WRONG_STATE',
      'NO_HOST',
      ...changing,
    ),
  },
});

const Selector = z
  .strictObject({
    names: z.array(VmName).min(1).max(manyMost).optional(),
    prefix: z.string().max(63).default('').openapi({ description: 'Names that begin so.' }),
    labels: z.array(z.string().max(320)).max(16).default([]).openapi({ description: '`KEY` or `KEY=VALUE`.' }),
    status: z.enum(vmStatuses).optional(),
    type: z.string().max(63).optional(),
    all: z.literal(true).optional().openapi({ description: 'Needed where nothing else is given: every VM.' }),
  })
  .refine(
    ({ names, prefix, labels, status, type, all }) =>
      all === true ||
      names !== undefined ||
      prefix !== '' ||
      labels.length > 0 ||
      status !== undefined ||
      type !== undefined,
    'say which VMs, or all: true',
  )
  .openapi('VmSelector', { description: 'VMs of which all of this holds. Attached ones can only be deleted.' });

export const actOnVms = createRoute({
  operationId: 'actOnVms',
  method: 'post',
  path: '/v1/vm-actions',
  tags: ['VMs'],
  summary: 'Start, stop, reboot or delete all VMs that match',
  description:
    'One operation for all of them, which has finished when each of them has got there. VMs that match later are not among them.',
  'x-access': 'operator',
  'x-scope': 'vms',
  security,
  request: {
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          action: z.enum(['start', 'stop', 'reboot', 'delete']),
          selector: Selector,
          graceSeconds: z.int().min(0).max(3600).optional().openapi({
            description:
              'How long guests have to stop by themselves; 0: they are ended at once. Default: that of the VM.',
          }),
        })
        .openapi('VmAction'),
    ),
  },
  responses: {
    202: json(z.object({ operation: OperationShape }), 'Asked for; the operation tells how it goes.'),
    ...problems('CONFLICT', ...changing),
  },
});

export const listVms = createRoute({
  operationId: 'listVms',
  method: 'get',
  path: '/v1/vms',
  tags: ['VMs'],
  summary: 'List VMs',
  description: 'In order of their names. A page may be short and not the last: only a missing `next` says so.',
  'x-access': 'viewer',
  'x-scope': 'vms',
  security,
  request: {
    query: z.strictObject({
      ...PageQuery,
      status: z.enum(vmStatuses).optional(),
      type: z.string().max(63).optional(),
      prefix: z.string().max(63).default('').openapi({ description: 'Names that begin so.' }),
      label: z
        .union([
          z
            .string()
            .max(320)
            .transform((one) => [one]),
          z.array(z.string().max(320)).max(16),
        ])
        .default([])
        .openapi({
          type: 'array',
          items: { type: 'string' },
          description: '`KEY` or `KEY=VALUE`; all of them must hold.',
        }),
    }),
  },
  responses: {
    200: json(z.object({ vms: z.array(VmShape), next: Next }), 'A page.'),
    ...problems('BAD_CURSOR', 'COMPACTED'),
  },
});

export const countVms = createRoute({
  operationId: 'countVms',
  method: 'get',
  path: '/v1/counts',
  tags: ['VMs'],
  summary: 'Count VMs by region, type and status',
  description: 'From an index that follows within moments.',
  'x-access': 'viewer',
  'x-scope': 'account',
  security,
  responses: {
    200: json(
      z.object({
        counts: z.array(z.object({ region: z.string(), type: z.string(), status: z.enum(vmStatuses), count: z.int() })),
      }),
      'Those that are not 0.',
    ),
    ...problems(),
  },
});

export const getVm = createRoute({
  operationId: 'getVm',
  method: 'get',
  path: '/v1/vms/{name}',
  tags: ['VMs'],
  summary: 'Show a VM',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: { params: VmParams },
  responses: { 200: json(VmShape, 'The VM.'), ...problems('VM_NOT_FOUND') },
});

const requested = {
  202: json(VmAndOperation, 'Asked for; the operation tells how it goes.'),
  ...problems('VM_NOT_FOUND', 'WRONG_STATE', 'CONFLICT', ...changing),
};

export const startVm = createRoute({
  operationId: 'startVm',
  method: 'post',
  path: '/v1/vms/{name}/start',
  tags: ['VMs'],
  summary: 'Start a VM',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, headers: IdempotencyHeaders },
  responses: requested,
});

const Stop = z
  .strictObject({
    graceSeconds: z.int().min(0).max(3600).optional().openapi({
      description: 'How long the guest has to stop by itself; 0: it is ended at once. Default: that of the VM.',
    }),
  })
  .openapi('Stop');

export const stopVm = createRoute({
  operationId: 'stopVm',
  method: 'post',
  path: '/v1/vms/{name}/stop',
  tags: ['VMs'],
  summary: 'Stop a VM',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, headers: IdempotencyHeaders, body: { ...body(Stop), required: false } },
  responses: requested,
});

export const rebootVm = createRoute({
  operationId: 'rebootVm',
  method: 'post',
  path: '/v1/vms/{name}/reboot',
  tags: ['VMs'],
  summary: 'Stop a VM and start it again, with a new boot id',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, headers: IdempotencyHeaders, body: { ...body(Stop), required: false } },
  responses: requested,
});

export const deleteVm = createRoute({
  operationId: 'deleteVm',
  method: 'delete',
  path: '/v1/vms/{name}',
  tags: ['VMs'],
  summary: 'Delete a VM, its disk and its metadata',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, headers: IdempotencyHeaders },
  responses: requested,
});

export const renewDevice = createRoute({
  operationId: 'renewDevice',
  method: 'post',
  path: '/v1/vms/{name}/device/renew',
  tags: ['VMs'],
  summary: 'Replace the process that serves a VM’s directory by a new one',
  description:
    'Programs in the guest wait for a moment; nothing fails, and nothing is lost. Answers when the new one serves.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, headers: IdempotencyHeaders },
  responses: {
    200: json(DeviceShape, 'What serves now.'),
    ...problems('VM_NOT_FOUND', 'WRONG_STATE', ...changing),
  },
});

export const getStatistics = createRoute({
  operationId: 'getStatistics',
  method: 'get',
  path: '/v1/vms/{name}/statistics',
  tags: ['VMs'],
  summary: 'What the host measures of a VM',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: { params: VmParams },
  responses: {
    200: json(
      z.object({ at: Time, values: z.record(z.string(), z.number()) }),
      'Counters and sizes, with their units.',
    ),
    ...problems('VM_NOT_FOUND', 'WRONG_STATE', 'UNSUPPORTED'),
  },
});

const amount = z.number().openapi({ description: 'Bytes.' });

const GuestStatusShape = z
  .object({
    at: z.string(),
    uptimeSeconds: z.number(),
    load: z.tuple([z.number(), z.number(), z.number()]),
    memory: z.object({ totalBytes: amount, availableBytes: amount }),
    swap: z.object({ totalBytes: amount, freeBytes: amount }),
    disks: z.array(z.object({ mount: z.string(), totalBytes: amount, freeBytes: amount })),
    agent: z.object({ version: z.string(), pid: z.int(), startedAt: z.string() }),
  })
  .openapi('GuestStatus');

const GuestProcessShape = z
  .object({
    pid: z.int(),
    user: z.string(),
    uid: z.number(),
    command: z.string(),
    cpuPercent: z.number(),
    memoryBytes: amount,
    state: z.string(),
  })
  .openapi('GuestProcess');

const Age = z.number().optional().openapi({ description: 'Milliseconds since it was written, by the host’s clock.' });

export const getTop = createRoute({
  operationId: 'getTop',
  method: 'get',
  path: '/v1/vms/{name}/top',
  tags: ['VMs'],
  summary: 'How a VM is doing: as its host sees it, and as the agent in it says',
  description:
    '`inside` is what whoever is root in the guest wrote into `/guest/.agent`: held to this shape, its text made printable, and believed by nobody. What makes no sense is left out and told of in `problems`.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams },
  responses: {
    200: json(
      z
        .object({
          host: z.object({ at: Time, values: z.record(z.string(), z.number()) }),
          inside: z.object({
            status: GuestStatusShape.optional(),
            statusAgeMs: Age,
            processes: z.array(GuestProcessShape).optional(),
            processesAgeMs: Age,
            problems: z.array(z.string()),
          }),
        })
        .openapi('Top'),
      'What there is of both.',
    ),
    ...problems('VM_NOT_FOUND', 'WRONG_STATE', 'UNSUPPORTED'),
  },
});
