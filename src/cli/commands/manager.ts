/** `porthole manager`: the API of a region whose VMs run on other machines. */
import { isIP } from 'node:net';
import { type Command, InvalidArgumentError } from 'commander';
import { thisVersion } from '../../parts/index.ts';
import { command, examples, type Shell } from '../command.ts';
import {
  type ApiFlags,
  apiOptions,
  type DirectoryFlags,
  directoryOptions,
  eventsOption,
  interrupted,
  parseListen,
  parseWhole,
  printEvents,
  type StoresFlags,
  storeOptions,
  toApiAddress,
  toGroup,
  toStoresLocation,
  troubleWords,
  type Words,
} from '../daemon-options.ts';
import { ManagerDaemon, type ManagerEvent } from '../manager-daemon.ts';
import type { Terminal } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { regionOf } from './host-daemon.ts';

interface ManagerFlags extends DirectoryFlags, StoresFlags, ApiFlags {
  readonly region?: string | undefined;
  readonly hosts: { readonly host: string; readonly port: number };
  readonly hostLease: number;
  readonly disks?: string;
  readonly disksAddress?: string;
  readonly json?: true;
}

const leaseLimits = { least: 5, most: 3600 } as const;

const parseLease = (text: string): number => {
  const seconds = parseWhole(text);
  if (seconds >= leaseLimits.least && seconds <= leaseLimits.most) return seconds;
  throw new InvalidArgumentError(`give ${leaseLimits.least} to ${leaseLimits.most} seconds.`);
};

export const managerCommands = (program: Command, { terminal }: Shell): void => {
  const manager = command(program, 'manager', 'run the API of a region, whose VMs run on hosts that connect to it')
    .option('--region <name>', 'the region, as its hosts are told; must be given')
    .requiredOption(
      '--hosts <address>',
      'where its hosts connect, as ADDRESS:PORT (their default port: 4665)',
      parseListen,
    );
  manager.option(
    '--host-lease <seconds>',
    'how long a host is not heard of before its VMs may start elsewhere',
    parseLease,
    15,
  );
  manager
    .option('--disks <directory>', 'have the region’s network disks there; one manager of a region may')
    .option(
      '--disks-address <address>',
      'with --disks: the IP address of this machine where hosts reach them',
      parseAddress,
    );
  directoryOptions(manager, 'the stores', 'the API’s socket');
  storeOptions(manager);
  apiOptions(manager);
  eventsOption(manager)
    .addHelpText(
      'after',
      `
Each machine that is to run VMs is enrolled with a join key:
"porthole host token" here, "porthole host --help" there.
While no manager runs, VMs go on, and what is asked of the cluster waits.
${examples('porthole manager --region eu --hosts 0.0.0.0:4665 --listen 127.0.0.1:7070')}`,
    )
    .action((flags: ManagerFlags, of: Command) => run({ ...flags, region: regionOf(of) }, terminal));
};

const parseAddress = (text: string): string => {
  if (isIP(text) !== 0) return text;
  throw new InvalidArgumentError('give an IP address.');
};

const disksOf = ({ disks: directory, disksAddress: address }: ManagerFlags) => {
  if (directory === undefined && address === undefined) return undefined;
  if (directory !== undefined && address !== undefined) return { directory, address };
  throw new UsageError('--disks and --disks-address go together');
};

const run = async (flags: ManagerFlags, terminal: Terminal): Promise<void> => {
  const { region } = flags;
  if (region === undefined) throw new UsageError('give --region: the name of the region');
  await using daemon = await ManagerDaemon.start({
    stateDirectory: flags.state,
    runDirectory: flags.run,
    ...toStoresLocation(flags),
    region,
    hosts: flags.hosts,
    hostLeaseSeconds: flags.hostLease,
    disks: disksOf(flags),
    tcp: toApiAddress(flags),
    socketGid: toGroup(flags.socketGroup),
    version: thisVersion().version,
    onEvent: printEvents<ManagerEvent>(terminal, flags.json === true, (event) => inWords(event, terminal)),
  });
  await interrupted(terminal);
  await daemon.release();
};

const inWords = (event: ManagerEvent, terminal: Terminal): Words => {
  switch (event.event) {
    case 'up': {
      const { region, socket, url, hosts, state, store } = event;
      const lines = [
        `manager of region ${region}, state in ${state}${store === undefined ? '' : `, store in ${store}`}`,
        `API on ${socket}${url === undefined ? '' : ` and ${url} (docs at ${url}/docs)`}`,
        `hosts connect to ${hosts}`,
      ];
      return { to: 'out', text: lines.join('\n') };
    }
    case 'trouble':
      return troubleWords(terminal, event);
    case 'down':
      return { to: 'out', text: 'down; hosts and their VMs go on' };
  }
};
