/** What a machine that others start needs, to have a tree of ours: arguments, domain XML, the mount line. */

/** The tag is the monitor's: it builds the device's configuration space. */
const tag = 'metadata';

export const mountCommand = `mount -t virtiofs -o nosuid,nodev ${tag} /run/metadata`;

export interface AttachWords {
  readonly socketPath: string;
  readonly tag: string;
  /** What follows `qemu-system-…`, one argument each, and the same for Cloud Hypervisor. */
  readonly qemu: readonly string[];
  readonly cloudHypervisor: readonly string[];
  /** What belongs into a libvirt domain: two elements, each in its place. */
  readonly libvirtXml: string;
  readonly mount: string;
}

/** Guest memory must be shared with the device process, so its size is said where it is allocated: `memory`, as in "1G". */
export const qemuArguments = (socketPath: string, memory: string): readonly string[] => [
  '-object',
  `memory-backend-memfd,id=mem,size=${memory},share=on`,
  '-machine',
  'q35,memory-backend=mem',
  '-m',
  memory,
  '-chardev',
  `socket,id=${tag},path=${socketPath.replaceAll(',', ',,')}`,
  '-device',
  `vhost-user-fs-pci,chardev=${tag},tag=${tag},queue-size=1024`,
];

const escapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&apos;',
  '"': '&quot;',
};
const escapeXml = (text: string): string => text.replaceAll(/[&<>'"]/g, (character) => escapes[character]!);

/** Cloud Hypervisor splits at commas and has no way to write one. */
export const attachWords = (socketPath: string, memory = '1G'): AttachWords => ({
  socketPath,
  tag,
  qemu: qemuArguments(socketPath, memory),
  cloudHypervisor: [
    '--memory',
    `size=${memory},shared=on`,
    '--fs',
    `tag=${tag},socket=${socketPath},num_queues=1,queue_size=1024`,
  ],
  libvirtXml: `<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<devices>
  <filesystem type='mount'>
    <driver type='virtiofs' queue='1024'/>
    <source socket='${escapeXml(socketPath)}'/>
    <target dir='${tag}'/>
  </filesystem>
</devices>
`,
  mount: mountCommand,
});
