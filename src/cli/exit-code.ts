import { CommanderError } from 'commander';
import { ClientError } from '../cluster/client/index.ts';
import { SpecError } from '../host/index.ts';
import { Interrupted } from './prompt.ts';
import { Unreachable } from './unreachable.ts';
import { UsageError } from './usage-error.ts';

export const exitCodes = {
  ok: 0,
  failed: 1,
  usage: 2,
  badSpec: 3,
  unreachable: 4,
  /** As of a program that SIGINT ended. */
  interrupted: 130,
} as const;

/** Shown by `porthole --help`. */
export const exitCodeHelp = `
Exit codes:
  0    done
  1    refused or failed
  2    the command line is wrong
  3    the spec file is wrong
  4    the API cannot be reached
  130  interrupted`;

/** Total: every error has an exit code. */
export const toExitCode = (error: unknown): number => {
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
  if (error instanceof UsageError) return exitCodes.usage;
  if (error instanceof SpecError) return exitCodes.badSpec;
  if (error instanceof ClientError && error.code === 'BAD_SPEC') return exitCodes.badSpec;
  if (error instanceof Unreachable) return exitCodes.unreachable;
  if (error instanceof Interrupted) return exitCodes.interrupted;
  return exitCodes.failed;
};
