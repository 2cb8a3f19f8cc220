/** What the API finds wrong in a text, shown as `porthole policy check` shows it: with the line, and a caret. */

import { readFileSync } from 'node:fs';
import { ClientError } from '../cluster/client/index.ts';
import type { Problem } from '../cluster/index.ts';
import {
  exportYaml,
  formatProblem,
  type Paint,
  parsePolicy,
  parseSpec,
  SpecError,
  type SpecProblem,
} from '../host/index.ts';
import { readInput } from './prompt.ts';
import type { Terminal } from './terminal.ts';
import { UsageError } from './usage-error.ts';

type Told = NonNullable<Problem['problems']>[number] | Warning;

interface Warning {
  readonly line: number;
  readonly column: number;
  readonly path: string;
  readonly what: string;
  readonly fix: string;
}

/** A text of which kind. */
export type Kind = 'spec' | 'policy';

/** The text of a spec file, and what of it goes to the API. */
export interface SpecText {
  /** What its problems are told under. */
  readonly name: string;
  readonly text: string;
  /** As `text`, but with values in the place of the files that they come from. */
  readonly sent: string;
}

const specBytes = 8 * 1024 * 1024;

/**
 * A spec file of the command line, or standard input for "-". Files that values come from are read here, on the machine
 * and with the rights of who asks: the API takes values only.
 */
export const readSpec = async (terminal: Terminal, file: string): Promise<SpecText> => {
  const { name, text } = await readYaml(terminal, file);
  if (file === '-') return { name, text, sent: text };
  const { spec, problems, references } = parseSpec(text, file);
  if (references.length === 0) return { name, text, sent: text };
  if (spec === undefined) throw new SpecError(problems);
  return { name, text, sent: exportYaml(spec) };
};

/** A YAML file of the command line, or standard input for "-". */
export const readYaml = async (terminal: Terminal, file: string): Promise<Pick<SpecText, 'name' | 'text'>> => {
  const bytes = file === '-' ? await readInput(terminal, specBytes) : readFileSync(file);
  const name = file === '-' ? 'standard input' : file;
  if (bytes === undefined || bytes.length > specBytes)
    throw new UsageError(`${name} has more than ${specBytes} bytes, which are allowed`);
  try {
    return { name, text: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes) };
  } catch {
    throw new UsageError(`${name} is not UTF-8 text`);
  }
};

/** Runs a request that carries such a text; a refusal of the text becomes a `SpecError`. */
export const withSpecShown = async <T>(
  spec: Pick<SpecText, 'name' | 'text'> | undefined,
  work: () => Promise<T>,
  kind: Kind = 'spec',
): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof ClientError) || spec === undefined) throw error;
    const problems = error.problem?.problems;
    if (problems === undefined || problems.length === 0) throw error;
    throw new SpecError(asSpecProblems(problems, spec, kind));
  }
};

export const warningWords = (
  warnings: readonly Warning[],
  spec: Pick<SpecText, 'name' | 'text'>,
  kind: Kind,
  paint: Paint,
): string =>
  asSpecProblems(warnings, spec, kind)
    .map((problem) => `${formatProblem(problem, paint)}\n`)
    .join('');

const asSpecProblems = (
  told: readonly Told[],
  { name, text }: Pick<SpecText, 'name' | 'text'>,
  kind: Kind,
): SpecProblem[] => {
  // The same text, read here, says which part of a line may be shown: values of `metadata` may be secrets.
  const { problems } = kind === 'spec' ? parseSpec(text, name, 'refused') : parsePolicy(text, name);
  return told.map((problem) => {
    const same = problems.find(({ line, column, path }) => {
      return line === problem.line && column === problem.column && path === problem.path;
    });
    const { line, column, path, what, fix } = problem;
    const severity = 'severity' in problem ? problem.severity : 'warning';
    return { severity, file: name, line, column, path, what, fix, shown: same?.shown ?? '', caret: same?.caret ?? 1 };
  });
};
