import { CommanderError } from 'commander';
import { SpecError } from '../host/index.ts';

export const exitCodes = {
  ok: 0,
  failed: 1,
  usage: 2,
  badSpec: 3,
} as const;

/** Shown by `porthole --help`. */
export const exitCodeHelp = `
Exit codes:
  0  done
  1  refused or failed
  2  the command line is wrong
  3  the spec file is wrong`;

/** The command line asks for what makes no sense. */
export class UsageError extends Error {
  readonly code = 'USAGE';

  constructor(message: string) {
    super(message);
    this.name = 'UsageError';
  }
}

/** Total: every error has an exit code. */
export const toExitCode = (error: unknown): number => {
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
  if (error instanceof UsageError) return exitCodes.usage;
  if (error instanceof SpecError) return exitCodes.badSpec;
  return exitCodes.failed;
};
