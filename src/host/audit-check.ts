/** Checks a host's audit log: that every line follows from the one before, and that none is missing. */
import { createReadStream } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { AuditCheck, AuditProblem } from '../records/index.ts';
import { chainOf, firstLink, type Link } from './audit-chain.ts';
import { type Line, parseLine } from './audit-scan.ts';

interface SegmentFile {
  readonly file: string;
  /** Of its first line. */
  readonly first: number;
}

export interface CheckOptions {
  /** Of whole segments, after which the check may stop. */
  readonly mostBytes: number;
  readonly signal?: AbortSignal | undefined;
}

/** That are told of one part. */
const mostProblems = 16;

/**
 * From the record after `after`, whose chain must be that; undefined: from the oldest, and what that follows from is not known.
 * `newest` is the last that there was when it was asked: later ones are for the next check.
 */
export const checkChain = async (
  segments: readonly SegmentFile[],
  after: Link | undefined,
  newest: Link,
  { mostBytes, signal }: CheckOptions,
): Promise<AuditCheck> => {
  const begin = segments.findLastIndex(({ first }) => first <= (after?.sequence ?? 0) + 1);
  const rest = segments.slice(Math.max(0, begin));
  const lines = new Lines(after, newest);
  let bytes = 0;
  for (const { file } of rest) {
    if (lines.isDone) break;
    // A part ends between two segments, so that the next begins with a whole one.
    if (bytes >= mostBytes && lines.records > 0) return lines.result(false);
    let number = 0;
    for await (const text of textsOf(file, signal)) {
      lines.take(path.basename(file), ++number, text);
      bytes += text.length;
    }
  }
  lines.end();
  return lines.result(true);
};

class Lines {
  readonly #after: Link | undefined;
  readonly #newest: Link;
  readonly #problems: AuditProblem[] = [];
  /** What the next line must follow from. */
  #before: Link | undefined;
  #file = '';
  records = 0;
  /** All that was there has been read. */
  isDone = false;

  constructor(after: Link | undefined, newest: Link) {
    this.#after = after;
    this.#before = after;
    this.#newest = newest;
  }

  take(file: string, number: number, text: string): void {
    this.#file = file;
    if (text === '' || this.isDone) return;
    const tell = (what: string): void => this.#tell({ file, line: number, what });
    const line = parseLine(text);
    if (line === undefined) return tell('this is not the whole line of a record');
    if (line.sequence > this.#newest.sequence) this.isDone = true;
    else if (this.records === 0 && this.#after !== undefined && line.sequence <= this.#after.sequence) {
      if (line.sequence === this.#after.sequence && line.chain !== this.#after.chain)
        tell(`record ${line.sequence} is another than it was`);
    } else this.#follow(line, tell);
  }

  #follow(line: Line, tell: (what: string) => void): void {
    const before = this.#before;
    const { sequence, chain } = line;
    this.#before = { sequence, chain };
    this.records++;
    if (before === undefined) return;
    const expected = before.sequence + 1;
    if (sequence > expected) tell(missing(expected, sequence - 1));
    else if (sequence < expected) tell(`record ${sequence} comes after record ${before.sequence}`);
    else if (chainOf(before.chain, line, line.json) !== chain)
      tell(`record ${sequence}, or the one before, was changed`);
  }

  end(): void {
    const { sequence, chain } = this.#before ?? firstLink;
    const newest = this.#newest;
    const told = { file: this.#file, line: 0 };
    if (sequence < newest.sequence)
      this.#tell({ ...told, what: `${missing(sequence + 1, newest.sequence)} at the end` });
    else if (sequence > newest.sequence)
      this.#tell({ ...told, what: `${missing(newest.sequence + 1, sequence)} at the end` });
    else if (chain !== newest.chain) this.#tell({ ...told, what: `record ${sequence} is another than was written` });
    this.#before = newest;
  }

  result(isEnd: boolean): AuditCheck {
    return { records: this.records, problems: this.#problems, last: this.#before ?? firstLink, isEnd };
  }

  #tell(problem: AuditProblem): void {
    if (this.#problems.length < mostProblems) this.#problems.push(problem);
  }
}

const missing = (first: number, last: number): string =>
  first === last ? `record ${first} is missing` : `records ${first} to ${last} are missing`;

/** Nothing where the file is gone. */
async function* textsOf(file: string, signal: AbortSignal | undefined): AsyncGenerator<string> {
  const stream = createReadStream(file, { encoding: 'utf8', ...(signal && { signal }) });
  try {
    yield* createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  } finally {
    stream.destroy();
  }
}
