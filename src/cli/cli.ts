/** Runs one command line. `runCli` is the whole of the `porthole` command, and touches nothing global. */
import type { Command } from 'commander';
import { nearest } from '../host/index.ts';
import { Api } from './api.ts';
import { commandLine } from './command.ts';
import { complete } from './complete.ts';
import { exitCodes, toExitCode } from './exit-code.ts';
import { buildProgram } from './program.ts';
import { Interrupted } from './prompt.ts';
import { report } from './report.ts';
import type { Terminal } from './terminal.ts';
import { UsageError } from './usage-error.ts';
import { findApi } from './where.ts';

/** What completion scripts run: the words before the cursor, then the one at it. */
export const completeCommand = '__complete';

/** Runs one command line (without program names) and answers the exit code. Never throws. */
export const runCli = async (args: readonly string[], terminal: Terminal): Promise<number> => {
  if (args[0] === completeCommand) return complete(args.slice(1), terminal);
  let exitCode: number = exitCodes.ok;
  const program = buildProgram({
    terminal,
    setExitCode: (code) => {
      exitCode = code;
    },
    api: () => {
      const [api, other] = apis();
      if (other !== undefined) throw new UsageError('this takes one region: give --region one name');
      return api!;
    },
    apis: () => apis(),
  });
  const apis = (): readonly Api[] => {
    const { environment, interrupted } = terminal;
    const { api, region } = program.opts<{ api?: string; region?: readonly string[] }>();
    const where = findApi(api ?? (environment['PORTHOLE_API'] || undefined), environment);
    return (region ?? [undefined]).map((name) => new Api({ ...where, region: name }, interrupted));
  };
  try {
    // Commander's own help knows one word only.
    if (args[0] === 'help' && args.length > 2) commandNamed(program, args.slice(1)).outputHelp();
    else await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (thrown) {
    const error = terminal.interrupted.aborted && isAbort(thrown) ? new Interrupted() : thrown;
    report(error, terminal);
    return toExitCode(error);
  }
};

const commandNamed = (program: Command, words: readonly string[]): Command => {
  let at = program;
  for (const word of words) {
    const next = at.commands.find((one) => one.name() === word);
    if (next !== undefined) at = next;
    else {
      const near = nearest(
        word,
        at.commands.map((one) => one.name()),
      );
      const hint = near === undefined ? `"${commandLine(at)} --help" lists what there is` : `did you mean "${near}"?`;
      throw new UsageError(`there is no command "${commandLine(at)} ${word}"; ${hint}`);
    }
  }
  return at;
};

const isAbort = (error: unknown): boolean => error instanceof Error && error.name === 'AbortError';
