/** `porthole metadata`: the tree that a machine sees. */
import { readFileSync } from 'node:fs';
import { type Command } from 'commander';
import { printable } from '../../wire/index.ts';
import { moment, size } from '../amounts.ts';
import type { Api } from '../api.ts';
import { apiCommand, examples, group, printJson, type Shell } from '../command.ts';
import { modeLetters } from '../mode-letters.ts';
import { withPath, withVm } from '../near.ts';
import { promptSecret, promptYes, readInput } from '../prompt.ts';
import { safeText } from '../safe-text.ts';
import type { Directory, Tree, TreeEntry } from '../shapes.ts';
import { readSpec, warningWords, withSpecShown } from '../spec-problems.ts';
import { table } from '../table.ts';
import { paintFor, type Terminal } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { watchCommand } from './watch.ts';

/** As the API takes it. */
const valueBytes = 1024 * 1024;

export const metadataCommands = (program: Command, shell: Shell): void => {
  const metadata = group(program, 'metadata', 'read, write and follow what a virtual machine sees');

  apiCommand(metadata, 'get', 'print a value')
    .argument('<vm>', 'name of the virtual machine')
    .argument('<path>', 'absolute path in its tree')
    .option('--reveal', 'do not ask before a secret is shown on a terminal')
    .option('--json', 'print one JSON document: the value and what is known of it; of a directory, all below it')
    .addHelpText(
      'after',
      `
The bytes come as they are. On a terminal, control characters are made visible,
and what not every program in the guest may read is shown only when you say so.

Examples:
  porthole metadata get web-1 /instance/hostname
  porthole metadata get web-1 /secrets/tls.key > tls.key`,
    )
    .action((vm: string, path: string, flags: GetFlags) => get(shell, vm, absolute(path), flags));

  apiCommand(metadata, 'set', 'write a value')
    .argument('<vm>', 'name of the virtual machine')
    .argument('<path>', 'absolute path in its tree; missing directories are made')
    .option('--file <file>', 'the value is what is in this file')
    .option('--strip-newline', 'without the line break at its end, as "echo" makes one')
    .option('--if-revision <revision>', 'only if it still has this revision, as "metadata ls --json" gives it')
    .option('--new', 'only if there is nothing at the path')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
The value is read from standard input, from --file, or, on a terminal, from a
prompt that does not show it. There is no option for the value itself: the
arguments of a command are seen by every user of the machine ("ps"), and stay
in the shell's history.

Examples:
  porthole metadata set web-1 /secrets/db-password
  printf %s "$PASSWORD" | porthole metadata set web-1 /secrets/db-password
  porthole metadata set web-1 /secrets/tls.key --file tls.key`,
    )
    .action((vm: string, path: string, flags: SetFlags) => set(shell, vm, absolute(path), flags));

  apiCommand(metadata, 'rm', 'remove a file or a directory')
    .argument('<vm>', 'name of the virtual machine')
    .argument('<path>', 'absolute path in its tree')
    .option('-r, --recursive', 'a directory with all that is in it')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole metadata rm web-1 /instance/tags --recursive'))
    .action((vm: string, path: string, flags: RemoveFlags) => remove(shell, vm, absolute(path), flags));

  apiCommand(metadata, 'ls', 'list a directory, without values')
    .argument('<vm>', 'name of the virtual machine')
    .argument('[path]', 'absolute path in its tree', '/')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole metadata ls web-1 /secrets'))
    .action((vm: string, path: string, flags: ListFlags) => list(shell, vm, absolute(path), flags));

  watchCommand(metadata, shell);

  apiCommand(metadata, 'import', 'make metadata and policy what a spec file says')
    .argument('<vm>', 'name of the virtual machine')
    .argument('<file>', 'the spec file; "-" is standard input')
    .option('--if-revision <revision>', 'only if the tree still has this revision')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
One commit: the guest sees all of it or nothing. What was made in the guest
stays. A mistake changes nothing and is printed with its line.

Example:
  porthole metadata import web-1 web.yaml`,
    )
    .action((vm: string, file: string, flags: ImportFlags) => load(shell, vm, file, flags));

  apiCommand(metadata, 'export', 'print metadata and policy as a spec file, with its secrets')
    .argument('<vm>', 'name of the virtual machine')
    .option('--reveal', 'do not ask before secrets are shown on a terminal')
    .addHelpText('after', examples('porthole metadata export web-1 > web.yaml'))
    .action((vm: string, flags: GetFlags) => exportTree(shell, vm, flags));
};

interface GetFlags {
  readonly reveal?: true;
  readonly json?: true;
}

interface ListFlags {
  readonly json?: true;
}

interface SetFlags extends ListFlags {
  readonly file?: string;
  readonly stripNewline?: true;
  readonly ifRevision?: string;
  readonly new?: true;
}

interface RemoveFlags extends ListFlags {
  readonly recursive?: true;
}

interface ImportFlags extends ListFlags {
  readonly ifRevision?: string;
}

/** Without a slash at its end, and with one between names. */
export const absolute = (path: string): string => {
  if (!path.startsWith('/')) throw new UsageError(`the path must be absolute: did you mean "/${path}"?`);
  return `/${path
    .split('/')
    .filter((name) => name !== '')
    .join('/')}`;
};

const get = async ({ api: connect, terminal }: Shell, vm: string, path: string, flags: GetFlags): Promise<void> => {
  const api = connect();
  const params = { name: vm, path };
  const entry = await entryAt(api, vm, path);
  if (!entry.worldReadable) await mayShow(terminal, `"${path}" is a secret`, flags);
  if (flags.json === true) {
    const tree = (await api.call('readMetadata', { params, query: { view: 'tree' } })) as Tree;
    printJson(terminal, entry.kind === 'directory' ? tree : tree.entries[0]);
    return;
  }
  if (entry.kind === 'directory')
    throw new Error(`"${path}" is a directory; "porthole metadata ls ${vm} ${path}" lists it`);
  const { bytes } = await withPath(api, vm, path, () => api.raw('readMetadata', { params }));
  if (!terminal.outIsTerminal) {
    terminal.out(bytes);
    return;
  }
  const text = safeText(bytes);
  terminal.out(text.endsWith('\n') ? text : `${text}\n`);
};

/** A screen is seen, kept and shared. */
const mayShow = async (terminal: Terminal, what: string, { reveal }: GetFlags): Promise<void> => {
  if (!terminal.outIsTerminal || reveal === true) return;
  if (!terminal.input.isTerminal) throw new UsageError(`${what}: add --reveal to show it on this terminal`);
  if (!(await promptYes(terminal, `${what}; show it on this terminal?`)))
    throw new Error(`${what}, and was not shown; --reveal shows it without asking`);
};

const set = async (shell: Shell, vm: string, path: string, flags: SetFlags): Promise<void> => {
  const { terminal } = shell;
  if (flags.new === true && flags.ifRevision !== undefined)
    throw new UsageError('--new and --if-revision exclude each other');
  const given = await valueFor(terminal, path, flags.file);
  const value = flags.stripNewline === true ? stripped(given) : given;
  const api = shell.api();
  const result = await withVm(api, vm, () =>
    api.call('writeMetadata', {
      params: { name: vm, path },
      body: value,
      headers: {
        ...(flags.new === true && { 'if-none-match': '*' as const }),
        ...(flags.ifRevision !== undefined && { 'if-match': `"${flags.ifRevision}"` }),
      },
    }),
  );
  edited(terminal, result, flags);
};

const valueFor = async (terminal: Terminal, path: string, file: string | undefined): Promise<Uint8Array> => {
  if (file !== undefined) return readFileSync(file);
  if (terminal.input.isTerminal) {
    const typed = await promptSecret(terminal, `value of ${path} (it is not shown; Enter ends it): `);
    if (typed.length === 0)
      throw new UsageError('nothing was typed, so nothing was changed; an empty value: --file /dev/null');
    return typed;
  }
  const read = await readInput(terminal, valueBytes);
  if (read === undefined) throw new UsageError(`the value has more than ${valueBytes} bytes`);
  return read;
};

const stripped = (bytes: Uint8Array): Uint8Array => {
  const [last, before] = [bytes.at(-1), bytes.at(-2)];
  if (last !== 0x0a) return bytes;
  return bytes.subarray(0, bytes.length - (before === 0x0d ? 2 : 1));
};

/** Nothing to say when it is done and seen everywhere. */
export const edited = (
  terminal: Terminal,
  result: { readonly notApplied: readonly string[] },
  { json }: ListFlags,
): void => {
  if (json === true) printJson(terminal, result);
  else if (result.notApplied.length > 0)
    terminal.err(
      `${paintFor(terminal).warning('warning')}: it is done, but not seen everywhere yet: ${result.notApplied.map(printable).join(', ')}\n`,
    );
};

const remove = async (shell: Shell, vm: string, path: string, flags: RemoveFlags): Promise<void> => {
  const api = shell.api();
  const query = { recursive: flags.recursive === true ? ('true' as const) : ('false' as const) };
  const params = { name: vm, path };
  edited(shell.terminal, await withPath(api, vm, path, () => api.call('removeMetadata', { params, query })), flags);
};

const list = async ({ api: connect, terminal }: Shell, vm: string, path: string, flags: ListFlags): Promise<void> => {
  const api = connect();
  const entries = await entriesAt(api, vm, path);
  if (flags.json === true) {
    printJson(terminal, entries);
    return;
  }
  if (entries.length === 0) {
    terminal.err(`"${path}" is empty\n`);
    return;
  }
  const nowMs = terminal.wallMs();
  const columns = [
    {
      title: 'MODE',
      cell: ({ kind, mode }: TreeEntry) => `${typeLetter[kind]}${modeLetters(Number.parseInt(mode, 8))}`,
    },
    { title: 'OWNER', cell: ({ uid, gid }: TreeEntry) => `${uid}:${gid}` },
    { title: 'SIZE', cell: ({ sizeBytes }: TreeEntry) => size(sizeBytes), align: 'right' as const },
    { title: 'REVISION', cell: ({ dataRevision }: TreeEntry) => dataRevision, align: 'right' as const },
    {
      title: 'CHANGED',
      cell: ({ modifiedAt }: TreeEntry) => moment(Date.parse(modifiedAt), nowMs).replace(/.*\(|\)$/g, ''),
    },
    { title: 'NAME', cell: (entry: TreeEntry) => `${printable(nameOf(entry))}${noteOf(entry)}` },
  ];
  terminal.out(table(columns, entries, paintFor(terminal, 'out').dim));
};

const entryAt = (api: Api, vm: string, path: string): Promise<TreeEntry> =>
  withPath(
    api,
    vm,
    path,
    async () => (await api.call('readMetadata', { params: { name: vm, path }, query: { view: 'stat' } })) as TreeEntry,
  );

/** All entries of a directory, or the one that a file is. */
const entriesAt = async (api: Api, vm: string, path: string): Promise<TreeEntry[]> => {
  const entry = await entryAt(api, vm, path);
  if (entry.kind !== 'directory') return [entry];
  const entries: TreeEntry[] = [];
  for (let after: string | undefined; ; ) {
    const query = { after };
    const page = (await api.call('readMetadata', { params: { name: vm, path }, query })) as Directory;
    entries.push(...page.entries);
    const last = page.entries.at(-1);
    if (!page.more || last === undefined) return entries;
    after = nameOf(last);
  }
};

const nameOf = ({ path }: { readonly path: string }): string => path.slice(path.lastIndexOf('/') + 1) || '/';

const typeLetter = { directory: 'd', file: '-', symlink: 'l' } as const;

const noteOf = ({ kind, madeBy, burned }: TreeEntry): string => {
  const notes = [madeBy === 'guest' ? 'made in the guest' : '', burned ? 'read once: gone' : ''].filter(Boolean);
  return (kind === 'directory' ? '/' : '') + (notes.length === 0 ? '' : `  (${notes.join('; ')})`);
};

const load = async (shell: Shell, vm: string, file: string, flags: ImportFlags): Promise<void> => {
  const { terminal } = shell;
  const spec = await readSpec(terminal, file);
  const api = shell.api();
  const headers = flags.ifRevision === undefined ? {} : { 'if-match': `"${flags.ifRevision}"` };
  const result = await withSpecShown(spec, () =>
    withVm(api, vm, () => api.call('importSpec', { params: { name: vm }, body: spec.sent, headers })),
  );
  if (flags.json !== true) {
    terminal.err(warningWords(result.warnings, spec, 'spec', paintFor(terminal)));
    const { changes } = result;
    terminal.err(changes === 0 ? 'nothing changed\n' : `${changes} ${changes === 1 ? 'path' : 'paths'} changed\n`);
  }
  edited(terminal, result, flags);
};

const exportTree = async ({ api: connect, terminal }: Shell, vm: string, flags: GetFlags): Promise<void> => {
  await mayShow(terminal, `the export of "${vm}" has all its secrets in it`, flags);
  const api = connect();
  const { bytes } = await withVm(api, vm, () => api.raw('exportSpec', { params: { name: vm } }));
  terminal.out(terminal.outIsTerminal ? safeText(bytes) : bytes);
};
