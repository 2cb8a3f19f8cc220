import { createRoute, z } from '@hono/zod-openapi';
import {
  metadataClouds,
  metadataWays,
  operationStates,
  tokenStates,
  vmStatuses,
  vmTypes,
} from '../../records/index.ts';
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

const labelKey = /^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;

export const Labels = z
  .record(z.string().regex(labelKey, 'letters, digits, ".", "_", "/" and "-", at most 63'), z.string().max(255))
  .refine((labels) => Object.keys(labels).length <= 64, 'at most 64 labels');

const NetworkForward = z.strictObject({
  protocol: z.enum(['tcp', 'udp']).default('tcp'),
  hostAddress: z
    .ipv4('an IPv4 address: ports are forwarded from no other')
    .openapi({ format: 'ipv4' })
    .default('127.0.0.1'),
  hostPort: z.int().min(1).max(65535),
  guestPort: z.int().min(1).max(65535),
});

export const NetworkShape = z
  .discriminatedUnion('mode', [
    z.strictObject({ mode: z.literal('none') }),
    z.strictObject({
      mode: z.literal('user'),
      forwards: z.array(NetworkForward).max(64).default([]),
      isolated: z.boolean().optional().openapi({
        description:
          'Nothing gets out but answers through the forwards. Else the guest reaches whatever its host reaches, the loopback of that included.',
      }),
    }),
    z.strictObject({
      mode: z.literal('tap'),
      device: z.string().regex(/^[A-Za-z0-9_.-]{1,15}$/, 'the name of a tap device that exists'),
    }),
    z
      .strictObject({
        mode: z.literal('routed'),
        udpPorts: z.int().min(0).max(16).optional().openapi({
          description: 'So many UDP ports of the address that all VMs of the region share; default: none.',
        }),
      })
      .openapi({ description: 'A tap device of its own, with an IPv4 and an IPv6 address of the region.' }),
  ])
  .openapi('Network');

export const MetadataServerShape = z
  .strictObject({
    ways: z.array(z.enum(metadataWays)).min(1).max(metadataWays.length).openapi({
      description:
        'How the guest reaches it. network: http://169.254.169.254 on its network, the user-mode one or the tap device, its own too. vsock: port 80 of CID 2; the VM needs vsock. serial: the virtio-serial port org.porthole.metadata. socket, of an attached VM: unix sockets for relays.',
    }),
    hopLimit: z
      .int()
      .min(1)
      .max(255)
      .optional()
      .openapi({ description: 'Hops that answers may travel on a tap device (IP TTL). Default: 1.' }),
    facades: z
      .array(z.enum(metadataClouds))
      .min(1)
      .max(metadataClouds.length)
      .optional()
      .openapi({ description: 'The clouds whose APIs it speaks; default: all.' }),
    imdsV1: z.boolean().optional().openapi({ description: 'EC2’s first version, without sessions, is answered too.' }),
  })
  .openapi('MetadataServer');

const imageName = z.string().regex(/^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$/, 'a-z, 0-9, ".", "_" and "-", at most 63');
export const ImageName = imageName;
export const ImageVersion = imageName;

/** As libvirt takes them, less what could be mistaken in a table or a line of its output. */
const LibvirtDomain = z
  .string()
  .regex(/^[^\s/'"\p{C}]([^/'"\p{C}\p{Zl}\p{Zp}]{0,198}[^\s/'"\p{C}])?$/u, 'the name of a libvirt domain');

/** What does not go together with the rest of a VM. */
const metadataProblems = ({
  kind,
  vsock,
  network,
  metadataServer,
}: {
  readonly kind: 'managed' | 'attached';
  readonly vsock: boolean;
  readonly network: { readonly mode: string };
  readonly metadataServer?: z.infer<typeof MetadataServerShape> | undefined;
}): string[] => {
  if (metadataServer === undefined) return [];
  const { ways, hopLimit } = metadataServer;
  const has = (way: (typeof metadataWays)[number]): boolean => ways.includes(way);
  return [
    has('vsock') && !vsock && 'the way vsock needs vsock: true',
    has('network') && kind === 'attached' && 'the network of an attached VM is not known here: relay to the way socket',
    has('network') && kind === 'managed' && network.mode === 'none' && 'the way network needs a network',
    has('socket') && kind === 'managed' && 'the way socket is for attached VMs',
    hopLimit !== undefined &&
      !(has('network') && (network.mode === 'tap' || network.mode === 'routed')) &&
      'hopLimit is for the way network on a tap',
  ].filter((problem) => problem !== false);
};

const elsewhereProblems = ({
  kind,
  restartWhere,
  stateless,
  disk,
  placement,
}: {
  readonly kind: 'managed' | 'attached';
  readonly restartWhere: 'here' | 'elsewhere';
  readonly stateless: boolean;
  readonly disk: 'local' | 'network';
  readonly placement: { readonly host?: string | undefined };
}): string[] => {
  if (restartWhere === 'here') return [];
  return [
    kind === 'attached' && 'an attached VM is started by others: here is all that it can be',
    kind === 'managed' &&
      !stateless &&
      disk === 'local' &&
      'its disk stays on its host: only a VM with stateless: true or disk: network starts elsewhere',
    placement.host !== undefined && `it is for the host "${placement.host}" alone, and so starts nowhere else`,
  ].filter((problem) => problem !== false);
};

const Placement = z
  .strictObject({
    strategy: z.enum(['spread', 'pack']).default('spread').openapi({
      description: 'spread: the host of which least is taken. pack: of which most is.',
    }),
    host: VmName.optional().openapi({ description: 'This host, and no other.' }),
    hostLabels: z
      .array(z.string().max(320))
      .max(16)
      .default([])
      .openapi({ description: '`KEY` or `KEY=VALUE`: labels that the host must have.' }),
    apart: z.string().max(63).optional().openapi({
      description: 'One of the VM’s labels: no two VMs of the account that name it, with the same value, share a host.',
    }),
  })
  .openapi('Placement', { description: 'Which host it goes to.' });

const manyMost = 1000;

/** Whether one VM is asked for, as it was before there were more: then there are no placeholders. */
const isOne = ({ count }: { readonly count?: number | undefined }): boolean => count === undefined;

/** The longest name of many, with their numbers. */
const longestName = ({
  name,
  count = 1,
  firstIndex = 1,
}: {
  name: string;
  count?: number | undefined;
  firstIndex?: number | undefined;
}): string => {
  const template = name.includes('{{index}}') ? name : `${name}-{{index}}`;
  return template.replaceAll('{{index}}', String(firstIndex + count - 1)).replaceAll('{{region}}', 'region');
};

export const CreateVm = z
  .strictObject({
    name: z.string().max(200).openapi({
      description:
        'A DNS label. With `count`: what their names are made of; `{{index}}` is their number, at the end unless it stands elsewhere, and `{{region}}` the region.',
      example: 'web-1',
    }),
    count: z.int().min(1).max(manyMost).optional().openapi({
      description:
        'So many of them, in one operation. In their spec, `{{index}}`, `{{name}}` and `{{region}}` stand for what is each one’s own.',
    }),
    firstIndex: z
      .int()
      .min(0)
      .max(1_000_000)
      .optional()
      .openapi({ description: 'With `count`: the first number; default: 1.' }),
    kind: z.enum(['managed', 'attached']).default('managed').openapi({
      description:
        'attached: others start it (QEMU, libvirt, Cloud Hypervisor), and its directory is served from here.',
    }),
    type: z
      .enum(Object.keys(vmTypes) as [keyof typeof vmTypes])
      .optional()
      .openapi({
        description: 'vCPUs and memory. Needed for a managed VM.',
      }),
    image: z.strictObject({ name: imageName, version: imageName.optional() }).optional().openapi({
      description: 'Needed for a managed VM. Without a version: the one added last.',
    }),
    diskBytes: z
      .int()
      .min(1024 * 1024)
      .max(64 * 1024 ** 4)
      .multipleOf(512, 'a multiple of 512')
      .optional()
      .openapi({ description: 'Size of the first disk; at least that of the image.' }),
    disk: z.enum(['local', 'network']).default('local').openapi({
      description:
        'Where its disk is: on its host, an overlay of the image; or network: at the region’s storage, empty at first, from where it goes to another host with its VM. For images of a kernel, with diskBytes.',
    }),
    network: NetworkShape.default({ mode: 'user', forwards: [] }),
    labels: Labels.default({}),
    restart: z.enum(['always', 'on-failure', 'never']).default('on-failure'),
    restartWhere: z.enum(['here', 'elsewhere']).default('here').openapi({
      description:
        'When its host is lost. here: it waits for that host, and runs nowhere else. elsewhere: its host ends it when it is cut off, and another starts it; for a VM that is stateless, or has a network disk.',
    }),
    stateless: z.boolean().default(false).openapi({
      description: 'Nothing on its disk needs to be kept: it may go to another host, and begins anew there.',
    }),
    start: z.boolean().default(true),
    stopGraceSeconds: z.int().min(0).max(3600).default(30),
    ninep: z.boolean().default(false).openapi({
      description: 'Also a virtio console of the machine, hvc1, that speaks 9P: for guests without virtiofs.',
    }),
    vsock: z.boolean().default(false).openapi({
      description: 'Also a vsock device that leads to unix sockets of its host, with 9P on port 564.',
    }),
    metadataServer: MetadataServerShape.optional().openapi({
      description: 'Also an HTTP server for the sole use of this VM: clouds’ APIs for all, the tree for its agent.',
    }),
    libvirtDomain: LibvirtDomain.optional().openapi({
      description: 'Of an attached VM: the libvirt domain of its host whose starts and reboots are its boots.',
    }),
    placement: Placement.prefault({}),
    spec: z.string().max(900_000).optional().openapi({
      description:
        'Metadata and policy of the first tree: the YAML of `docs/spec-file.md`. In place before the first boot.',
    }),
  })
  .superRefine((vm, context) => {
    const name = isOne(vm) ? vm.name : longestName(vm);
    if (!VmName.safeParse(name).success)
      context.addIssue({
        code: 'custom',
        path: ['name'],
        message: `${JSON.stringify(name)} is no DNS label: a-z, 0-9 and "-", at most 63, no "-" at its ends`,
      });
    if (isOne(vm) && vm.firstIndex !== undefined)
      context.addIssue({ code: 'custom', path: ['firstIndex'], message: 'this goes with count' });
    const needs = (key: 'type' | 'image', isNeeded: boolean): void => {
      if ((vm[key] !== undefined) === isNeeded) return;
      context.addIssue({
        code: 'custom',
        path: [key],
        message: isNeeded ? `a managed VM needs ${key}` : `an attached VM has no ${key}: it is started elsewhere`,
      });
    };
    needs('type', vm.kind === 'managed');
    if (vm.network.mode === 'routed' && vm.kind === 'attached')
      context.addIssue({
        code: 'custom',
        path: ['network'],
        message: 'an attached VM has the network that it is started with elsewhere',
      });
    needs('image', vm.kind === 'managed');
    for (const message of metadataProblems(vm)) context.addIssue({ code: 'custom', path: ['metadataServer'], message });
    if (vm.disk === 'network' && vm.kind === 'attached')
      context.addIssue({ code: 'custom', path: ['disk'], message: 'an attached VM has its disks where it is started' });
    if (vm.disk === 'network' && vm.diskBytes === undefined)
      context.addIssue({ code: 'custom', path: ['diskBytes'], message: 'a network disk needs its size' });
    for (const message of elsewhereProblems(vm)) context.addIssue({ code: 'custom', path: ['restartWhere'], message });
    if (vm.libvirtDomain !== undefined && vm.kind === 'managed')
      context.addIssue({
        code: 'custom',
        path: ['libvirtDomain'],
        message: 'a managed VM has no libvirt domain: it is started here',
      });
  })
  .openapi('CreateVm');

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
