/** libvirt's words for a machine that has a tree of ours (https://libvirt.org/formatdomain.html). */
import type { AttachedMachine } from '../records/index.ts';

const escapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&apos;',
  '"': '&quot;',
};
const escaped = (text: string): string => text.replaceAll(/[&<>'"]/g, (character) => escapes[character]!);

/** Guest memory is shared with the device process, by a descriptor that is handed over. */
const memoryBacking = `<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
`;

const filesystem = (socketPath: string, tag: string): string => `<filesystem type='mount'>
  <driver type='virtiofs' queue='1024'/>
  <source socket='${escaped(socketPath)}'/>
  <target dir='${escaped(tag)}'/>
</filesystem>
`;

/**
 * Two consoles: hvc0, on which systemd starts a getty, leads nowhere; hvc1 speaks 9P. libvirt's QEMU connects again when the
 * other end hangs up.
 */
export const ninepConsole = (socketPath: string): string => `<console type='null'>
  <target type='virtio'/>
</console>
<console type='unix'>
  <source mode='connect' path='${escaped(socketPath)}'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target type='virtio'/>
</console>
`;

/** A virtio-serial port, which a guest finds by its name. */
export const metadataChannel = (socketPath: string, name: string): string => `<channel type='unix'>
  <source mode='connect' path='${escaped(socketPath)}'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target type='virtio' name='${escaped(name)}'/>
</channel>
`;

const indented = (text: string, spaces: number): string => text.replaceAll(/^(?=.)/gm, ' '.repeat(spaces));

/** The two elements, below the one that each belongs into but for `<domain>` itself. */
export const domainParts = (socketPath: string, tag: string): string =>
  `${memoryBacking}<devices>\n${indented(filesystem(socketPath, tag), 2)}</devices>\n`;

export interface DomainWish extends AttachedMachine {
  readonly domain: string;
  readonly accelerator: 'kvm' | 'tcg';
  /** Socket of a console that speaks 9P. */
  readonly ninep?: string | undefined;
  /** What else belongs among its devices. */
  readonly devices?: string | undefined;
}

const boards = {
  x64: { arch: 'x86_64', machine: 'q35', firmware: '' },
  /** Such a machine has no firmware of its own. */
  arm64: { arch: 'aarch64', machine: 'virt', firmware: " firmware='efi'" },
} as const;

/** A whole domain: what is asked for, the device, and a serial console. No network, which is whoever's the machine is. */
export const wholeDomain = (
  socketPath: string,
  tag: string,
  wish: DomainWish,
  architecture: keyof typeof boards = process.arch === 'arm64' ? 'arm64' : 'x64',
): string => {
  const { arch, machine, firmware } = boards[architecture];
  const { domain, accelerator, memoryMiB, vcpus, disk, diskFormat, kernel, initrd, kernelArguments, ninep, devices } =
    wish;
  const element = (name: string, text: string | undefined): string =>
    text === undefined ? '' : `    <${name}>${escaped(text)}</${name}>\n`;
  return `<domain type='${accelerator === 'kvm' ? 'kvm' : 'qemu'}'>
  <name>${escaped(domain)}</name>
  <memory unit='MiB'>${memoryMiB}</memory>
${indented(memoryBacking, 2)}  <vcpu>${vcpus}</vcpu>
  <os${kernel === undefined ? firmware : ''}>
    <type arch='${arch}' machine='${machine}'>hvm</type>
${element('kernel', kernel)}${element('initrd', initrd)}${element('cmdline', kernelArguments)}  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='${accelerator === 'kvm' ? 'host-passthrough' : 'maximum'}'/>
  <devices>
${disk === undefined || diskFormat === undefined ? '' : indented(diskElement(disk, diskFormat), 4)}${indented(filesystem(socketPath, tag), 4)}    <serial type='pty'/>
    <console type='pty'/>
${ninep === undefined ? '' : indented(ninepConsole(ninep), 4)}${devices === undefined ? '' : indented(devices, 4)}  </devices>
</domain>
`;
};

const diskElement = (path: string, format: 'qcow2' | 'raw'): string => `<disk type='file' device='disk'>
  <driver name='qemu' type='${format}'/>
  <source file='${escaped(path)}'/>
  <target dev='vda' bus='virtio'/>
</disk>
`;
