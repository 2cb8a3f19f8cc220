/** How every command of the tree is made, so that all behave alike. */
import { type Command, type Help, InvalidArgumentError, Option } from 'commander';
import { vmNamePattern } from '../records/index.ts';
import type { Api } from './api.ts';
import type { Terminal } from './terminal.ts';

/** What commands run with. */
export interface Shell {
  readonly terminal: Terminal;
  /** The exit code when nothing is thrown; 0 without it. */
  readonly setExitCode: (code: number) => void;
  /** The API that the command line, the environment or the configuration names. */
  readonly api: () => Api;
  /** The same in each region that the command line names. */
  readonly apis: () => readonly Api[];
}

const apiCommands = new WeakSet<Command>();
export const apiOption = (): Option =>
  new Option(
    '--api <address>',
    'where the API is: "unix:PATH" or "https://HOST:PORT"; default: PORTHOLE_API, else this host',
  );

export const regionOption = (): Option =>
  new Option('--region <region>', 'in this region; default: that of the API').argParser((value) => {
    const names = value.split(',');
    if (names.every((name) => vmNamePattern.test(name))) return names;
    throw new InvalidArgumentError('Write it as NAME, or as NAME,NAME where several make sense.');
  });

/** A command with its own `--help`. */
export const command = (parent: Command, name: string, description: string): Command =>
  parent
    .command(name)
    .description(description)
    .helpOption('-h, --help', 'print this help')
    .copyInheritedSettings(parent);

/** A command that has only commands below it. */
export const group = (parent: Command, name: string, description: string): Command =>
  command(parent, name, description).helpCommand(false);

/** A command that asks the API. */
export const apiCommand = (parent: Command, name: string, description: string): Command => {
  const made = command(parent, name, description);
  apiCommands.add(made);
  return made;
};

/** Help of a command that asks the API shows `--api` and `--region`, though they are the program's. */
export const helpConfiguration: Partial<Help> = {
  showGlobalOptions: true,
  visibleGlobalOptions: (of) => {
    const root = rootOf(of);
    return apiCommands.has(of) ? root.options.filter(({ long }) => long === '--api' || long === '--region') : [];
  },
};

/** What runs it: "porthole vm ls". */
export const commandLine = (of: Command): string =>
  of.parent === null ? of.name() : `${commandLine(of.parent)} ${of.name()}`;

export const rootOf = (of: Command): Command => {
  let at = of;
  while (at.parent !== null) at = at.parent;
  return at;
};

export const examples = (...lines: readonly string[]): string =>
  `\n${lines.length === 1 ? 'Example' : 'Examples'}:\n${lines.map((line) => `  ${line}`).join('\n')}`;

/** For options that may be given any number of times. */
export const collect = (value: string, before: readonly string[] = []): readonly string[] => [...before, value];

/** A parser as commander wants it, that collects. */
export const collected =
  <T>(parse: (text: string) => T) =>
  (value: string, before: readonly T[] = []): readonly T[] => [...before, parse(value)];

export const parseId = (value: string): number => {
  const id = /^\d{1,10}$/.test(value) ? Number(value) : Number.NaN;
  if (id < 0xffff_ffff) return id;
  throw new InvalidArgumentError('It must be a whole number from 0 to 4294967294.');
};

export const parseIds = (value: string): readonly number[] => value.split(',').map(parseId);

export const parseCount =
  (least: number, most: number) =>
  (value: string): number => {
    const count = /^\d{1,9}$/.test(value) ? Number(value) : Number.NaN;
    if (count >= least && count <= most) return count;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };

/** `KEY=VALUE`. */
export const parseLabel = (text: string): readonly [string, string] => {
  const at = text.indexOf('=');
  if (at > 0) return [text.slice(0, at), text.slice(at + 1)];
  throw new InvalidArgumentError('Write a label as KEY=VALUE.');
};

/** `NAME`, `NAME:VERSION` or `NAME@VERSION`. */
export const parseImage = (value: string): { readonly name: string; readonly version?: string } => {
  const [name, version, more] = value.split(/[:@]/);
  if (name === '' || name === undefined || version === '' || more !== undefined)
    throw new InvalidArgumentError('Write an image as NAME, NAME:VERSION or NAME@VERSION.');
  return version === undefined ? { name } : { name, version };
};

/** One document for programs. */
export const printJson = ({ out }: Terminal, value: unknown): void =>
  void out(`${JSON.stringify(value, undefined, 2)}\n`);
