/** Options that daemons share, so that they are the same everywhere, and what they mean. */
import { isIP } from 'node:net';
import { type Command, InvalidArgumentError } from 'commander';
import { groupId } from '../host/index.ts';
import type { Recipes } from '../images/index.ts';
import type { Bgp, BgpPeer } from '../network/index.ts';
import { checkoutFile, thisVersion } from '../parts/index.ts';
import { collect, collected } from './command.ts';
import type { ApiAddress, StoresLocation } from './manager-parts.ts';
import { etcdAccessOptions, etcdOptions, type StoreFlags } from './store-flags.ts';
import { paintFor, type Terminal } from './terminal.ts';
import type { MachineOptions } from './this-machine.ts';
import { UsageError } from './usage-error.ts';

export interface DirectoryFlags {
  readonly state: string;
  readonly run: string;
}

export interface StoresFlags extends StoreFlags {
  readonly key?: string;
}

export interface ImagesFlags {
  readonly images?: string;
}

export interface ApiFlags {
  readonly listen?: { readonly host: string; readonly port: number };
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly name?: readonly string[];
  readonly socketGroup?: string;
}

export interface MachineFlags {
  readonly attachGroup?: string;
  readonly metadataCert?: string;
  readonly metadataKey?: string;
  readonly libvirt?: string;
  readonly bgpAs?: number;
  readonly bgpPeer?: readonly BgpPeer[];
  readonly routerId?: string;
  readonly uidBase?: number;
  readonly auditDays: number;
  readonly auditSize: number;
  readonly guestWriteRate: number;
  readonly renew: boolean;
}

const mebibyte = 1024 * 1024;
const mostWhole = 0x7fff_ffff;

export const parseWhole = (text: string): number => {
  const number = Number(text);
  if (!/^\d+$/.test(text) || number > mostWhole)
    throw new InvalidArgumentError(`give a whole number, at most ${mostWhole}`);
  return number;
};

const mostAs = 0xffff_ffff;

const parseAs = (text: string): number => {
  const as = Number(text);
  if (!/^\d+$/.test(text) || as < 1 || as > mostAs) throw new InvalidArgumentError(`give a number from 1 to ${mostAs}`);
  return as;
};

/** `ADDRESS` or `ADDRESS=AS`. */
const parsePeer = (text: string): BgpPeer => {
  const [address = '', as] = text.split('=', 2);
  if (isIP(address) === 0) throw new InvalidArgumentError('write it as ADDRESS or ADDRESS=AS, as 10.0.0.2=64512');
  return { address, as: as === undefined ? undefined : parseAs(as) };
};

const parseRouterId = (text: string): string => {
  if (isIP(text) !== 4) throw new InvalidArgumentError('give an IPv4 address');
  return text;
};

export const parseListen = (text: string): { readonly host: string; readonly port: number } => {
  const [, host = '', port = ''] = /^\[?([^\]]*?)\]?:(\d{1,5})$/.exec(text) ?? [];
  if ((isIP(host) === 0 && host !== 'localhost') || Number(port) > 65_535)
    throw new InvalidArgumentError('give an address of this machine and a port, such as 127.0.0.1:7070');
  return { host, port: Number(port) };
};

/** `lasts`: what it keeps in its state directory. */
export const directoryOptions = (command: Command, lasts: string, runs: string): Command =>
  command
    .option('--state <directory>', `what lasts: ${lasts}`, '/var/lib/porthole')
    .option('--run <directory>', runs, '/run/porthole');

export const storeOptions = (command: Command): Command =>
  etcdAccessOptions(
    command
      .option('--key <file>', 'the key that opens the store (default: "key" in --state, made at the first start)')
      .option('--store <url>', 'keep the store in etcd instead of --state: etcd://HOST:PORT,HOST:PORT[/PREFIX]'),
  );

export const imagesOption = (command: Command): Command =>
  command.option(
    '--images <directory>',
    'where the region’s images are kept (default: in --state); the same for all its managers',
  );

export const apiOptions = (command: Command): Command =>
  command
    .option('--listen <address>', 'serve the API on this ADDRESS:PORT too; needs a key', parseListen)
    .option('--tls-cert <file>', 'certificate for --listen, as PEM; a must on any address but loopback')
    .option('--tls-key <file>', 'its private key, as PEM')
    .option('--name <name>', 'a host name by which clients reach --listen (any number of times)', collect)
    .option('--socket-group <group>', 'let this group use the API’s socket, as operators');

export const machineOptions = (command: Command): Command =>
  command
    .option('--attach-group <group>', 'let this group’s programs (libvirt’s QEMU) connect to attached VMs’ devices')
    .option('--metadata-cert <file>', 'certificate of 169.254.169.254, as PEM: HTTPS for VMs on tap devices too')
    .option('--metadata-key <file>', 'its private key, as PEM')
    .option('--libvirt <uri>', 'the libvirt that “vm attach --domain” means; default: qemu:///system')
    .option('--bgp-as <number>', 'announce routed VMs by BGP, as this autonomous system', parseAs)
    .option(
      '--bgp-peer <peer>',
      'to ADDRESS, of the same system, or ADDRESS=AS (any number of times); IPv4 by IPv4, IPv6 by IPv6',
      collected(parsePeer),
    )
    .option('--router-id <address>', 'of BGP, an IPv4 address; default: one of this machine’s', parseRouterId)
    .option(
      '--uid-base <uid>',
      'VMs run as users of their own, from this uid on (default: where nobody else’s are); 0: all as this user',
      parseWhole,
    )
    .option('--audit-days <days>', 'how long audit records are kept', parseWhole, 90)
    .option('--audit-size <MiB>', 'how much room they may take', parseWhole, 1024)
    .option(
      '--guest-write-rate <MiB>',
      'how much a second one VM’s guest may write; more is delayed; 0: no bound',
      parseWhole,
      16,
    )
    .option('--no-renew', 'leave device processes and keeper of another version as they are: see "porthole vm renew"');

export const eventsOption = (command: Command): Command => command.option('--json', 'print events as JSON lines');

/** UsageError; system errors. */
export const toStoresLocation = (flags: StoresFlags): StoresLocation => {
  const { key: keyFile, store, globalStore, storeCa, storeCredentials } = flags;
  if (store !== undefined) return { keyFile, etcd: { url: store, options: etcdOptions(store, flags) } };
  if ((globalStore ?? storeCa ?? storeCredentials) !== undefined)
    throw new UsageError('--store-ca, --store-credentials and --global-store are for --store: give that too');
  return { keyFile };
};

/** UsageError. */
export const toApiAddress = ({ listen, tlsCert, tlsKey, name = [] }: ApiFlags): ApiAddress | undefined => {
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new UsageError('--tls-cert and --tls-key belong together: give both or none');
  if (listen === undefined && tlsCert !== undefined)
    throw new UsageError('--tls-cert is for --listen: give an address too');
  if (listen === undefined) return undefined;
  return {
    ...listen,
    names: name,
    ...(tlsCert !== undefined && tlsKey !== undefined && { tls: { certFile: tlsCert, keyFile: tlsKey } }),
  };
};

export const toGroup = (name: string | undefined): number | undefined =>
  name === undefined ? undefined : groupId(name);

export const toMachineOptions = (flags: MachineFlags & DirectoryFlags): Omit<MachineOptions, 'onTrouble'> => {
  const isRoot = process.getuid?.() === 0;
  const { metadataCert, metadataKey } = flags;
  if ((metadataCert === undefined) !== (metadataKey === undefined))
    throw new UsageError('--metadata-cert and --metadata-key belong together: give both or none');
  const { state, run, attachGroup, libvirt, uidBase, auditDays, auditSize, guestWriteRate, renew } = flags;
  return {
    stateDirectory: state,
    runDirectory: run,
    attachGid: toGroup(attachGroup),
    metadataTls:
      metadataCert === undefined || metadataKey === undefined
        ? undefined
        : { certFile: metadataCert, keyFile: metadataKey },
    libvirtUri: libvirt,
    bgp: toBgp(flags),
    uidBase: isRoot && uidBase !== 0 ? (uidBase ?? 'free') : undefined,
    auditDays,
    auditBytes: auditSize * mebibyte,
    guestWriteRate: guestWriteRate === 0 ? undefined : guestWriteRate * mebibyte,
    renews: renew,
    version: thisVersion().version,
  };
};

/** UsageError. */
const toBgp = ({ bgpAs: as, bgpPeer: peers = [], routerId }: MachineFlags): Bgp | undefined => {
  if (as !== undefined) return { as, peers, routerId };
  if (peers.length > 0 || routerId !== undefined)
    throw new UsageError('--bgp-peer and --router-id are for --bgp-as: give that too');
  return undefined;
};

/** Programs of a checkout: the executable has none. */
export const recipes = (): Recipes =>
  Object.fromEntries(
    ['debian', 'tiny'].flatMap((name) => {
      const file = checkoutFile(`images/${name}/recipe.ts`);
      return file === undefined ? [] : [[name, [process.execPath, file]]];
    }),
  );

/** An event in words, and where it goes. */
export interface Words {
  readonly to: 'out' | 'err';
  readonly text: string;
}

export const printEvents =
  <E extends object>(terminal: Terminal, asJson: boolean, inWords: (event: E) => Words) =>
  (event: E): void => {
    const { to, text } = asJson ? { to: 'out', text: JSON.stringify(event) } : inWords(event);
    if (to === 'out') terminal.out(`${text}\n`);
    else terminal.err(`${text}\n`);
  };

export const troubleWords = (
  terminal: Terminal,
  { vm, what }: { readonly vm?: string; readonly what: string },
): Words => ({
  to: 'err',
  text: `${paintFor(terminal).error('trouble')}: ${vm === undefined ? '' : `VM ${vm}: `}${what}`,
});

/** How the machines of a host run, as lines. */
export const machineWords = ({
  accelerator,
  acceleratorReason,
  units,
  ownUsers,
}: {
  readonly accelerator: string;
  readonly acceleratorReason: string;
  readonly units: 'systemd' | 'session';
  readonly ownUsers: boolean;
}): string[] => [
  accelerator === 'kvm' ? 'VMs run on KVM' : `VMs are emulated (TCG), which is slow: ${acceleratorReason}`,
  `each ${units === 'systemd' ? 'is a systemd unit' : 'has a session'} of its own${ownUsers ? ' and a user of its own' : ', all as this user'}`,
];

export const interrupted = async ({ interrupted: signal }: Terminal): Promise<void> => {
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
};
