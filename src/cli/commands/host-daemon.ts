/** `porthole host`: this machine runs VMs for a region. */
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { type Command, InvalidArgumentError } from 'commander';
import { vmNamePattern } from '../../records/index.ts';
import { type Address, defaultPort, readAddress } from '../../uplink/index.ts';
import { collected, command, examples, type Shell } from '../command.ts';
import {
  type DirectoryFlags,
  directoryOptions,
  eventsOption,
  interrupted,
  type MachineFlags,
  machineOptions,
  machineWords,
  parseWhole,
  printEvents,
  toMachineOptions,
  troubleWords,
  type Words,
} from '../daemon-options.ts';
import { defaultCapacity, HostDaemon, type HostEvent } from '../host-daemon.ts';
import { readInput } from '../prompt.ts';
import { paintFor, type Terminal } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';

interface HostFlags extends DirectoryFlags, MachineFlags {
  readonly manager?: readonly Address[];
  readonly region?: string | undefined;
  readonly as?: string;
  readonly joinKey?: string;
  readonly vcpus?: number;
  readonly memory?: number;
  readonly disk?: number;
  readonly json?: true;
}

const gibibyte = 1024 ** 3;
const keyFileBytes = 4096;

const parseManager = (text: string): Address => {
  const address = readAddress(text);
  if (address !== undefined) return address;
  throw new InvalidArgumentError(`give HOST or HOST:PORT of a manager; the port is ${defaultPort} unless given.`);
};

const parseLabel = (text: string): string => {
  if (vmNamePattern.test(text)) return text;
  throw new InvalidArgumentError('use a-z, 0-9 and "-", at most 63, and no "-" at its ends.');
};

/** What the program took for the region that is asked: here it is the one's own. UsageError. */
export const regionOf = (of: Command): string | undefined => {
  const [region, other] = of.optsWithGlobals<{ readonly region?: readonly string[] }>().region ?? [];
  if (other !== undefined) throw new UsageError('a host or a manager is of one region: give --region one name');
  if (region === undefined || vmNamePattern.test(region)) return region;
  throw new UsageError(`"${region}" cannot be the name of a region: use a-z, 0-9 and "-", at most 63`);
};

/** @returns the command, for what others add to it */
export const hostDaemonCommand = (program: Command, { terminal }: Shell): Command => {
  const host = command(program, 'host', 'run VMs of a region on this machine, and look after its hosts')
    .helpCommand(false)
    .option(
      '--manager <address>',
      `a manager of the region, as HOST[:PORT] (any number of times; port ${defaultPort} unless given)`,
      collected(parseManager),
    )
    .option('--region <name>', 'the region that it is a host of')
    .option('--as <name>', 'its name there (default: this machine’s, up to the first dot)', parseLabel)
    .option('--join-key <file>', 'a file with the join key of its enrolment, or "-": standard input')
    .option('--vcpus <count>', 'how many vCPUs VMs get together (default: four for each processor)', parseWhole)
    .option('--memory <MiB>', 'how much memory (default: all but 512 MiB)', parseWhole)
    .option('--disk <GiB>', 'how much disk (default: all of where --state is)', parseWhole);
  directoryOptions(host, 'identity, disks, images, logs', 'sockets of what runs now');
  machineOptions(host);
  eventsOption(host)
    .addHelpText(
      'after',
      `
The first start enrols it, with a key that "porthole host token" makes at a
manager. Later starts need none: it has a certificate, and renews that.
It begins when one manager can be reached, and goes on while none can: VMs run,
their programs read what they were given, what needs the cluster is refused.
${examples(
  'porthole host --manager m1 --manager m2 --region eu --join-key join.key',
  'porthole host --manager manager-1 --manager manager-2 --region eu',
)}`,
    )
    .action((flags: HostFlags, of: Command) => run({ ...flags, region: regionOf(of) }, terminal));
  return host;
};

const run = async (flags: HostFlags, terminal: Terminal): Promise<void> => {
  const { manager: managers = [], region, joinKey } = flags;
  if (managers.length === 0 || region === undefined)
    throw new UsageError('to run VMs here, give --manager and --region; "porthole host --help" says more');
  const name = flags.as ?? hostname().split('.')[0]!.toLowerCase();
  if (!vmNamePattern.test(name)) throw new UsageError(`this machine’s name "${name}" cannot be a host’s: give --as`);
  const capacity = defaultCapacity(flags.state);
  await using daemon = await HostDaemon.start({
    ...toMachineOptions(flags),
    managers,
    region,
    name,
    joinKey: async () => {
      if (joinKey === undefined)
        throw new UsageError(
          `this machine is not enrolled yet: give --join-key with the key that "porthole host token" prints at a manager`,
        );
      if (joinKey !== '-') return readFileSync(joinKey, 'utf8').trim();
      return new TextDecoder().decode(await readInput(terminal, keyFileBytes)).trim();
    },
    capacity: {
      vcpus: flags.vcpus ?? capacity.vcpus,
      memoryMiB: flags.memory ?? capacity.memoryMiB,
      diskBytes: flags.disk === undefined ? capacity.diskBytes : flags.disk * gibibyte,
    },
    signal: terminal.interrupted,
    onEvent: printEvents<HostEvent>(terminal, flags.json === true, (event) => inWords(event, terminal)),
  });
  const why = await Promise.race([daemon.ended, interrupted(terminal)]);
  await daemon.release();
  if (why !== undefined) throw new Error(`the host daemon ends, and VMs go on: ${why}`);
};

const inWords = (event: HostEvent, terminal: Terminal): Words => {
  switch (event.event) {
    case 'enrolled':
      return {
        to: 'out',
        text: `enrolled as host ${event.host} of region ${event.region}; the join key is of no more use`,
      };
    case 'connected':
      return { to: 'out', text: `connected to the manager at ${event.manager}` };
    case 'cut off':
      return { to: 'err', text: `${paintFor(terminal).warning('cut off')}: ${event.why}` };
    case 'up': {
      const { region, host, state, vms } = event;
      const lines = [
        `host ${host} of region ${region}: ${vms} ${vms === 1 ? 'VM' : 'VMs'}, state in ${state}`,
        ...machineWords(event),
      ];
      return { to: 'out', text: lines.join('\n') };
    }
    case 'trouble':
      return troubleWords(terminal, event);
    case 'down':
      return { to: 'out', text: 'down; VMs go on without the daemon' };
  }
};
