/** Prints how long commits take, beside each other. */
import type { TestContext } from 'node:test';

const describe = (what: string, timesMs: readonly number[], elapsedMs: number): string => {
  const sorted = timesMs.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor(sorted.length * share)]!.toFixed(3);
  return `${what}: p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, ${Math.round((timesMs.length * 1000) / elapsedMs)}/s`;
};

/** Each lane makes its share of the commits, one after the other. */
export const timed = async (
  t: TestContext,
  what: string,
  { commits, lanes }: { readonly commits: number; readonly lanes: number },
  commit: (lane: number, n: number) => unknown,
): Promise<void> => {
  const timesMs: number[] = [];
  const startMs = performance.now();
  const run = async (lane: number): Promise<void> => {
    for (let n = 0; n < commits / lanes; n++) {
      const beforeMs = performance.now();
      await commit(lane, n);
      timesMs.push(performance.now() - beforeMs);
    }
  };
  await Promise.all(Array.from({ length: lanes }, (_, lane) => run(lane)));
  t.diagnostic(describe(what, timesMs, performance.now() - startMs));
};
