/** `porthole serve` and `porthole export`: a tree from a file, without the host daemon. */
import { type Command, InvalidArgumentError } from 'commander';
import {
  exportReplica,
  type FacadeName,
  facadeNames,
  type HttpOptions,
  loadSpecOrThrow,
  ServedTree,
  State,
  serve,
} from '../../host/index.ts';
import { collect, command, type Shell } from '../command.ts';
import { asJson, inWords } from '../serve-words.ts';
import { paintFor, type Terminal } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';

interface ServeFlags {
  readonly vhostUser?: readonly string[];
  readonly socketGroup?: string;
  readonly mount?: readonly string[];
  readonly '9p'?: readonly string[];
  readonly '9pAllow'?: readonly string[];
  readonly vsock?: readonly string[];
  readonly vsockCid?: number;
  readonly http?: readonly string[];
  readonly httpCert?: string;
  readonly httpKey?: string;
  readonly imdsV1?: true;
  readonly facade?: readonly string[];
  readonly state?: string;
  readonly audit?: string;
  readonly json?: true;
}

export const serveCommands = (program: Command, { terminal }: Shell): void => {
  command(program, 'serve', 'serve the tree of a spec file to a VM, or on this machine')
    .argument('<file>', 'the spec file; changes of it are served at once')
    .option('--vhost-user <socket>', 'listen on this socket for a VM (any number of times)', collect)
    .option('--socket-group <group>', 'let this group connect to the sockets (else only their owner may)')
    .option(
      '--9p <where>',
      'listen for 9P clients: a socket, tcp:ADDRESS[:PORT], or vsock:PORT of --vsock (any number of times)',
      collect,
    )
    .option('--9p-allow <address>', 'let this address or prefix connect by TCP (any number of times)', collect)
    .option(
      '--vsock <path>',
      'a vsock device for a VM: host programs connect to this socket (any number of times)',
      collect,
    )
    .option('--vsock-cid <number>', "the VM's CID there (default 3; nobody else's matters)", guestCid)
    .option('--mount <directory>', 'mount on this directory of this machine (any number of times)', collect)
    .option(
      '--http <address>',
      'serve the metadata server on unix:PATH, unix:PATH,privileged or IP:PORT (any number of times)',
      collect,
    )
    .option('--http-cert <file>', 'certificates for --http on IP:PORT, as PEM: HTTPS')
    .option('--http-key <file>', 'the key for them, as PEM')
    .option('--facade <name>', `show this cloud's API only: ${facadeNames.join(', ')} (any number of times)`, collect)
    .option('--imds-v1', "answer EC2's requests without a session token too")
    .option('--state <directory>', 'keep there what is written in the guest (else it is gone at the end)')
    .option('--audit <file>', 'append audit records to this file, as JSON lines; "-" is standard output')
    .option('--json', 'print events as JSON lines')
    .addHelpText(
      'after',
      `
Examples:
  porthole serve web.yaml --vhost-user /run/porthole/web.sock \\
    --socket-group libvirt-qemu --state /var/lib/porthole/web
  porthole serve web.yaml --mount /run/metadata --audit -
  porthole serve web.yaml --http 127.0.0.1:8775
  porthole serve web.yaml --9p /run/porthole/web.9p --9p tcp:127.0.0.1:564

Who may open a socket is trusted as the VM's hypervisor is: what it says of uids
is believed, on a 9P socket as on a vhost-user one. By TCP and vsock nobody may
attach but from a port below 1024, which takes root on the other side, or with
the token that --http gives out; TCP is not encrypted. A 9P socket PATH_PORT is
for what guests of Firecracker and Cloud Hypervisor send to that vsock port.
Over --http anybody sees what everybody may read; the token is given out by
unix:PATH,privileged, and by TCP from a port below 1024.

Ctrl-C unmounts, removes the sockets and ends; a second one does not wait.
SIGHUP opens the audit log by its name again, so that it can be rotated; where
serve has a terminal, SIGHUP ends it.`,
    )
    .action((file: string, flags: ServeFlags) => runServe(file, flags, terminal));

  command(program, 'export', 'print a tree as a spec file, with its secrets')
    .argument('[file]', 'the spec file; default: the one that --state was last served from')
    .option('--state <directory>', 'with what was written in the guest, kept there')
    .addHelpText(
      'after',
      `
Loaded again, the output gives the same names and values. What was made in the
guest carries its owner and mode as a comment: loaded, it is made outside, and
the policy says who may do what.

Examples:
  porthole export web.yaml
  porthole export --state /var/lib/porthole/web > copy.yaml`,
    )
    .action((file: string | undefined, flags: { readonly state?: string }) => runExport(file, flags.state, terminal));
};

const guestCid = (text: string): number => {
  const cid = Number(text);
  if (/^\d+$/.test(text) && cid >= 3 && cid <= 0xffff_fffe) return cid;
  throw new InvalidArgumentError('Give a number from 3 to 4294967294.');
};

const runServe = async (file: string, flags: ServeFlags, terminal: Terminal): Promise<void> => {
  const { vhostUser = [], mount: mounts = [], vsock = [], '9p': ninep = [], '9pAllow': ninepAllow = [] } = flags;
  const { http = [] } = flags;
  if (vhostUser.length + mounts.length + vsock.length + ninep.length + http.length === 0) {
    throw new UsageError(
      'serving needs a way in: add --vhost-user SOCKET, --9p SOCKET or --http ADDRESS for a VM, or --mount DIRECTORY for this machine',
    );
  }
  checkHttp(flags);
  const beginsWith = (kind: string) => ninep.filter((where) => where.startsWith(kind)).length;
  const [byTcp, byVsock] = [beginsWith('tcp:'), beginsWith('vsock:')];
  const sockets = vhostUser.length + vsock.length + ninep.length - byTcp - byVsock;
  if (flags.socketGroup !== undefined && sockets === 0 && !http.some((address) => address.startsWith('unix:'))) {
    throw new UsageError('--socket-group is for sockets: add --vhost-user SOCKET or --9p SOCKET');
  }
  if (ninepAllow.length > 0 && byTcp === 0) throw new UsageError('--9p-allow is for TCP: add --9p tcp:ADDRESS');
  if (byVsock > 0 && vsock.length === 0)
    throw new UsageError('--9p vsock:PORT is for a vsock device: add --vsock PATH');
  if (flags.vsockCid !== undefined && vsock.length === 0) {
    throw new UsageError('--vsock-cid is for a vsock device: add --vsock PATH');
  }
  const paint = paintFor(terminal);
  const server = await serve({
    file,
    vhostUser,
    mounts,
    ninep,
    ninepAllow,
    vsock,
    ...(flags.vsockCid !== undefined && { guestCid: flags.vsockCid }),
    ...(http.length > 0 && { http: httpOptions(http, flags) }),
    ...(flags.socketGroup !== undefined && { socketGroup: flags.socketGroup }),
    ...(flags.state !== undefined && { stateDirectory: flags.state }),
    ...(flags.audit !== undefined && { audit: flags.audit }),
    writeStdout: terminal.out,
    onEvent: (event) => {
      if (flags.json === true) {
        terminal.out(`${asJson(event)}\n`);
        return;
      }
      const { to, text } = inWords(event, paint);
      if (to === 'out') terminal.out(`${text}\n`);
      else terminal.err(`${text}\n`);
    },
  });
  terminal.forced.addEventListener('abort', () => server.force(), { once: true });
  terminal.interrupted.addEventListener('abort', () => void server.stop(), { once: true });
  if (terminal.interrupted.aborted) void server.stop();
  terminal.onReopen(() => server.reopenAudit());
  await server.ended;
};

const checkHttp = ({ http, httpCert, httpKey, facade, imdsV1 }: ServeFlags): void => {
  if ((httpCert === undefined) !== (httpKey === undefined))
    throw new UsageError('--http-cert and --http-key go together: give both');
  const [name] = Object.entries({ '--http-cert': httpCert, '--facade': facade, '--imds-v1': imdsV1 })
    .filter(([, value]) => value !== undefined)
    .map(([option]) => option);
  if (http === undefined && name !== undefined)
    throw new UsageError(`${name} is for the metadata server: add --http ADDRESS`);
};

const httpOptions = (addresses: readonly string[], { httpCert, httpKey, imdsV1, facade }: ServeFlags): HttpOptions => ({
  addresses,
  tls: httpCert === undefined || httpKey === undefined ? undefined : { cert: httpCert, key: httpKey },
  allowImdsV1: imdsV1,
  facades: facade?.map(facadeOf),
});

const facadeOf = (name: string): FacadeName => {
  const found = facadeNames.find((known) => known === name);
  if (found === undefined) throw new UsageError(`--facade "${name}" is none of ${facadeNames.join(', ')}`);
  return found;
};

const runExport = (given: string | undefined, state: string | undefined, terminal: Terminal): void => {
  if (given === undefined && state === undefined) {
    throw new UsageError('exporting needs a tree: give a spec file, or --state DIRECTORY');
  }
  using kept = state === undefined ? undefined : new State(state, { readOnly: true });
  const file = given ?? kept?.specFile;
  if (file === undefined) throw new UsageError(`nothing was served from "${state}" yet; give a spec file as well`);
  using tree = new ServedTree({ ...quiet, file, loaded: loadSpecOrThrow(file), state: kept });
  terminal.out(exportReplica(tree.authority.replica));
};

/** A tree that is only looked at. */
export const quiet = { vm: '', audit: () => true, wallMs: Date.now } as const;
