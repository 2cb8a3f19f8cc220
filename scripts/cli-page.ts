/** `docs/cli.md`: the help of every command, as the command prints it. */
import type { Command } from 'commander';
import { buildProgram } from '../src/cli/program.ts';

const intro = `# The command line

<!-- generated: node scripts/generate-docs.ts -->

What \`porthole help\` says, on one page. [operations.md](operations.md) says how to run a host.

Commands that look at a machine, an image or the host ask the API of the host daemon: over its unix socket, where the kernel says who asks, or over TLS with a key. \`--api\` says where, else the environment variable \`PORTHOLE_API\`, else \`api\` in \`~/.config/porthole/config.yaml\`, else \`unix:/run/porthole/api.sock\`. A key is read from the file that \`PORTHOLE_KEY_FILE\` names, or from \`key\` or \`keyFile\` of the configuration, which then goes to the configured API only; both files must be closed to others. \`PORTHOLE_CA_FILE\`, or \`caFile\` there, names the certificate of a server that this machine does not trust by itself.

- Tables are for people: their columns may change. \`--json\` is for programs: one document, or JSON lines where a command goes on. What is printed beside the result (progress, warnings) goes to standard error.
- Nothing is printed when there is nothing to say. Colours are for terminals only, never without the words, and off with \`NO_COLOR\`.
- A secret is never an argument: it is read from a file, standard input, or a prompt that does not show it.
- Bytes of a guest are printed on a terminal as text and colours only, but in \`vm console\`.
`;

export const cliPage = (): string => {
  const lines: string[] = [];
  const program = buildProgram({
    terminal: {
      out: (text) => {
        lines.push(String(text));
        return true;
      },
      drained: async () => {},
      err: () => {},
      outIsTerminal: false,
      errIsTerminal: false,
      columns: () => 80,
      input: { isTerminal: false, chunks: async function* () {}, setMode: () => {}, close: () => {} },
      environment: {},
      wallMs: () => 0,
      interrupted: new AbortController().signal,
      forced: new AbortController().signal,
      onReopen: () => {},
      onLeave: () => {},
    },
    setExitCode: () => {},
    api: () => {
      throw new Error('a page asks no API');
    },
    apis: () => [],
  });
  const helpOf = (command: Command): string => {
    lines.length = 0;
    command.outputHelp();
    return lines.join('').trimEnd();
  };
  const sections: string[] = [];
  const index: string[] = [];
  const walk = (command: Command, words: string): void => {
    const below = command.commands.filter((one) => one.name() !== 'help');
    // Those that have options do something by themselves.
    if (below.length === 0 || command.options.length > 0) {
      sections.push(`## ${words}\n\n\`\`\`\n${helpOf(command)}\n\`\`\`\n`);
      if (words !== 'porthole')
        index.push(`| [\`${words}\`](#${words.replaceAll(' ', '-')}) | ${command.description()} |`);
    }
    for (const one of below) walk(one, `${words} ${one.name()}`);
  };
  walk(program, 'porthole');
  return `${intro}\n| command | does |\n| --- | --- |\n${index.join('\n')}\n\n${sections.join('\n')}`;
};
