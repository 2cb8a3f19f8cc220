/** `porthole vm attach`: a device for a machine that others start. */
import { type Command, Option } from 'commander';
import { ClientError } from '../../cluster/client/index.ts';
import { parseSize } from '../amounts.ts';
import { apiCommand, parseCount, printJson, type Shell } from '../command.ts';
import { type MetadataServerFlags, metadataServerOf, metadataServerOptions } from '../metadata-server-flags.ts';
import { finished } from '../operation.ts';
import { shellQuoted } from '../serve-words.ts';
import type { Attachment, NewVm } from '../shapes.ts';
import { readSpec, withSpecShown } from '../spec-problems.ts';
import { UsageError } from '../usage-error.ts';

interface AttachFlags extends MetadataServerFlags {
  readonly metadata?: string;
  readonly for?: Monitor;
  readonly domain?: string;
  readonly '9p'?: true;
  readonly vsock?: true;
  readonly memory?: number;
  readonly cpus?: number;
  readonly disk?: string;
  readonly kernel?: string;
  readonly initrd?: string;
  readonly append?: string;
  readonly json?: true;
}

const monitors = ['qemu', 'libvirt', 'libvirt-domain', 'cloud-hypervisor'] as const;
type Monitor = (typeof monitors)[number];

export const attachCommand = (vm: Command, shell: Shell): void => {
  const command = apiCommand(vm, 'attach', 'serve a machine that QEMU, libvirt or Cloud Hypervisor starts')
    .argument('<name>', 'its name here; when it is new, it is made')
    .option('--metadata <file>', 'metadata and policy of a new one, a spec file')
    .addOption(new Option('--for <monitor>', 'print what this one needs only').choices(monitors))
    .option('--domain <name>', 'of a new one: the libvirt domain of the host whose reboots are its boots')
    .option('--9p', 'of a new one: also a console that speaks 9P, for guests without virtiofs')
    .option('--vsock', 'of a new one: also a vsock device, with 9P on port 564');
  metadataServerOptions(command, {
    vsock: 'port 80',
    serial: 'a virtio-serial port',
    socket: 'sockets for relays',
  })
    .option('--memory <size>', 'what is printed is for a machine of this size; default: 1G', parseSize)
    .option('--cpus <count>', 'and with so many CPUs; default: 1', parseCount(1, 1024))
    .option('--disk <format:file>', 'a disk of the printed domain: "qcow2:" or "raw:", and a path of the host')
    .option('--kernel <file>', 'a kernel for it to boot, on the host')
    .option('--initrd <file>', 'and its initrd')
    .option('--append <words>', 'and its command line')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Prints what the machine needs to have the device, and what its guest runs to
mount it; with --for libvirt-domain a whole domain. Run it again to see that
again. --domain: starts and reboots of the domain become boots of the VM.

Examples:
  porthole vm attach web-1 --metadata web.yaml
  porthole vm attach web-1 --for libvirt
  porthole vm attach web-1 --domain web-1 --for libvirt-domain --memory 2G \\
      --disk qcow2:/var/lib/libvirt/images/web-1.qcow2 >web-1.xml
  virsh define web-1.xml`,
    )
    .action((name: string, flags: AttachFlags) => attach(shell, name, flags));
};

const attach = async ({ api: connect, terminal }: Shell, name: string, flags: AttachFlags): Promise<void> => {
  const api = connect();
  const machine = machineOf(flags);
  const spec = flags.metadata === undefined ? undefined : await readSpec(terminal, flags.metadata);
  const known = await api.call('getVm', { params: { name } }).catch((error: unknown) => {
    if (error instanceof ClientError && error.code === 'VM_NOT_FOUND') return undefined;
    throw error;
  });
  if (known?.kind === 'managed')
    throw new Error(`"${name}" is started by Porthole itself; attach is for machines that others start`);
  if (known !== undefined && spec !== undefined)
    throw new Error(`"${name}" is there already; "porthole metadata import ${name} ${flags.metadata}" loads the file`);
  if (known !== undefined && flags.domain !== undefined && flags.domain !== known.libvirtDomain)
    throw new Error(
      known.libvirtDomain === undefined
        ? `"${name}" was attached without a domain, and has its boots told of; that cannot be changed`
        : `the domain of "${name}" is "${known.libvirtDomain}"; that cannot be changed`,
    );
  if (known?.ninep === false && flags['9p'])
    throw new Error(`"${name}" was attached without --9p; that cannot be changed`);
  if (known?.vsock === false && flags.vsock)
    throw new Error(`"${name}" was attached without --vsock; that cannot be changed`);
  const { metadataServer } = metadataServerOf(flags);
  if (known !== undefined && metadataServer !== undefined) {
    const { ways = [], facades, imdsV1 = false } = known.metadataServer ?? {};
    for (const way of metadataServer.ways)
      if (!ways.includes(way))
        throw new Error(`"${name}" was attached without --metadata-server ${way}; that cannot be changed`);
    if (
      metadataServer.facades?.toSorted().join() !== facades?.toSorted().join() &&
      metadataServer.facades !== undefined
    )
      throw new Error(
        `the metadata server of "${name}" shows the APIs of ${facades?.join(', ') ?? 'all clouds'}; that cannot be changed`,
      );
    if (metadataServer.imdsV1 && !imdsV1)
      throw new Error(`"${name}" was attached without --imds-v1; that cannot be changed`);
  }
  if (known === undefined) {
    const wanted: NewVm = {
      name,
      kind: 'attached',
      network: { mode: 'none' },
      ...(flags['9p'] && { ninep: true }),
      ...(flags.vsock && { vsock: true }),
      ...metadataServerOf(flags),
      ...(flags.domain !== undefined && { libvirtDomain: flags.domain }),
      ...(spec !== undefined && { spec: spec.sent }),
    };
    const { operation } = await withSpecShown(spec, () => api.call('createVm', { body: wanted }));
    await finished(api, operation, terminal);
  }
  const attachment = await api.call('getAttachment', { params: { name }, query: machine });
  if (flags.json === true) printJson(terminal, attachment);
  else terminal.out(words(attachment, flags.for));
};

const mebibyte = 1024 * 1024;

const machineOf = ({ memory, cpus, disk, kernel, initrd, append }: AttachFlags): Record<string, string> => {
  const [, diskFormat, diskPath] = /^(qcow2|raw):(\/.+)$/s.exec(disk ?? '') ?? [];
  if (disk !== undefined && diskPath === undefined)
    throw new UsageError(`--disk ${disk}: write its format and an absolute path, as in "qcow2:/srv/web-1.qcow2"`);
  if (memory !== undefined && memory % mebibyte !== 0)
    throw new UsageError('--memory: whole MiB are needed, as in "512M" or "2G"');
  if (kernel === undefined && (initrd ?? append) !== undefined)
    throw new UsageError('--initrd and --append are for a kernel: give --kernel too');
  const given = {
    memoryMiB: memory === undefined ? undefined : String(memory / mebibyte),
    vcpus: cpus === undefined ? undefined : String(cpus),
    disk: diskPath,
    diskFormat,
    kernel,
    initrd,
    kernelArguments: append,
  };
  return Object.fromEntries(Object.entries(given).filter((pair): pair is [string, string] => pair[1] !== undefined));
};

const words = (attachment: Attachment, only: Monitor | undefined): string => {
  const { ninep, vsock, metadataServer } = attachment;
  const serial = metadataServer?.serial;
  const parts: Readonly<Record<Monitor, string>> = {
    qemu: flagLines([...attachment.qemu, ...(ninep?.qemu ?? []), ...(vsock?.qemu ?? []), ...(serial?.qemu ?? [])]),
    libvirt:
      `${attachment.libvirtXml}${ninep === undefined ? '' : withinDevices(ninep.libvirtXml)}${serial === undefined ? '' : withinDevices(serial.libvirtXml)}`.trimEnd(),
    'libvirt-domain': attachment.libvirtDomain.trimEnd(),
    'cloud-hypervisor': flagLines([...attachment.cloudHypervisor, ...(vsock?.ofOthers.cloudHypervisor ?? [])]),
  };
  if (only !== undefined) return `${parts[only]}\n`;
  const indented = (text: string): string => text.replaceAll(/^(?=.)/gm, '    ');
  return `listening on ${attachment.socketPath}
  QEMU (the guest's memory after size= and -m, the same in both):
${indented(parts.qemu)}
  libvirt, in the domain's XML:
${indented(parts.libvirt)}
  Cloud Hypervisor:
${indented(parts['cloud-hypervisor'])}
  in the guest:
    mkdir -p /run/metadata
    ${attachment.mount}
${ninep === undefined ? '' : `  or, where it has no virtiofs but 9P, with the helper of docs/9p.md:\n    ${ninep.mount}\n`}${vsock === undefined ? '' : `  or by vsock, with that helper:\n    ${vsock.mount}\n${wordsOfOthers(vsock.ofOthers, metadataServer !== undefined)}`}${metadataWords(metadataServer)}`;
};

/** Where the guest finds its metadata server, or a relay of its monitor's leads to. */
const metadataWords = (server: Attachment['metadataServer']): string => {
  if (server === undefined) return '';
  const { serial, vsock, sockets } = server;
  const lines = [
    serial && 'the virtio-serial port org.porthole.metadata',
    vsock &&
      `port ${vsock.port} of vsock CID 2; with another vsock device: ln -s ${vsock.socketPath} PATH_${vsock.port}`,
    sockets && `${sockets.any}, for relays of what any program of the guest may open`,
    sockets && `${sockets.privileged}, for relays of what only its root may`,
  ];
  return `  its metadata server:\n${lines.flatMap((line) => (line === undefined ? [] : [`    ${line}\n`])).join('')}`;
};

/** Who has a vsock device of its own leads one port of it to us. */
const wordsOfOthers = (
  { socketPath, firecracker, mount }: NonNullable<Attachment['vsock']>['ofOthers'],
  hasToken: boolean,
): string => `  by the vsock device of Cloud Hypervisor (as above) or of Firecracker:
    ln -s ${shellQuoted(socketPath)} ${shellQuoted(`${firecracker.uds_path}_564`)}
    PUT /vsock ${JSON.stringify(firecracker)}
    ${hasToken ? mount : "# it takes the boot's token, so a VM that was attached with --metadata-server socket too"}
`;

const withinDevices = (xml: string): string => `<devices>\n${xml.replaceAll(/^(?=.)/gm, '  ')}</devices>\n`;

/** A flag and its value a line. */
const flagLines = (flags: readonly string[]): string => {
  const lines: string[] = [];
  for (const word of flags) {
    if (word.startsWith('-') || lines.length === 0) lines.push(shellQuoted(word));
    else lines.push(`${lines.pop()} ${shellQuoted(word)}`);
  }
  return lines.join(' \\\n');
};
