/** Reporter for `node:test` that hands what a runner needs of each event to it, one JSON object a line. */
import { inspect } from 'node:util';

/** One line. `running`: a test began. `done`: it ended. `note`: a line for people (`t.diagnostic`). */
export type TestEvent =
  | { readonly what: 'running'; readonly name: string }
  | {
      readonly what: 'done';
      readonly name: string;
      readonly verdict: 'passed' | 'failed' | 'skipped' | 'todo';
      /** Why it failed, or was skipped; empty when no reason was given. */
      readonly reason: string;
      readonly durationMs: number;
    }
  | { readonly what: 'note'; readonly text: string };

/** What node:test reports of itself at the end of a file. */
const summary = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/;

interface Source {
  readonly type: string;
  readonly data: {
    readonly name?: string;
    readonly message?: string;
    readonly skip?: string | boolean;
    readonly todo?: string | boolean;
    readonly details?: {
      readonly passed?: boolean;
      readonly duration_ms?: number;
      readonly type?: string;
      readonly error?: { readonly cause?: unknown; readonly failureType?: string };
    };
  };
}

const reasonOf = (mark: string | boolean): string => (typeof mark === 'string' ? mark : '');

function translate({ type, data }: Source): TestEvent | undefined {
  const name = data.name ?? '';
  switch (type) {
    case 'test:dequeue':
      return { what: 'running', name };
    case 'test:diagnostic':
      return summary.test(data.message ?? '') ? undefined : { what: 'note', text: data.message ?? '' };
    case 'test:complete': {
      const { passed = false, duration_ms: durationMs = 0, type: kind, error } = data.details ?? {};
      if (data.todo !== undefined && data.todo !== false)
        return { what: 'done', name, verdict: 'todo', reason: reasonOf(data.todo), durationMs };
      if (data.skip !== undefined && data.skip !== false)
        return { what: 'done', name, verdict: 'skipped', reason: reasonOf(data.skip), durationMs };
      if (kind === 'suite' && (passed || error?.failureType === 'subtestsFailed')) return undefined;
      if (passed) return { what: 'done', name, verdict: 'passed', reason: '', durationMs };
      const cause = error?.cause ?? error;
      return { what: 'done', name, verdict: 'failed', reason: inspect(cause, { depth: 5 }), durationMs };
    }
    default:
      return undefined;
  }
}

export default async function* report(source: AsyncIterable<Source>): AsyncGenerator<string> {
  for await (const event of source) {
    const line = translate(event);
    if (line !== undefined) yield `${JSON.stringify(line)}\n`;
  }
}
