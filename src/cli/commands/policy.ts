/** `porthole policy`: of a virtual machine, and of a spec file that nobody serves yet. */
import { existsSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { ClientError } from '../../cluster/client/index.ts';
import { formatProblem, loadSpec, loadSpecOrThrow, nearest, ServedTree, SpecError, State } from '../../host/index.ts';
import { type Caller, ways } from '../../tree/index.ts';
import { printable } from '../../wire/index.ts';
import { reworded } from '../api.ts';
import { apiCommand, command, examples, group, parseId, parseIds, printJson, type Shell } from '../command.ts';
import { exitCodes } from '../exit-code.ts';
import { explainPath } from '../explain-command.ts';
import { explainedWords } from '../explained-words.ts';
import { withPath, withVm } from '../near.ts';
import { readYaml, warningWords, withSpecShown } from '../spec-problems.ts';
import { paintFor, type Terminal } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { absolute, edited } from './metadata.ts';
import { quiet } from './serve.ts';

interface ExplainFlags {
  readonly uid: number;
  readonly gid?: number;
  readonly groups?: readonly number[];
  readonly way?: 'virtiofs' | 'mount' | 'direct';
  readonly state?: string;
  readonly json?: true;
}

interface SetFlags {
  readonly ifRevision?: string;
  readonly json?: true;
}

export const policyCommands = (program: Command, shell: Shell): void => {
  const { terminal, setExitCode } = shell;
  const policy = group(program, 'policy', 'who may do what: read, set, check and explain it');

  apiCommand(policy, 'get', 'print the policy of a virtual machine')
    .argument('<vm>', 'its name')
    .addHelpText('after', examples('porthole policy get web-1 > policy.yaml'))
    .action(async (vm: string) => {
      const api = shell.api();
      const { bytes } = await withVm(api, vm, () => api.raw('getPolicy', { params: { name: vm } }));
      terminal.out(bytes);
    });

  apiCommand(policy, 'set', 'set the policy of a virtual machine')
    .argument('<vm>', 'its name')
    .argument('<file>', 'the sections users, groups, policy, quota and ninep; "-" is standard input')
    .option('--if-revision <revision>', 'only if the policy still has this revision')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Replaces all of it, at once for the guest. A mistake changes nothing and is
printed with its line. The sections metadata and porthole are not for here:
"porthole metadata import" takes a whole spec file.

Example:
  porthole policy set web-1 policy.yaml`,
    )
    .action((vm: string, file: string, flags: SetFlags) => set(shell, vm, file, flags));

  command(policy, 'check', 'say what is wrong in a spec file')
    .argument('<file>', 'the spec file')
    .addHelpText('after', '\nExample:\n  porthole policy check web.yaml')
    .action((file: string) => check(file, terminal));

  apiCommand(policy, 'explain', 'say what a caller may do, and why')
    .argument('<vm-or-file>', 'a virtual machine, or a spec file: what has a "." or a "/" in it')
    .argument('<path>', 'absolute path in the tree')
    .requiredOption('--uid <uid>', 'who asks (required)', parseId)
    .option('--gid <gid>', 'primary group (default: the uid)', parseId)
    .option('--groups <gids>', 'supplementary groups, separated by commas', parseIds)
    .addOption(
      new Option('--way <way>', 'the way in; of a file only (default: virtiofs)').choices([
        'virtiofs',
        'mount',
        'direct',
      ]),
    )
    .option('--state <directory>', 'of a file only: with what was written in the guest, kept there')
    .option('--json', 'of a virtual machine only: print one JSON document')
    .addHelpText(
      'after',
      examples(
        'porthole policy explain web-1 --uid 1000 /secrets/db-password',
        'porthole policy explain web.yaml --uid 1000 /secrets/db-password',
      ),
    )
    .action(async (what: string, path: string, flags: ExplainFlags) => {
      if (isFile(what)) setExitCode(explainFile(what, absolute(path), flags, terminal));
      else await explainVm(shell, what, absolute(path), flags);
    });
};

/** A VM's name has neither. */
const isFile = (text: string): boolean => /[./]/.test(text);

const set = async (shell: Shell, vm: string, file: string, flags: SetFlags): Promise<void> => {
  const { terminal } = shell;
  const text = await readYaml(terminal, file);
  const api = shell.api();
  const headers = flags.ifRevision === undefined ? {} : { 'if-match': `"${flags.ifRevision}"` };
  const result = await withSpecShown(
    text,
    () => withVm(api, vm, () => api.call('setPolicy', { params: { name: vm }, body: text.text, headers })),
    'policy',
  );
  if (flags.json !== true) terminal.err(warningWords(result.warnings, text, 'policy', paintFor(terminal)));
  edited(terminal, result, flags);
};

const explainVm = async (shell: Shell, vm: string, path: string, flags: ExplainFlags): Promise<void> => {
  const { terminal } = shell;
  if (flags.way !== undefined || flags.state !== undefined)
    throw new UsageError(
      `--way and --state are for a spec file, and "${vm}" is a virtual machine; for a file: ./${vm}`,
    );
  const { uid, gid, groups } = flags;
  const api = shell.api();
  const query = { path, uid, gid, ...(groups !== undefined && { group: [...groups] }) };
  try {
    const told = await withPath(api, vm, path, () => api.call('explainPolicy', { params: { name: vm }, query }));
    if (flags.json === true) printJson(terminal, told);
    else terminal.out(explainedWords(told, { uid, gid: gid ?? uid, groups }));
  } catch (error) {
    if (error instanceof ClientError && error.code === 'VM_NOT_FOUND' && existsSync(vm))
      throw reworded(error, `${error.message}; for the file write ./${vm}`);
    throw error;
  }
};

const explainFile = (file: string, path: string, flags: ExplainFlags, terminal: Terminal): number => {
  if (flags.json === true) throw new UsageError('--json is for a virtual machine, not for a file');
  using kept = flags.state === undefined ? undefined : new State(flags.state, { readOnly: true });
  using tree = new ServedTree({ ...quiet, file, loaded: loadSpecOrThrow(file), state: kept });
  const { replica } = tree.authority;
  const caller: Caller = { uid: flags.uid, gid: flags.gid ?? flags.uid, pid: 0, groups: flags.groups };
  const way = ways[flags.way ?? 'virtiofs'];
  const text = explainPath({ replica, path, caller, way, wallMs: terminal.wallMs() });
  if (text !== undefined) {
    terminal.out(text);
    return exitCodes.ok;
  }
  const { snapshot } = replica;
  const near = nearest(
    path,
    [...snapshot.nodes.values()].map((node) => snapshot.path(node)),
  );
  const hint = near === undefined ? '"porthole export" prints the tree' : `did you mean "${printable(near)}"?`;
  terminal.err(`${paintFor(terminal).error('porthole')}: there is no "${path}" in ${file}; ${hint}\n`);
  return exitCodes.failed;
};

const check = (file: string, terminal: Terminal): void => {
  const { spec, problems } = loadSpec(file);
  const paint = paintFor(terminal);
  if (spec === undefined) throw new SpecError(problems);
  for (const problem of problems) terminal.err(`${formatProblem(problem, paint)}\n`);
  const { rules } = spec.policy;
  terminal.out(
    `${file}: ${spec.entries.length} nodes, ${rules.length} ${rules.length === 1 ? 'rule' : 'rules'}, nothing wrong\n`,
  );
};
