/** What each way in can and can't, from the cases themselves: for the end of a run and for docs/conformance.md. */
import { type WayName, wayNames } from './driver.ts';
import type { Case, Topic } from './suite.ts';

/** One row a case: topic, name, and for each way `yes` or why not. */
export const rowsOf = (topics: readonly Topic[]): string[][] =>
  topics.flatMap((topic) =>
    topic.cases.map((one) => [topic.name, one.name, ...wayNames.map((way) => canOf(one, way))]),
  );

const canOf = (one: Case, way: WayName): string => {
  const cannot = one.cannot?.[way];
  return cannot === undefined ? 'yes' : `no: ${cannot.because}`;
};

const MARK = { yes: 'can', no: 'can’t' };

/** Lines for a terminal: the cases that some way can't do, with their reasons below, and how many all can. */
export function tableLines(topics: readonly Topic[], way: WayName, failed: readonly Case[]): string[] {
  const cases = topics.flatMap((topic) => topic.cases);
  const reasons: string[] = [];
  const cell = (one: Case, column: WayName): string => {
    const because = one.cannot?.[column]?.because;
    if (because === undefined) return MARK.yes;
    if (!reasons.includes(because)) reasons.push(because);
    return `${MARK.no} [${reasons.indexOf(because) + 1}]`;
  };
  const some = cases.filter((one) => wayNames.some((column) => one.cannot?.[column] !== undefined));
  const rows = [['', ...wayNames], ...some.map((one) => [one.name, ...wayNames.map((column) => cell(one, column))])];
  const widths = rows[0]!.map((_, index) => Math.max(...rows.map((row) => row[index]!.length)));
  const cannot = cases.filter((one) => one.cannot?.[way] !== undefined).length;
  const can = cases.length - cannot;
  return [
    ...rows.map((row) =>
      row
        .map((text, index) => text.padEnd(widths[index]!))
        .join('  ')
        .trimEnd(),
    ),
    ...reasons.map((reason, index) => `[${index + 1}] ${reason}`),
    `the other ${cases.length - some.length} of ${cases.length} cases: every way can`,
    `${way}: does ${can} cases, and in ${cannot} what the reason says instead; ${failed.length} failed`,
  ];
}
