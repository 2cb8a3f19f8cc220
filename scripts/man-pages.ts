/** Manual pages from the commander definitions that `porthole help` is made of: one for `porthole`, one for each command. */
import type { Command } from 'commander';

/** File name and text of each page, `porthole.1` first. `version` is for the foot of the pages. */
export function manPages(program: Command, version: string): ReadonlyMap<string, string> {
  const commands = program.createHelp().visibleCommands(program);
  const documented = commands.filter((command) => command.name() !== 'help');
  const pages = new Map([[`${pageName(program)}.1`, page(program, version, documented)]]);
  for (const command of documented) pages.set(`${pageName(command)}.1`, page(command, version, []));
  return pages;
}

const pathOf = (command: Command): string =>
  command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`;
const pageName = (command: Command): string => pathOf(command).replaceAll(' ', '-');

function page(command: Command, version: string, elsewhere: readonly Command[]): string {
  const name = pageName(command);
  const { examples, rest } = partsOf(trailer(command));
  const below = elsewhere.length > 0 ? [] : command.createHelp().visibleCommands(command);
  const related = command.parent === null ? elsewhere.map(pageName) : ['porthole'];
  return [
    '.\\" Made from the definitions of the commands by scripts/generate-docs.ts.',
    `.TH ${name.toUpperCase()} 1 "" "porthole ${version}" "Porthole"`,
    '.SH NAME',
    `${text(name)} \\- ${text(command.description())}`,
    '.SH SYNOPSIS',
    ...(below.length > 0 ? below : [command]).flatMap((one, index) => [...(index > 0 ? ['.br'] : []), synopsis(one)]),
    ...section('.SH DESCRIPTION', rest === '' ? [] : prose(rest)),
    ...section('.SH ARGUMENTS', argumentsOf(command)),
    ...section('.SH OPTIONS', optionsOf(command)),
    ...section(
      '.SH COMMANDS',
      elsewhere.flatMap((one) => term(`${pageName(one)}(1)`, one.description())),
    ),
    ...section(
      '.SH COMMANDS',
      below.flatMap((one) => {
        const after = partsOf(trailer(one));
        return [
          `.SS "${text(pathOf(one).split(' ').slice(1).join(' '))}"`,
          `${text(sentence(one.description()))}`,
          ...argumentsOf(one),
          ...optionsOf(one),
          ...(after.rest === '' ? [] : ['.PP', ...prose(after.rest)]),
          ...(after.examples === '' ? [] : prose(after.examples)),
        ];
      }),
    ),
    ...section('.SH EXAMPLES', examples === '' ? [] : prose(examples.replace(/^.*\n/, ''))),
    ...section('.SH SEE ALSO', related.length === 0 ? [] : [related.map((one) => `.BR ${text(one)} (1)`).join(',\n')]),
    '',
  ].join('\n');
}

/** What stands behind the options in the help of a command. */
function trailer(command: Command): string {
  let help = '';
  const { writeOut } = command.configureOutput();
  command.configureOutput({ writeOut: (words) => void (help += words) });
  command.outputHelp();
  command.configureOutput(writeOut === undefined ? {} : { writeOut });
  return help.slice(command.helpInformation().length).trim();
}

/** The paragraph of examples, and the others. */
function partsOf(words: string): { readonly examples: string; readonly rest: string } {
  const paragraphs = words.split('\n\n').filter((paragraph) => paragraph !== '');
  const isExamples = (paragraph: string): boolean => /^Examples?:/.test(paragraph);
  return {
    examples: paragraphs.filter(isExamples).join('\n'),
    rest: paragraphs.filter((paragraph) => !isExamples(paragraph)).join('\n\n'),
  };
}

const synopsis = (command: Command): string => {
  const [names, rest] = [pathOf(command), command.createHelp().commandUsage(command)];
  return `.B ${text(names)}\n${text(rest.slice(names.length).trim())}`;
};

const argumentsOf = (command: Command): readonly string[] => {
  const help = command.createHelp();
  return help.visibleArguments(command).flatMap((one) => term(help.argumentTerm(one), help.argumentDescription(one)));
};

const optionsOf = (command: Command): readonly string[] => {
  const help = command.createHelp();
  return [...help.visibleOptions(command), ...help.visibleGlobalOptions(command)].flatMap((one) =>
    term(help.optionTerm(one), help.optionDescription(one)),
  );
};

const term = (name: string, description: string): readonly string[] => ['.TP', `.B ${text(name)}`, text(description)];
const section = (title: string, lines: readonly string[]): readonly string[] =>
  lines.length === 0 ? [] : [title, ...lines];
const sentence = (words: string): string => `${words.slice(0, 1).toUpperCase()}${words.slice(1)}.`;

/** Paragraphs are filled; lines that begin with a space stay as they are. */
const prose = (words: string): readonly string[] =>
  words.split('\n\n').flatMap((paragraph, index) => {
    const lines: string[] = index === 0 ? [] : ['.PP'];
    let asIs = false;
    for (const line of paragraph.split('\n')) {
      if (line.startsWith(' ') !== asIs) {
        asIs = !asIs;
        lines.push(...(asIs ? ['.PP', '.nf', '.RS 4'] : ['.RE', '.fi', '.PP']));
      }
      lines.push(text(line.replace(/^ {2}/, '').trimEnd()));
    }
    if (asIs) lines.push('.RE', '.fi');
    return lines;
  });

/** For groff: nothing is an escape or a request, and a hyphen is one that can be typed. */
const text = (words: string): string =>
  words
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('"', '\\(dq')
    .replaceAll(
      /[\u0080-\u{10ffff}]/gu,
      (one) => `\\[u${one.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0')}]`,
    )
    .replaceAll(/^(?=[.'])/gm, '\\&')
    .replaceAll('\n', ' ');
