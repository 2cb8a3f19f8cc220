/** What is wrong with a spec file, said so that a person can put it right. */

/** One mistake, with its place. */
export interface SpecProblem {
  /** A warning does not keep the file from being loaded. */
  readonly severity: 'error' | 'warning';
  readonly file: string;
  /** 1-based; 0 where it is about the file as a whole. */
  readonly line: number;
  /** 1-based, in characters of the line. */
  readonly column: number;
  /** Where in the document: `policy[2].mode`; '' for the file as a whole. */
  readonly path: string;
  readonly what: string;
  /** What to write instead; '' when `what` says it. */
  readonly fix: string;
  /** The line as it may be shown: values of `metadata` are cut off, they may be secrets. '' when there is none. */
  readonly shown: string;
  /** Where in `shown` the caret goes, 1-based. */
  readonly caret: number;
}

/** Everything wrong with a spec file at once. */
export class SpecError extends Error {
  readonly code = 'BAD_SPEC';
  readonly problems: readonly SpecProblem[];

  constructor(problems: readonly SpecProblem[]) {
    super(formatProblems(problems));
    this.name = 'SpecError';
    this.problems = problems;
  }
}

/** ANSI codes, or nothing where colours are off. */
export interface Paint {
  error(text: string): string;
  warning(text: string): string;
  strong(text: string): string;
  dim(text: string): string;
}

const noPaint: Paint = {
  error: (text) => text,
  warning: (text) => text,
  strong: (text) => text,
  dim: (text) => text,
};

/** Like a compiler: `file:line:column: error: path: what`, the line with a caret, and what would be right. */
export const formatProblem = (problem: SpecProblem, paint: Paint = noPaint): string => {
  const { severity, file, line, column, path, what, fix, shown, caret } = problem;
  const label = severity === 'error' ? paint.error('error') : paint.warning('warning');
  const place = line > 0 ? `${file}:${line}:${column}` : file;
  const lines = [`${paint.strong(place)}: ${label}: ${path === '' ? '' : `${path}: `}${what}`];
  const margin = ' '.repeat(String(line).length + 2);
  if (shown !== '') {
    const window = cutWindow(shown, caret);
    lines.push(
      paint.dim(`  ${line} | `) + window.text,
      paint.dim(`${margin} | `) + ' '.repeat(window.caret) + paint.error('^'),
    );
  }
  if (fix !== '') lines.push(paint.dim(`${margin} = `) + fix);
  return lines.join('\n');
};

/** The first 20 problems, and how many there are. */
export const formatProblems = (problems: readonly SpecProblem[], paint: Paint = noPaint): string => {
  const errors = problems.filter((problem) => problem.severity === 'error').length;
  const shown = problems.slice(0, problemsShown).map((problem) => formatProblem(problem, paint));
  if (problems.length > problemsShown) shown.push(`and ${problems.length - problemsShown} more`);
  if (errors > 1) shown.push(`${errors} errors`);
  return shown.join('\n');
};

const problemsShown = 20;

/** At most 100 characters of a line around the column, tabs as one space. */
const cutWindow = (line: string, column: number): { readonly text: string; readonly caret: number } => {
  const text = line.replaceAll(/\p{Cc}/gu, ' ');
  const at = Math.min(column - 1, text.length);
  const start = text.length <= 100 ? 0 : Math.max(0, Math.min(at - 60, text.length - 100));
  const head = start > 0 ? '…' : '';
  return { text: head + text.slice(start, start + 100).trimEnd(), caret: head.length + at - start };
};
