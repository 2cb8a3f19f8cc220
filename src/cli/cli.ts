/** The `porthole` command. `runCli` is the whole of it, and touches nothing global. */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import {
  exportReplica,
  formatProblem,
  formatProblems,
  loadSpec,
  loadSpecOrThrow,
  nearest,
  ServedTree,
  SpecError,
  State,
  serve,
} from '../host/index.ts';
import { thisVersion, versionText } from '../parts/index.ts';
import { type Caller, ways } from '../tree/index.ts';
import { exitCodeHelp, exitCodes, toExitCode, UsageError } from './exit-code.ts';
import { explainPath } from './explain-command.ts';

import { asJson, inWords } from './serve-words.ts';
import { paintFor, type Terminal } from './terminal.ts';

interface ServeFlags {
  readonly vhostUser?: readonly string[];
  readonly socketGroup?: string;
  readonly mount?: readonly string[];
  readonly state?: string;
  readonly audit?: string;
  readonly json?: true;
}

interface ExplainFlags {
  readonly uid: number;
  readonly gid?: number;
  readonly groups?: readonly number[];
  readonly way: 'virtiofs' | 'mount' | 'direct';
  readonly state?: string;
}

/** Runs one command line (without program names) and answers the exit code. Never throws. */
export const runCli = async (args: readonly string[], terminal: Terminal): Promise<number> => {
  let exitCode: number = exitCodes.ok;
  const program = buildProgram(terminal, (code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (error) {
    report(error, terminal);
    return toExitCode(error);
  }
};

const report = (error: unknown, terminal: Terminal): void => {
  const paint = paintFor(terminal);
  // Commander has said its own.
  if (error instanceof CommanderError) return;
  if (error instanceof SpecError) terminal.err(`${formatProblems(error.problems, paint)}\n`);
  else terminal.err(`${paint.error('porthole')}: ${error instanceof Error ? error.message : String(error)}\n`);
};

/** The tree of commands. Building it runs nothing: manual pages are made from it. */
export const buildProgram = (terminal: Terminal, setExitCode: (code: number) => void): Command => {
  const program = new Command('porthole')
    .description(
      "A directory with a virtual machine's metadata and secrets, answered and decided from outside the machine, by who asks.",
    )
    .option('--version', 'print the version and the commit it was built from')
    .helpOption('-h, --help', 'print this help')
    .helpCommand('help [command]', 'print the help of a command')
    .addHelpText('after', exitCodeHelp)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => terminal.out(text),
      writeErr: (text) => terminal.err(text),
      outputError: (text, write) => write(text.replace(/^error: /, 'porthole: ')),
    })
    // Only then: from a checkout, git is asked.
    .on('option:version', () => {
      terminal.out(`${versionText(thisVersion())}\n`);
      throw new CommanderError(exitCodes.ok, 'commander.version', 'the version was printed');
    });

  command(program, 'serve', 'serve the tree of a spec file to a VM, or on this machine')
    .argument('<file>', 'the spec file; changes of it are served at once')
    .option('--vhost-user <socket>', 'listen on this socket for a VM (any number of times)', collect)
    .option('--socket-group <group>', 'let this group connect to the sockets (else only their owner may)')
    .option('--mount <directory>', 'mount on this directory of this machine (any number of times)', collect)
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

  const policy = command(program, 'policy', 'check and explain policies').helpCommand(false);
  command(policy, 'check', 'say what is wrong in a spec file')
    .argument('<file>', 'the spec file')
    .addHelpText('after', '\nExample:\n  porthole policy check web.yaml')
    .action((file: string) => runCheck(file, terminal));
  command(policy, 'explain', 'say what a caller may do with a path, and why')
    .argument('<file>', 'the spec file')
    .argument('<path>', 'absolute path in the tree')
    .requiredOption('--uid <uid>', 'who asks (required)', parseId)
    .option('--gid <gid>', 'primary group (default: the uid)', parseId)
    .option('--groups <gids>', 'supplementary groups, separated by commas', parseIds)
    .addOption(new Option('--way <way>', 'the way in').choices(['virtiofs', 'mount', 'direct']).default('virtiofs'))
    .option('--state <directory>', 'with what was written in the guest, kept there')
    .addHelpText('after', '\nExample:\n  porthole policy explain web.yaml --uid 1000 /secrets/db-password')
    .action((file: string, path: string, flags: ExplainFlags) => {
      setExitCode(runExplain(file, path, flags, terminal));
    });
  return program;
};

/** Every command behaves alike. */
const command = (parent: Command, name: string, description: string): Command =>
  parent
    .command(name)
    .description(description)
    .helpOption('-h, --help', 'print this help')
    .copyInheritedSettings(parent);

const collect = (value: string, before: readonly string[] = []): readonly string[] => [...before, value];

const parseId = (value: string): number => {
  const id = /^\d{1,10}$/.test(value) ? Number(value) : Number.NaN;
  if (id < 0xffff_ffff) return id;
  throw new InvalidArgumentError('It must be a whole number from 0 to 4294967294.');
};

const parseIds = (value: string): readonly number[] => value.split(',').map(parseId);

const runServe = async (file: string, flags: ServeFlags, terminal: Terminal): Promise<void> => {
  const { vhostUser = [], mount: mounts = [] } = flags;
  if (vhostUser.length + mounts.length === 0) {
    throw new UsageError(
      'serving needs a way in: add --vhost-user SOCKET for a VM, or --mount DIRECTORY for this machine',
    );
  }
  if (flags.socketGroup !== undefined && vhostUser.length === 0) {
    throw new UsageError('--socket-group is for sockets: add --vhost-user SOCKET');
  }
  const paint = paintFor(terminal);
  const server = await serve({
    file,
    vhostUser,
    mounts,
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
const quiet = { vm: '', audit: () => true, wallMs: Date.now } as const;

const runCheck = (file: string, terminal: Terminal): void => {
  const { spec, problems } = loadSpec(file);
  const paint = paintFor(terminal);
  if (spec === undefined) throw new SpecError(problems);
  for (const problem of problems) terminal.err(`${formatProblem(problem, paint)}\n`);
  const { rules } = spec.policy;
  terminal.out(
    `${file}: ${spec.entries.length} nodes, ${rules.length} ${rules.length === 1 ? 'rule' : 'rules'}, nothing wrong\n`,
  );
};

const runExplain = (file: string, path: string, flags: ExplainFlags, terminal: Terminal): number => {
  if (!path.startsWith('/')) throw new UsageError(`the path must be absolute: did you mean "/${path}"?`);
  const normal = `/${path
    .split('/')
    .filter((name) => name !== '')
    .join('/')}`;
  using kept = flags.state === undefined ? undefined : new State(flags.state, { readOnly: true });
  using tree = new ServedTree({ ...quiet, file, loaded: loadSpecOrThrow(file), state: kept });
  const { replica } = tree.authority;
  const caller: Caller = { uid: flags.uid, gid: flags.gid ?? flags.uid, pid: 0, groups: flags.groups };
  const text = explainPath({ replica, path: normal, caller, way: ways[flags.way], wallMs: Date.now() });
  if (text !== undefined) {
    terminal.out(text);
    return exitCodes.ok;
  }
  const { snapshot } = replica;
  const near = nearest(
    normal,
    [...snapshot.nodes.values()].map((node) => snapshot.path(node)),
  );
  const hint = near === undefined ? '"porthole export" prints the tree' : `did you mean "${near}"?`;
  terminal.err(`${paintFor(terminal).error('porthole')}: there is no "${normal}" in ${file}; ${hint}\n`);
  return exitCodes.failed;
};
