/** A VM that is asked for: its parts, and what of them does not go together. */
import { z } from '@hono/zod-openapi';
import { metadataClouds, metadataWays, vmTypes } from '../../records/index.ts';
import { VmName } from './common.ts';

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

const NetworkShape = z
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

const MetadataServerShape = z
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

/** Of VMs in one request. */
export const manyMost = 1000;

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
