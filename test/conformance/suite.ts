/** The conformance suite of `FileSystem` behaviour: one table of cases, run unchanged over every way in. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { WorldSpec } from '../tree/world.ts';
import type { Driver, WayName } from './driver.ts';
import { wayNames } from './driver.ts';
import { topics } from './topics.ts';

export interface Case {
  /** Begins with the call that it is about. */
  readonly name: string;
  readonly spec: WorldSpec;
  readonly run: (scene: Driver) => Promise<void>;
  /** Ways in that can't do it, why, and what is true there instead. */
  readonly cannot?: Partial<Readonly<Record<WayName, Cannot>>>;
}

export interface Cannot {
  readonly because: string;
  readonly instead: (scene: Driver) => Promise<void>;
}

export interface Topic {
  readonly name: string;
  readonly cases: readonly Case[];
}

/** Runs every case over one way in. `open` is called once; the table of all ways is printed at the end. */
export function conformance(way: WayName, open: () => Promise<Driver>): void {
  describe(`conformance over ${way}`, () => {
    const ran = new Map<Case, boolean>();
    let driver: Driver | undefined;
    before(async () => {
      driver = await open();
    });
    after(async () => {
      await driver?.[Symbol.asyncDispose]();
      console.log(table(way, ran));
      const total = topics.reduce((sum, topic) => sum + topic.cases.length, 0);
      assert.equal(ran.size, total, `${total - ran.size} cases of ${total} did not run`);
    });
    for (const topic of topics) {
      describe(topic.name, () => {
        for (const one of topic.cases) {
          test(one.name, async () => {
            ran.set(one, false);
            await driver!.begin(one.spec);
            try {
              await (one.cannot?.[way]?.instead ?? one.run)(driver!);
            } catch (error) {
              await driver!.end().catch(() => {});
              throw error;
            }
            await driver!.end();
            ran.set(one, true);
          });
        }
      });
    }
  });
}

/** What each way can and can't, with the result of the way that has just run. */
function table(way: WayName, ran: ReadonlyMap<Case, boolean>): string {
  const notes: string[] = [];
  const noteOf = (text: string): number => {
    const known = notes.indexOf(text);
    return known >= 0 ? known + 1 : notes.push(text);
  };
  const cell = (one: Case, column: WayName): string => {
    const cannot = one.cannot?.[column];
    const can = cannot === undefined ? 'yes' : `no [${noteOf(`${column}: ${cannot.because}`)}]`;
    if (column !== way) return can;
    const passed = ran.get(one);
    return `${can}, ${passed === undefined ? 'did not run' : passed ? 'seen' : 'FAILED'}`;
  };
  const rows = topics.flatMap((topic) => [
    [`${topic.name}:`],
    ...topic.cases.map((one) => [`  ${one.name}`, ...wayNames.map((column) => cell(one, column))]),
  ]);
  const header = ['', ...wayNames];
  const widths = header.map((_, index) => Math.max(...[header, ...rows].map((row) => row[index]?.length ?? 0)));
  const line = (row: readonly string[]) =>
    row
      .map((text, index) => text.padEnd(widths[index]!))
      .join('  ')
      .trimEnd();
  return [line(header), ...rows.map(line), '', ...notes.map((note, index) => `[${index + 1}] ${note}`)].join('\n');
}
