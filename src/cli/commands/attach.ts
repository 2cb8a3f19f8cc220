/** `porthole vm attach`: a device for a machine that others start. */
import { type Command, Option } from 'commander';
import { ClientError } from '../../cluster/client/index.ts';
import { apiCommand, printJson, type Shell } from '../command.ts';
import { finished } from '../operation.ts';
import { shellQuoted } from '../serve-words.ts';
import type { Attachment, NewVm } from '../shapes.ts';
import { readSpec, withSpecShown } from '../spec-problems.ts';

interface AttachFlags {
  readonly metadata?: string;
  readonly for?: Monitor;
  readonly json?: true;
}

const monitors = ['qemu', 'libvirt', 'cloud-hypervisor'] as const;
type Monitor = (typeof monitors)[number];

export const attachCommand = (vm: Command, shell: Shell): void => {
  apiCommand(vm, 'attach', 'serve a machine that QEMU, libvirt or Cloud Hypervisor starts')
    .argument('<name>', 'its name here; when it is new, it is made')
    .option('--metadata <file>', 'metadata and policy of a new one, a spec file')
    .addOption(new Option('--for <monitor>', 'print what this one needs only').choices(monitors))
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Prints what the machine needs to have the device, and what its guest runs to
mount it. Run it again to see that again.

Examples:
  porthole vm attach web-1 --metadata web.yaml
  porthole vm attach web-1 --for libvirt`,
    )
    .action((name: string, flags: AttachFlags) => attach(shell, name, flags));
};

const attach = async ({ api: connect, terminal }: Shell, name: string, flags: AttachFlags): Promise<void> => {
  const api = connect();
  const spec = flags.metadata === undefined ? undefined : await readSpec(terminal, flags.metadata);
  const known = await api.call('getVm', { params: { name } }).catch((error: unknown) => {
    if (error instanceof ClientError && error.code === 'VM_NOT_FOUND') return undefined;
    throw error;
  });
  if (known?.kind === 'managed')
    throw new Error(`"${name}" is started by Porthole itself; attach is for machines that others start`);
  if (known !== undefined && spec !== undefined)
    throw new Error(`"${name}" is there already; "porthole metadata import ${name} ${flags.metadata}" loads the file`);
  if (known === undefined) {
    const wanted: NewVm = {
      name,
      kind: 'attached',
      network: { mode: 'none' },
      ...(spec !== undefined && { spec: spec.sent }),
    };
    const { operation } = await withSpecShown(spec, () => api.call('createVm', { body: wanted }));
    await finished(api, operation, terminal);
  }
  const attachment = await api.call('getAttachment', { params: { name } });
  if (flags.json === true) printJson(terminal, attachment);
  else terminal.out(words(attachment, flags.for));
};

const words = (attachment: Attachment, only: Monitor | undefined): string => {
  const parts: Readonly<Record<Monitor, string>> = {
    qemu: flagLines(attachment.qemu),
    libvirt: attachment.libvirtXml.trimEnd(),
    'cloud-hypervisor': flagLines(attachment.cloudHypervisor),
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
`;
};

/** A flag and its value a line. */
const flagLines = (flags: readonly string[]): string => {
  const lines: string[] = [];
  for (const word of flags) {
    if (word.startsWith('-') || lines.length === 0) lines.push(shellQuoted(word));
    else lines.push(`${lines.pop()} ${shellQuoted(word)}`);
  }
  return lines.join(' \\\n');
};
