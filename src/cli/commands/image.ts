/** `porthole image`: what machines are made from. */
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { ago, size } from '../amounts.ts';
import { apiCommand, examples, group, parseImage, printJson, type Shell } from '../command.ts';
import { finished, subject } from '../operation.ts';
import type { Image, NewImage } from '../shapes.ts';
import { table } from '../table.ts';
import { paintFor } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { told, waitOption } from './create.ts';

interface AddFlags {
  readonly format?: 'qcow2' | 'raw';
  readonly name?: string;
  readonly wait: boolean;
  readonly json?: true;
}

interface ListFlags {
  readonly quiet?: true;
  readonly json?: true;
}

export const imageCommands = (program: Command, shell: Shell): void => {
  const image = group(program, 'image', 'add, list and remove images of disks');

  apiCommand(image, 'add', 'add an image, or a new version of one, from a file')
    .argument('<image>', 'NAME or NAME:VERSION; without a version: the next whole number')
    .argument('<file>', 'the disk, a file of the machine that the host daemon runs on')
    .addOption(
      new Option('--format <format>', 'of the file; it is never guessed').choices(['qcow2', 'raw']).default('qcow2'),
    )
    .addOption(waitOption())
    .option('--json', 'print one JSON document: the operation')
    .addHelpText(
      'after',
      `
It is checked and converted to a clean one; Ctrl-C cancels that. A qcow2 that
refers to other files is refused. The daemon opens the file itself: under the
systemd unit that comes with it, it has a /tmp of its own and does not see yours.

Example:
  porthole image add debian:12 debian-12.qcow2`,
    )
    .action((name: string, file: string, flags: AddFlags) =>
      add(shell, { ...parseImage(name), file: resolve(file), format: flags.format ?? 'qcow2' }, flags),
    );

  apiCommand(image, 'build', 'build an image from a recipe that the host daemon has')
    .argument('<recipe>', 'name of the recipe')
    .option('--name <image>', 'NAME or NAME:VERSION; default: the name of the recipe')
    .addOption(waitOption())
    .option('--json', 'print one JSON document: the operation')
    .addHelpText('after', examples('porthole image build debian --name debian:12'))
    .action((recipe: string, flags: AddFlags) => add(shell, { ...parseImage(flags.name ?? recipe), recipe }, flags));

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
      for (const { name, version } of names.map(parseImage)) {
        if (version === undefined)
          throw new UsageError(`which version of "${name}"? write ${name}:VERSION; "porthole image ls" lists them`);
        await api.call('removeImage', { params: { image: name, version } });
      }
    });
};

const add = async ({ api: connect, terminal }: Shell, image: NewImage, flags: AddFlags): Promise<void> => {
  const api = connect();
  const begun = await api.call('addImage', { body: image });
  const operation = flags.wait ? await finished(api, begun, terminal) : begun;
  if (flags.json === true) printJson(terminal, operation);
  else if (!flags.wait) told(terminal, operation);
  else if (image.version === undefined) terminal.err(`added ${subject(operation)}\n`);
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
    { title: 'DIGEST', cell: ({ digest }: Image) => digest.slice(0, 19) },
    { title: 'AGE', cell: ({ createdAt }: Image) => ago(Date.parse(createdAt), nowMs) },
  ];
  terminal.out(table(columns, images, paintFor(terminal, 'out').dim));
};
