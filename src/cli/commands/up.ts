/** `porthole up`: the host daemon. */
import type { Command } from 'commander';
import { command, examples, type Shell } from '../command.ts';
import {
  type ApiFlags,
  apiOptions,
  type DirectoryFlags,
  directoryOptions,
  eventsOption,
  type ImagesFlags,
  imagesOption,
  interrupted,
  type MachineFlags,
  machineOptions,
  machineWords,
  printEvents,
  recipes,
  type StoresFlags,
  storeOptions,
  toApiAddress,
  toGroup,
  toMachineOptions,
  toStoresLocation,
  troubleWords,
  type Words,
} from '../daemon-options.ts';
import type { Terminal } from '../terminal.ts';
import { Up, type UpEvent } from '../up.ts';

interface UpFlags extends DirectoryFlags, StoresFlags, ImagesFlags, ApiFlags, MachineFlags {
  readonly json?: true;
}

export const upCommands = (program: Command, { terminal }: Shell): void => {
  const up = command(program, 'up', 'run the host daemon: VMs, their metadata, and the API');
  directoryOptions(up, 'store, disks, images, logs', 'sockets of what runs now');
  storeOptions(up);
  imagesOption(up);
  apiOptions(up);
  machineOptions(up);
  eventsOption(up)
    .addHelpText(
      'after',
      `
Ctrl-C or SIGTERM ends the daemon and nothing else: VMs go on, their programs
read on, what they write waits for 5 s. The next "porthole up" takes them up.
${examples('porthole up', 'porthole up --listen 127.0.0.1:7070 --socket-group adm')}`,
    )
    .action((flags: UpFlags) => runUp(flags, terminal));
};

const runUp = async (flags: UpFlags, terminal: Terminal): Promise<void> => {
  await using up = await Up.start({
    ...toMachineOptions(flags),
    ...toStoresLocation(flags),
    tcp: toApiAddress(flags),
    socketGid: toGroup(flags.socketGroup),
    recipes: recipes(),
    images: flags.images,
    onEvent: printEvents<UpEvent>(terminal, flags.json === true, (event) => inWords(event, terminal)),
  });
  const lost = await Promise.race([interrupted(terminal), up.lost]);
  await up.release();
  if (lost !== undefined) throw new Error(lost);
};

const inWords = (event: UpEvent, terminal: Terminal): Words => {
  switch (event.event) {
    case 'up':
      return { to: 'out', text: upWords(event) };
    case 'trouble':
      return troubleWords(terminal, event);
    case 'down':
      return { to: 'out', text: 'down; VMs go on without the daemon' };
  }
};

const upWords = (event: Extract<UpEvent, { event: 'up' }>): string => {
  const { socket, url, state, store, vms } = event;
  const lines = [
    `up: ${vms} ${vms === 1 ? 'VM' : 'VMs'}, state in ${state}${store === undefined ? '' : `, store in ${store}`}`,
    `API on ${socket}${url === undefined ? '' : ` and ${url} (docs at ${url}/docs)`}`,
    ...machineWords(event),
  ];
  return lines.join('\n');
};
