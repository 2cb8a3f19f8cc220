/** `porthole image`: what machines are made from. */
import { type Command, Option } from 'commander';
import { ClientError } from '../../cluster/client/index.ts';
import { ago, size } from '../amounts.ts';
import type { Api } from '../api.ts';
import { apiCommand, examples, group, parseImage, printJson, type Shell } from '../command.ts';
import { finished, subject } from '../operation.ts';
import { sendFile } from '../send-file.ts';
import type { Image, NewImage, Operation } from '../shapes.ts';
import { table } from '../table.ts';
import { paintFor } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { told, waitOption } from './create.ts';

interface AddFlags {
  readonly format: 'qcow2' | 'raw';
  readonly kernel?: string;
  readonly initrd?: string;
  readonly append?: string;
  readonly wait: boolean;
  readonly json?: true;
}

interface BuildFlags {
  readonly name?: string;
  readonly wait: boolean;
  readonly json?: true;
}

interface CopyFlags extends Pick<BuildFlags, 'wait' | 'json'> {
  readonly from?: string;
}

interface ListFlags {
  readonly quiet?: true;
  readonly json?: true;
}

export const imageCommands = (program: Command, shell: Shell): void => {
  const image = group(program, 'image', 'add, list and remove images');

  apiCommand(image, 'add', 'add an image, or a new version of one, from files of yours')
    .argument('<image>', 'NAME or NAME:VERSION; without a version: the next whole number')
    .argument('[file]', 'a bootable disk')
    .addOption(
      new Option('--format <format>', 'of the disk; it is never guessed').choices(['qcow2', 'raw']).default('qcow2'),
    )
    .option('--kernel <file>', 'instead of a disk: a kernel, which is booted without firmware')
    .option('--initrd <file>', 'its initrd')
    .option('--append <words>', 'its command line; a console is given anyway')
    .addOption(waitOption())
    .option('--json', 'print one JSON document: the operation')
    .addHelpText(
      'after',
      `
Files are sent to the manager, wherever it runs. A disk is checked there
and converted to a clean one; a qcow2 that refers to other files is refused.
Ctrl-C cancels it.

Examples:
  porthole image add debian:12 debian-12.qcow2
  porthole image add appliance disk.img --format raw
  porthole image add tiny --kernel vmlinuz --initrd initrd.img --append quiet`,
    )
    .action((name: string, file: string | undefined, flags: AddFlags) =>
      addFiles(shell, parseImage(name), file, flags),
    );

  apiCommand(image, 'build', 'build an image from a recipe that the manager has')
    .argument('<recipe>', 'name of the recipe')
    .option('--name <image>', 'NAME or NAME:VERSION; default: the name of the recipe')
    .addOption(waitOption())
    .option('--json', 'print one JSON document: the operation')
    .addHelpText('after', examples('porthole image build debian --name debian:12'))
    .action((recipe: string, flags: BuildFlags) => add(shell, { ...parseImage(flags.name ?? recipe), recipe }, flags));

  for (const { name, what, move } of [
    { name: 'copy', what: 'copy an image to a region from another', move: false },
    { name: 'migrate', what: 'copy an image to a region, and remove it from the other', move: true },
  ])
    apiCommand(image, name, `${what}; --region says to which`)
      .argument('<image>', 'NAME:VERSION')
      .option('--from <region>', 'a region that has it; default: any')
      .addOption(waitOption())
      .option('--json', 'print one JSON document: the operation')
      .addHelpText('after', examples(`porthole image ${name} debian:12 --region us${move ? ' --from eu' : ''}`))
      .action((text: string, flags: CopyFlags) => copy(shell, versioned(text), { ...flags, move }));

  apiCommand(image, 'ls', 'list images')
    .option('-q, --quiet', 'print NAME:VERSION only')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole image ls'))
    .action((flags: ListFlags) => list(shell, flags));

  apiCommand(image, 'rm', 'remove versions of images that no virtual machine uses')
    .argument('<image...>', 'NAME:VERSION')
    .addHelpText('after', examples('porthole image rm debian:11'))
    .action(async (names: readonly string[]) => {
      const api = shell.api();
      for (const params of names.map(versioned)) await api.call('removeImage', { params });
    });
};

const versioned = (text: string): { readonly image: string; readonly version: string } => {
  const { name, version } = parseImage(text);
  if (version !== undefined) return { image: name, version };
  throw new UsageError(`which version of "${name}"? write ${name}:VERSION; "porthole image ls" lists them`);
};

type Named = Pick<NewImage, 'name' | 'version'>;

const addFiles = async (shell: Shell, named: Named, file: string | undefined, flags: AddFlags): Promise<void> => {
  const { kernel, initrd, append, format } = flags;
  if ((file === undefined) === (kernel === undefined))
    throw new UsageError('give a disk, or a kernel with --kernel, and not both');
  if (kernel === undefined && (initrd !== undefined || append !== undefined))
    throw new UsageError('--initrd and --append belong to --kernel');
  const { terminal } = shell;
  const api = shell.api();
  // Before a long file is sent in vain.
  if (named.version !== undefined && (await isThere(api, named.name, named.version)))
    throw new Error(`the image "${named.name}" has a version "${named.version}" already; give another version`);
  const sent = async (path: string): Promise<{ readonly upload: string }> => ({
    upload: await sendFile(api, terminal, path),
  });
  const source =
    kernel === undefined
      ? { ...(await sent(file!)), format }
      : {
          kernel: {
            kernel: await sent(kernel),
            ...(initrd !== undefined && { initrd: await sent(initrd) }),
            ...(append !== undefined && { commandLine: append }),
          },
        };
  await add(shell, { ...named, ...source }, flags);
};

const isThere = async (api: Api, name: string, version: string): Promise<boolean> => {
  try {
    await api.call('getImage', { params: { image: name, version } });
    return true;
  } catch (error) {
    if (error instanceof ClientError && error.code === 'NOT_FOUND') return false;
    throw error;
  }
};

const add = async (shell: Shell, image: NewImage, flags: BuildFlags): Promise<void> => {
  const api = shell.api();
  const operation = await followed(shell, api, await api.call('addImage', { body: image }), flags);
  if (flags.json !== true && flags.wait && image.version === undefined)
    shell.terminal.err(`added ${subject(operation)}\n`);
};

const copy = async (
  shell: Shell,
  params: ReturnType<typeof versioned>,
  { from, move, ...flags }: CopyFlags & { readonly move: boolean },
): Promise<void> => {
  const api = shell.api();
  const body = { move, ...(from !== undefined && { from }) };
  await followed(shell, api, await api.call('copyImage', { params, body }), flags);
};

const followed = async (
  { terminal }: Shell,
  api: Api,
  begun: Operation,
  { wait, json }: Pick<BuildFlags, 'wait' | 'json'>,
): Promise<Operation> => {
  const operation = wait ? await finished(api, begun, terminal) : begun;
  if (json === true) printJson(terminal, operation);
  else if (!wait) told(terminal, operation);
  return operation;
};

const list = async ({ api: connect, terminal }: Shell, flags: ListFlags): Promise<void> => {
  const { images } = await connect().call('listImages');
  if (flags.json === true) {
    printJson(terminal, images);
    return;
  }
  if (flags.quiet === true) {
    terminal.out(images.map(({ name, version }) => `${name}:${version}\n`).join(''));
    return;
  }
  if (images.length === 0) {
    terminal.err('no images yet; "porthole image add" and "porthole image build" add one\n');
    return;
  }
  const nowMs = terminal.wallMs();
  const columns = [
    { title: 'NAME', cell: ({ name }: Image) => name },
    { title: 'VERSION', cell: ({ version }: Image) => version },
    { title: 'SIZE', cell: ({ sizeBytes }: Image) => size(sizeBytes), align: 'right' as const },
    { title: 'DISK', cell: ({ virtualSizeBytes }: Image) => size(virtualSizeBytes), align: 'right' as const },
    { title: 'REGIONS', cell: ({ regions }: Image) => regions.join(', ') },
    { title: 'DIGEST', cell: ({ digest }: Image) => digest.slice(0, 19) },
    { title: 'AGE', cell: ({ createdAt }: Image) => ago(Date.parse(createdAt), nowMs) },
  ];
  terminal.out(table(columns, images, paintFor(terminal, 'out').dim));
};
