/** `porthole vm create`. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { vmTypes } from '../../records/index.ts';
import { parseSize } from '../amounts.ts';
import {
  apiCommand,
  collect,
  collected,
  parseCount,
  parseImage,
  parseLabel,
  printJson,
  type Shell,
} from '../command.ts';
import {
  hopLimitOption,
  type MetadataServerFlags,
  metadataServerOf,
  metadataServerOptions,
} from '../metadata-server-flags.ts';
import { withImage } from '../near.ts';
import { finished } from '../operation.ts';
import type { NewVm, Operation, Vm } from '../shapes.ts';
import { readSpec, withSpecShown } from '../spec-problems.ts';
import type { Terminal } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';

type Forward = NonNullable<Extract<NonNullable<NewVm['network']>, { mode: 'user' }>['forwards']>[number];

interface CreateFlags extends MetadataServerFlags {
  readonly image: { readonly name: string; readonly version?: string };
  readonly type: keyof typeof vmTypes;
  readonly metadata?: string;
  readonly port?: readonly Forward[];
  readonly tap?: string;
  readonly routed?: true;
  readonly udpPorts?: number;
  readonly network: boolean;
  readonly isolated?: true;
  readonly disk?: number;
  readonly '9p'?: true;
  readonly vsock?: true;
  readonly label?: readonly (readonly [string, string])[];
  readonly count?: number;
  readonly first?: number;
  readonly host?: string;
  readonly hostLabel?: readonly string[];
  readonly pack?: true;
  readonly apart?: string;
  readonly restart?: NewVm['restart'];
  readonly restartWhere?: NewVm['restartWhere'];
  readonly stateless?: true;
  readonly networkDisk?: true;
  readonly grace?: number;
  readonly start: boolean;
  readonly wait: boolean;
  readonly json?: true;
}

const typeNames = Object.keys(vmTypes) as readonly (keyof typeof vmTypes)[];
const typeWords = typeNames
  .map((name) => `${name} (${vmTypes[name].vcpus} vCPU, ${vmTypes[name].memoryMiB} MiB)`)
  .join(', ');

export const waitOption = (): Option => new Option('--no-wait', 'return as soon as it is asked for');

/** Of `--no-wait`: what there is to ask about later. */
export const told = ({ out }: Terminal, { id }: Operation): void => void out(`${id}\n`);

export const createCommand = (vm: Command, shell: Shell): void => {
  const command = apiCommand(vm, 'create', 'create virtual machines, and start them')
    .argument('<name>', 'its name: a-z, 0-9 and "-"; with --count, what their names are made of')
    .requiredOption(
      '--image <image>',
      'NAME, NAME:VERSION or NAME@VERSION (required); without a version: the one added last',
      parseImage,
    )
    .addOption(new Option('--type <type>', 'its size').choices(typeNames).default('small'))
    .option('--count <number>', 'so many, named NAME-1 and so on', parseCount(1, 1000))
    .option('--first <number>', 'with --count: the number of the first; default: 1', parseCount(0, 1_000_000))
    .option('--host <host>', 'on this host; default: where least is taken')
    .option('--host-label <label>', 'on a host with KEY, or with KEY=VALUE (any number of times)', collect)
    .option('--pack', 'on the fullest host that has room')
    .option('--apart <label>', 'on no host that has one with the same value of this label of theirs')
    .option('--metadata <file>', 'its metadata and policy, a spec file')
    .option(
      '--port <forward>',
      'as 8080:80, 127.0.0.1:8080:80 or 5353:53/udp (any number of times)',
      collected(parseForward),
    )
    .option('--tap <device>', 'connect it to this tap device, which exists')
    .option('--routed', 'a network of its own, with an IPv4 and an IPv6 address of the region')
    .option('--udp-ports <number>', 'with --routed: ports of the region’s shared address', parseCount(1, 16))
    .option('--no-network', 'without any network')
    .option('--isolated', 'let nothing out but answers through --port; else it reaches what this machine reaches')
    .option('--disk <size>', 'size of its disk, as 10G; default: that of the image', parseSize)
    .option('--network-disk', 'with --disk, for images of a kernel: not on its host, so that it goes to others with it')
    .option('--9p', 'also a console that speaks 9P, hvc1, for guests without virtiofs')
    .option('--vsock', 'also a vsock device that leads to unix sockets of this host, with 9P on port 564');
  metadataServerOptions(command, {
    network: '169.254.169.254',
    vsock: 'port 80',
    serial: 'a virtio-serial port',
  })
    .addOption(hopLimitOption())
    .option('--label <label>', 'KEY=VALUE (any number of times)', collected(parseLabel))
    .addOption(
      new Option('--restart <when>', 'start it again after an end that nobody asked for')
        .choices(['always', 'on-failure', 'never'])
        .default('on-failure'),
    )
    .addOption(
      new Option(
        '--restart-where <where>',
        'when its host is lost: there, once it is back, or on another; default: here',
      ).choices(['here', 'elsewhere']),
    )
    .option('--stateless', 'nothing on its disk needs to be kept: it may begin anew on another host')
    .option('--grace <seconds>', 'how long the guest has to stop by itself; default: 30', parseCount(0, 3600))
    .option('--no-start', 'leave it stopped')
    .addOption(waitOption())
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Types: ${typeWords.replaceAll('), ', '),\n       ')}.

It waits until the machine runs, and shows how far it is. Ctrl-C cancels it:
the machine is deleted again. --no-wait does not wait.

With --count, {{index}} in the name stands for the number, {{region}} for the
region; so they do, and {{name}}, in the spec file. Ctrl-C then leaves those
that were begun, and begins no more.

Examples:
  porthole vm create web-1 --image debian:12 --metadata web.yaml --port 8080:80
  porthole vm create db-1 --image debian --type medium --disk 20G
  porthole vm create web --count 20 --region eu,us --image debian@3
  porthole vm create ci-1 --image debian --metadata-server network --facade ec2`,
    )
    .action((name: string, flags: CreateFlags) => create(shell, name, flags));
};

const create = async ({ apis: connect, terminal }: Shell, name: string, flags: CreateFlags): Promise<void> => {
  const { image, type, metadata, disk, label = [], restart, grace, start, count, first } = flags;
  if (first !== undefined && count === undefined) throw new UsageError('--first goes with --count');
  const spec = metadata === undefined ? undefined : await readSpec(terminal, metadata);
  const regions = connect();
  const wanted: NewVm = {
    name,
    image,
    type,
    network: networkOf(flags),
    labels: Object.fromEntries(label),
    start,
    placement: placementOf(flags),
    ...(count !== undefined && { count }),
    ...(first !== undefined && { firstIndex: first }),
    ...(restart !== undefined && { restart }),
    ...(flags.restartWhere !== undefined && { restartWhere: flags.restartWhere }),
    ...(flags.networkDisk && { disk: 'network' as const }),
    ...(flags.stateless && { stateless: true }),
    ...(flags['9p'] && { ninep: true }),
    ...(flags.vsock && { vsock: true }),
    ...metadataServerOf(flags),
    ...(disk !== undefined && { diskBytes: disk }),
    ...(grace !== undefined && { stopGraceSeconds: grace }),
    ...(spec !== undefined && { spec: spec.sent }),
  };
  // All are asked for first and waited for then.
  const asked = [];
  for (const api of regions)
    asked.push({
      api,
      ...(await withSpecShown(spec, () => withImage(api, image.name, () => api.call('createVm', { body: wanted })))),
    });
  const made: { readonly vm?: Vm; readonly operation: Operation }[] = [];
  for (const { api, vm, operation } of asked) {
    if (!flags.wait) {
      made.push({ ...(vm && { vm }), operation });
      if (flags.json !== true) told(terminal, operation);
      continue;
    }
    const done = await finished(api, operation, terminal);
    if (flags.json === true)
      made.push({ ...(vm && { vm: await api.call('getVm', { params: { name } }) }), operation: done });
  }
  if (flags.json === true) printJson(terminal, regions.length === 1 ? made[0] : made);
};

const placementOf = ({ host, hostLabel, pack, apart }: CreateFlags): NonNullable<NewVm['placement']> => ({
  ...(pack && { strategy: 'pack' }),
  ...(host !== undefined && { host }),
  ...(hostLabel && { hostLabels: [...hostLabel] }),
  ...(apart !== undefined && { apart }),
});

const networkOf = (flags: CreateFlags): NonNullable<NewVm['network']> => {
  const { port = [], tap, network, isolated, routed, udpPorts } = flags;
  if (udpPorts !== undefined && !routed) throw new UsageError('--udp-ports goes with --routed');
  if (routed) {
    if (!network || tap !== undefined || port.length > 0 || isolated)
      throw new UsageError('--routed is a network by itself: give no --no-network, --tap, --port or --isolated');
    return { mode: 'routed', ...(udpPorts !== undefined && { udpPorts }) };
  }
  if (!network) {
    if (tap !== undefined || port.length > 0) throw new UsageError('--no-network leaves nothing for --tap or --port');
    if (isolated) throw new UsageError('--no-network leaves nothing for --isolated');
    return { mode: 'none' };
  }
  if (tap === undefined) return { mode: 'user', forwards: [...port], ...(isolated && { isolated }) };
  if (isolated) throw new UsageError('--isolated is for the network without --tap: what a tap device reaches is yours');
  if (port.length > 0) throw new UsageError('--port is for the network without --tap: a tap device forwards nothing');
  return { mode: 'tap', device: tap };
};

const forwardPattern = /^(?:([^:]+):)?(\d{1,5}):(\d{1,5})(?:\/(tcp|udp))?$/;

/** `[ADDRESS:]HOST:GUEST[/PROTOCOL]`. */
const parseForward = (text: string): Forward => {
  const [, address, host, guest, protocol] = forwardPattern.exec(text) ?? [];
  const ports = [Number(host), Number(guest)] as const;
  if (ports.some((one) => !(one >= 1 && one <= 65535)))
    throw new InvalidArgumentError(
      'Write it as HOST:GUEST, ADDRESS:HOST:GUEST or HOST:GUEST/udp, ports from 1 to 65535.',
    );
  return {
    hostPort: ports[0],
    guestPort: ports[1],
    ...(address !== undefined && { hostAddress: address }),
    ...(protocol !== undefined && { protocol: protocol as 'tcp' | 'udp' }),
  };
};
