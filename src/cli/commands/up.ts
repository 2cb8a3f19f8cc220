/** `porthole up`: the host daemon. */
import { isIP } from 'node:net';
import { type Command, InvalidArgumentError } from 'commander';
import { groupId } from '../../host/index.ts';
import { checkoutFile, thisVersion } from '../../parts/index.ts';
import { collect, command, examples, type Shell } from '../command.ts';
import { etcdAccessOptions, etcdOptions, type StoreFlags } from '../store-flags.ts';
import { paintFor, type Terminal } from '../terminal.ts';
import { Up, type UpEvent, type UpOptions } from '../up.ts';
import { UsageError } from '../usage-error.ts';

interface UpFlags extends StoreFlags {
  readonly state: string;
  readonly run: string;
  readonly key?: string;
  readonly listen?: { readonly host: string; readonly port: number };
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly name?: readonly string[];
  readonly socketGroup?: string;
  readonly attachGroup?: string;
  readonly metadataCert?: string;
  readonly metadataKey?: string;
  readonly libvirt?: string;
  readonly uidBase?: number;
  readonly auditDays: number;
  readonly auditSize: number;
  readonly guestWriteRate: number;
  readonly renew: boolean;
  readonly json?: true;
}

const mebibyte = 1024 * 1024;

export const upCommands = (program: Command, { terminal }: Shell): void => {
  const up = command(program, 'up', 'run the host daemon: VMs, their metadata, and the API')
    .option('--state <directory>', 'what lasts: store, disks, images, logs', '/var/lib/porthole')
    .option('--run <directory>', 'sockets of what runs now', '/run/porthole')
    .option('--key <file>', 'the key that opens the store (default: "key" in --state, made at the first start)')
    .option('--store <url>', 'keep the store in etcd instead of --state: etcd://HOST:PORT,HOST:PORT[/PREFIX]');
  etcdAccessOptions(up)
    .option('--listen <address>', 'serve the API on this ADDRESS:PORT too; needs a key', address)
    .option('--tls-cert <file>', 'certificate for --listen, as PEM; a must on any address but loopback')
    .option('--tls-key <file>', 'its private key, as PEM')
    .option('--name <name>', 'a host name by which clients reach --listen (any number of times)', collect)
    .option('--socket-group <group>', 'let this group use the API’s socket, as operators')
    .option('--attach-group <group>', 'let this group’s programs (libvirt’s QEMU) connect to attached VMs’ devices')
    .option('--metadata-cert <file>', 'certificate of 169.254.169.254, as PEM: HTTPS for VMs on tap devices too')
    .option('--metadata-key <file>', 'its private key, as PEM')
    .option('--libvirt <uri>', 'the libvirt that “vm attach --domain” means; default: qemu:///system')
    .option(
      '--uid-base <uid>',
      'VMs run as users of their own, from this uid on (default: where nobody else’s are); 0: all as this user',
      whole,
    )
    .option('--audit-days <days>', 'how long audit records are kept', whole, 90)
    .option('--audit-size <MiB>', 'how much room they may take', whole, 1024)
    .option(
      '--guest-write-rate <MiB>',
      'how much a second one VM’s guest may write; more is delayed; 0: no bound',
      whole,
      16,
    )
    .option('--no-renew', 'leave device processes and keeper of another version as they are: see "porthole vm renew"')
    .option('--json', 'print events as JSON lines')
    .addHelpText(
      'after',
      `
Ctrl-C or SIGTERM ends the daemon and nothing else: VMs go on, their programs
read on, what they write waits for 5 s. The next "porthole up" takes them up.
${examples('porthole up', 'porthole up --listen 127.0.0.1:7070 --socket-group adm')}`,
    )
    .action((flags: UpFlags) => runUp(flags, terminal));
};

const mostWhole = 0x7fff_ffff;

const whole = (text: string): number => {
  const number = Number(text);
  if (!/^\d+$/.test(text) || number > mostWhole)
    throw new InvalidArgumentError(`give a whole number, at most ${mostWhole}`);
  return number;
};

const address = (text: string): { readonly host: string; readonly port: number } => {
  const [, host = '', port = ''] = /^\[?([^\]]*?)\]?:(\d{1,5})$/.exec(text) ?? [];
  if ((isIP(host) === 0 && host !== 'localhost') || Number(port) > 65_535)
    throw new InvalidArgumentError('give an address of this machine and a port, such as 127.0.0.1:7070');
  return { host, port: Number(port) };
};

const runUp = async (flags: UpFlags, terminal: Terminal): Promise<void> => {
  const { listen, tlsCert, tlsKey, name = [], socketGroup, attachGroup, uidBase } = flags;
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new UsageError('--tls-cert and --tls-key belong together: give both or none');
  const { metadataCert, metadataKey } = flags;
  if ((metadataCert === undefined) !== (metadataKey === undefined))
    throw new UsageError('--metadata-cert and --metadata-key belong together: give both or none');
  if (listen === undefined && tlsCert !== undefined)
    throw new UsageError('--tls-cert is for --listen: give an address too');
  if (flags.store === undefined && (flags.globalStore ?? flags.storeCa ?? flags.storeCredentials) !== undefined)
    throw new UsageError('--store-ca, --store-credentials and --global-store are for --store: give that too');
  const isRoot = process.getuid?.() === 0;
  const print = (event: UpEvent): void => {
    const { to, text } = flags.json ? { to: 'out', text: JSON.stringify(event) } : inWords(event, terminal);
    if (to === 'out') terminal.out(`${text}\n`);
    else terminal.err(`${text}\n`);
  };
  const options: UpOptions = {
    stateDirectory: flags.state,
    runDirectory: flags.run,
    keyFile: flags.key,
    ...(flags.store !== undefined && { etcd: { url: flags.store, options: etcdOptions(flags.store, flags) } }),
    ...(listen && {
      tcp: {
        ...listen,
        names: name,
        ...(tlsCert !== undefined && tlsKey !== undefined && { tls: { certFile: tlsCert, keyFile: tlsKey } }),
      },
    }),
    socketGid: socketGroup === undefined ? undefined : groupId(socketGroup),
    attachGid: attachGroup === undefined ? undefined : groupId(attachGroup),
    metadataTls:
      metadataCert === undefined || metadataKey === undefined
        ? undefined
        : { certFile: metadataCert, keyFile: metadataKey },
    libvirtUri: flags.libvirt,
    uidBase: isRoot && uidBase !== 0 ? (uidBase ?? 'free') : undefined,
    auditDays: flags.auditDays,
    auditBytes: flags.auditSize * mebibyte,
    guestWriteRate: flags.guestWriteRate === 0 ? undefined : flags.guestWriteRate * mebibyte,
    renews: flags.renew,
    version: thisVersion().version,
    recipes: recipes(),
    onEvent: print,
  };
  await using up = await Up.start(options);
  await new Promise<void>((resolve) => {
    if (terminal.interrupted.aborted) resolve();
    terminal.interrupted.addEventListener('abort', () => resolve(), { once: true });
  });
  await up.release();
};

/** Programs of a checkout: the executable has none. */
const recipes = (): UpOptions['recipes'] =>
  Object.fromEntries(
    ['debian', 'tiny'].flatMap((name) => {
      const file = checkoutFile(`images/${name}/recipe.ts`);
      return file === undefined ? [] : [[name, [process.execPath, file]]];
    }),
  );

const inWords = (event: UpEvent, terminal: Terminal): { readonly to: 'out' | 'err'; readonly text: string } => {
  const paint = paintFor(terminal);
  switch (event.event) {
    case 'up':
      return { to: 'out', text: upWords(event) };
    case 'trouble':
      return {
        to: 'err',
        text: `${paint.error('trouble')}: ${event.vm === undefined ? '' : `VM ${event.vm}: `}${event.what}`,
      };
    case 'down':
      return { to: 'out', text: 'down; VMs go on without the daemon' };
  }
};

const upWords = (event: Extract<UpEvent, { event: 'up' }>): string => {
  const { socket, url, state, store, accelerator, acceleratorReason, units, ownUsers, vms } = event;
  const lines = [
    `up: ${vms} ${vms === 1 ? 'VM' : 'VMs'}, state in ${state}${store === undefined ? '' : `, store in ${store}`}`,
    `API on ${socket}${url === undefined ? '' : ` and ${url} (docs at ${url}/docs)`}`,
    accelerator === 'kvm' ? 'VMs run on KVM' : `VMs are emulated (TCG), which is slow: ${acceleratorReason}`,
    `each ${units === 'systemd' ? 'is a systemd unit' : 'has a session'} of its own${ownUsers ? ' and a user of its own' : ', all as this user'}`,
  ];
  return lines.join('\n');
};
