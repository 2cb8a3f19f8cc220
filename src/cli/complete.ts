/**
 * What may stand at the cursor, from the tree of commands and, for names, from the API: fast, and silent when something is
 * wrong. The scripts of `completion-scripts.ts` ask it. The answer's first line is a directive, each further one a
 * candidate, a tab, and what it is:
 *
 *   words        the candidates, and nothing else
 *   partial      the same, and what is chosen goes on: no space after it
 *   files        names of files
 *   directories  names of directories
 */
import type { Argument, Command, Option } from 'commander';
import { Api } from './api.ts';
import type { Shell } from './command.ts';
import { vmNames } from './near.ts';
import { buildProgram } from './program.ts';
import type { Directory } from './shapes.ts';
import type { Terminal } from './terminal.ts';
import { findApi } from './where.ts';

/** Nobody waits longer at a prompt. */
const patienceMs = 2_000;

interface Candidate {
  readonly value: string;
  readonly about: string;
}

interface Answer {
  readonly directive: 'words' | 'partial' | 'files' | 'directories';
  readonly candidates: readonly Candidate[];
}

const files: Answer = { directive: 'files', candidates: [] };
const directories: Answer = { directive: 'directories', candidates: [] };
const nothing: Answer = { directive: 'words', candidates: [] };

/** @param words those before the cursor, then the one at it, which may be empty */
export const complete = async (words: readonly string[], terminal: Terminal): Promise<number> => {
  const { directive, candidates } = await answerFor(words, terminal).catch(() => nothing);
  const lines = candidates
    // A tab or a line break would end it too early.
    .filter(({ value }) => !/\p{Cc}/u.test(value))
    .map(({ value, about }) => (about === '' ? value : `${value}\t${about}`));
  terminal.out([directive, ...lines, ''].join('\n'));
  return 0;
};

/** Where in the tree of commands the words lead. */
interface Place {
  readonly command: Command;
  readonly arguments: readonly string[];
  readonly options: ReadonlyMap<Option, string>;
  /** The option that the next word is the value of. */
  readonly open: Option | undefined;
  /** After `--`. */
  readonly onlyArguments: boolean;
}

const answerFor = async (words: readonly string[], terminal: Terminal): Promise<Answer> => {
  const shell: Shell = {
    terminal,
    setExitCode: () => {},
    api: () => {
      throw new Error('nothing runs');
    },
    apis: () => [],
  };
  const isHelp = words.length > 1 && words[0] === 'help';
  const place = walk(buildProgram(shell), words.slice(isHelp ? 1 : 0, -1));
  const current = words.at(-1) ?? '';
  const names = new Names(place, terminal);
  const matching = ({ directive, candidates }: Answer, prefix = ''): Answer => ({
    directive,
    candidates: candidates
      .map(({ value, about }) => ({ value: prefix + value, about }))
      .filter(({ value }) => value.startsWith(current)),
  });
  if (isHelp) return matching(commandsOf(place.command));
  if (place.open !== undefined) return matching(await valuesOf(place.open, current, names));
  const [, flag, value] = place.onlyArguments ? [] : (/^(--[a-z-]+)=(.*)$/s.exec(current) ?? []);
  if (flag !== undefined && value !== undefined) {
    const option = optionsOf(place.command).find(({ long }) => long === flag);
    if (option === undefined) return nothing;
    return matching(await valuesOf(option, value, names), `${flag}=`);
  }
  if (!place.onlyArguments && current.startsWith('-')) return matching(flagsOf(place));
  if (place.command.commands.length > 0)
    return place.arguments.length > 0 ? nothing : matching(commandsOf(place.command));
  const { registeredArguments } = place.command;
  const next = registeredArguments[place.arguments.length] ?? registeredArguments.findLast(({ variadic }) => variadic);
  return next === undefined ? matching(flagsOf(place)) : matching(await argumentsOf(next, current, place, names));
};

const walk = (program: Command, words: readonly string[]): Place => {
  let command = program;
  const found: string[] = [];
  const options = new Map<Option, string>();
  let open: Option | undefined;
  let onlyArguments = false;
  for (const word of words) {
    if (open !== undefined) {
      options.set(open, word);
      open = undefined;
    } else if (!onlyArguments && word === '--') onlyArguments = true;
    else if (!onlyArguments && word.startsWith('-')) {
      const [, flag = word, value] = /^(--[^=]+)=(.*)$/s.exec(word) ?? [];
      const option = optionsOf(command).find(({ long, short }) => long === flag || short === flag);
      if (option?.required === true && value === undefined) open = option;
      else if (option !== undefined) options.set(option, value ?? '');
    } else {
      const below = command.commands.find((one) => one.name() === word);
      if (below !== undefined && found.length === 0) command = below;
      else found.push(word);
    }
  }
  return { command, arguments: found, options, open, onlyArguments };
};

/** Those of the command, and the program's `--api`. */
const optionsOf = (command: Command): readonly Option[] => {
  const help = command.createHelp();
  return [...help.visibleOptions(command), ...help.visibleGlobalOptions(command)];
};

const repeatable = /any number of times/;

const flagsOf = ({ command, options }: Place): Answer => {
  const used = new Set([...options.keys()].map(({ long }) => long));
  const candidates = optionsOf(command)
    .filter(({ long, description }) => !used.has(long) || repeatable.test(description))
    .map(({ long, short, description }) => ({ value: long ?? short ?? '', about: description }));
  return { directive: 'words', candidates };
};

const commandsOf = (command: Command): Answer => ({
  directive: 'words',
  candidates: command
    .createHelp()
    .visibleCommands(command)
    .map((one) => ({ value: one.name(), about: one.description() })),
});

const choices = (values: readonly string[]): Answer => ({
  directive: 'words',
  candidates: values.map((value) => ({ value, about: '' })),
});

/** `--file <file>` tells by its name what it takes. */
const valuesOf = (option: Option, current: string, names: Names): Promise<Answer> => {
  if (option.argChoices !== undefined) return Promise.resolve(choices(option.argChoices));
  const [, kind = ''] = /<([^>]+)>/.exec(option.flags) ?? [];
  return kindOf(kind, current, names);
};

const argumentsOf = (argument: Argument, current: string, place: Place, names: Names): Promise<Answer> => {
  if (argument.argChoices !== undefined) return Promise.resolve(choices(argument.argChoices));
  const isNew = place.command.name() === 'create' || (place.command.name() === 'add' && argument.name() === 'image');
  return isNew ? Promise.resolve(nothing) : kindOf(argument.name(), current, names);
};

const kindOf = async (kind: string, current: string, names: Names): Promise<Answer> => {
  switch (kind) {
    case 'file':
    case 'socket':
      return files;
    case 'directory':
      return directories;
    case 'vm':
      return names.vms();
    case 'vm-or-file':
      return /[./]/.test(current) ? files : names.vms();
    case 'image':
      return names.images();
    case 'path':
      return names.paths(current);
    case 'operation':
      return names.operations();
    case 'id':
      return names.keys();
    default:
      return nothing;
  }
};

/** Names that the API knows. */
class Names {
  readonly #place: Place;
  readonly #terminal: Terminal;

  constructor(place: Place, terminal: Terminal) {
    this.#place = place;
    this.#terminal = terminal;
  }

  async vms(): Promise<Answer> {
    const used = new Set(this.#place.arguments);
    return choices((await vmNames(this.#api())).filter((name) => !used.has(name)));
  }

  async images(): Promise<Answer> {
    const { images } = await this.#api().call('listImages');
    return choices(images.map(({ name, version }) => `${name}:${version}`));
  }

  async operations(): Promise<Answer> {
    const { operations } = await this.#api().call('listOperations', { query: { limit: 500 } });
    const candidates = operations.map(({ id, kind, target }) => ({ value: id, about: `${kind} ${target.name}` }));
    return { directive: 'words', candidates };
  }

  async keys(): Promise<Answer> {
    const { keys } = await this.#api().call('listKeys');
    return { directive: 'words', candidates: keys.map(({ id, name }) => ({ value: id, about: name })) };
  }

  /** Of the tree of the VM that the command line names. */
  async paths(current: string): Promise<Answer> {
    const { arguments: given, options } = this.#place;
    const vm = given[0] ?? [...options].find(([{ long }]) => long === '--vm')?.[1];
    if (vm === undefined || /[./]/.test(vm)) return nothing;
    const parent = current.slice(0, current.lastIndexOf('/') + 1) || '/';
    const { entries } = (await this.#api().call('readMetadata', { params: { name: vm, path: parent } })) as Directory;
    const candidates = entries.map(({ path, kind }) => ({
      value: kind === 'directory' ? `${path}/` : path,
      about: '',
    }));
    const left = candidates.filter(({ value }) => value.startsWith(current));
    const isPartial = left.length === 1 && left[0]!.value.endsWith('/');
    return { directive: isPartial ? 'partial' : 'words', candidates };
  }

  #api(): Api {
    const option = [...this.#place.options].find(([{ long }]) => long === '--api')?.[1];
    const { environment, interrupted } = this.#terminal;
    const where = findApi(option ?? (environment['PORTHOLE_API'] || undefined), environment);
    return new Api(where, AbortSignal.any([interrupted, AbortSignal.timeout(patienceMs)]));
  }
}
