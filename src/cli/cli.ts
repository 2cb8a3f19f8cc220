/** Runs one command line. `runCli` is the whole of the `porthole` command, and touches nothing global. */
import { Api } from './api.ts';
import { complete } from './complete.ts';
import { exitCodes, toExitCode } from './exit-code.ts';
import { buildProgram } from './program.ts';
import { Interrupted } from './prompt.ts';
import { report } from './report.ts';
import type { Terminal } from './terminal.ts';
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
      const { environment, interrupted } = terminal;
      const { api } = program.opts<{ api?: string }>();
      return new Api(findApi(api ?? (environment['PORTHOLE_API'] || undefined), environment), interrupted);
    },
  });
  try {
    await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (thrown) {
    const error = terminal.interrupted.aborted && isAbort(thrown) ? new Interrupted() : thrown;
    report(error, terminal);
    return toExitCode(error);
  }
};

const isAbort = (error: unknown): boolean => error instanceof Error && error.name === 'AbortError';
