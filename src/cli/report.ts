/** What went wrong, for the person who ran the command: what was tried, with which value, and what to do. */
import { CommanderError } from 'commander';
import { ClientError } from '../cluster/client/index.ts';
import { formatProblems, SpecError } from '../host/index.ts';
import { Interrupted } from './prompt.ts';
import { paintFor, type Terminal } from './terminal.ts';

export const report = (error: unknown, terminal: Terminal): void => {
  const paint = paintFor(terminal);
  // Commander has said its own, and who pressed Ctrl-C knows.
  if (error instanceof CommanderError || error instanceof Interrupted) return;
  if (error instanceof SpecError) terminal.err(`${formatProblems(error.problems, paint)}\n`);
  else terminal.err(`${paint.error('porthole')}: ${wordsOf(error)}\n`);
};

const wordsOf = (error: unknown): string => {
  if (error instanceof ClientError) return problemWords(error);
  if (!(error instanceof Error)) return String(error);
  return fileWords(error as NodeJS.ErrnoException) ?? error.message;
};

const problemWords = ({ message, problem, status }: ClientError): string => {
  if (problem === undefined) return `what answered (${status}) is not Porthole's API; check --api and PORTHOLE_API`;
  // "json.name", "param.name", "query.limit": where in the request is nothing that the command line shows.
  const fields = (problem.fields ?? []).map(({ path, message: text }) => `${path.replace(/^[a-z]+\./, '')}: ${text}`);
  if (fields.length > 0) return `the API refuses this request: ${fields.join('; ')}`;
  const request = problem.status >= 500 ? ` (${problem.code}, request ${problem.requestId})` : '';
  const advice = adviceFor(problem.code);
  return `${message}${advice === undefined ? '' : `; ${advice}`}${request}`;
};

const adviceFor = (code: string): string | undefined => {
  switch (code) {
    case 'NO_KEY':
    case 'BAD_KEY':
      return 'keys are read from the file that PORTHOLE_KEY_FILE names, or from the configuration';
    case 'NOT_EMPTY':
      return 'with --recursive it goes with all that is in it';
    case 'COMPACTED':
      return 'read again, then follow from there';
    default:
      return undefined;
  }
};

/** Of Node's own file functions. */
const fileWords = ({ code, path, syscall }: NodeJS.ErrnoException): string | undefined => {
  if (path === undefined || syscall === undefined) return undefined;
  switch (code) {
    case 'ENOENT':
      return `there is no file "${path}"`;
    case 'EACCES':
      return `uid ${process.getuid?.()} may not ${syscall} "${path}"`;
    case 'EISDIR':
      return `"${path}" is a directory; give a file`;
    case 'EEXIST':
      return `"${path}" exists already; it is not overwritten`;
    default:
      return undefined;
  }
};
