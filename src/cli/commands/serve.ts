/** `porthole serve` and `porthole export`: a tree from a file, without the host daemon. */
import type { Command } from 'commander';
import {
  exportReplica,
  type FacadeName,
  facadeNames,
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

const runServe = async (file: string, flags: ServeFlags, terminal: Terminal): Promise<void> => {
  const { vhostUser = [], mount: mounts = [], http = [] } = flags;
  if (vhostUser.length + mounts.length + http.length === 0) {
    throw new UsageError(
      'serving needs a way in: add --vhost-user SOCKET or --http ADDRESS for a VM, or --mount DIRECTORY for this machine',
    );
  }
  if ((flags.httpCert === undefined) !== (flags.httpKey === undefined))
    throw new UsageError('--http-cert and --http-key go together: give both');
  if (flags.socketGroup !== undefined && vhostUser.length === 0 && !http.some((one) => one.startsWith('unix:'))) {
    throw new UsageError('--socket-group is for sockets: add --vhost-user SOCKET');
  }
  const paint = paintFor(terminal);
  const server = await serve({
    file,
    vhostUser,
    mounts,
    ...(http.length > 0 && {
      http: {
        addresses: http,
        tls:
          flags.httpCert === undefined || flags.httpKey === undefined
            ? undefined
            : { cert: flags.httpCert, key: flags.httpKey },
        allowImdsV1: flags.imdsV1,
        facades: flags.facade?.map(facadeOf),
      },
    }),
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
