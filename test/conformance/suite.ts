/** The conformance suite of `FileSystem` behaviour: one table of cases, run unchanged over every way in. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { WorldSpec } from '../tree/world.ts';
import type { Driver, WayName } from './driver.ts';
import { tableLines } from './table.ts';
import { topics as allTopics } from './topics.ts';

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

interface Run {
  /** By what the guest comes to it, where a way has several. */
  readonly by?: string;
  /** Names of topics, where another run of the same way has them all; PORTHOLE_CONFORMANCE=all runs all here too. */
  readonly topics?: readonly string[];
}

/** Runs every case over one way in. `open` is called once; a table of all ways is printed at the end. */
export function conformance(way: WayName, open: () => Promise<Driver>, { by, topics: some }: Run = {}): void {
  const isSome = some !== undefined && process.env['PORTHOLE_CONFORMANCE'] !== 'all';
  const topics = isSome ? allTopics.filter(({ name }) => some.includes(name)) : allTopics;
  assert.ok(!isSome || topics.length === some.length, 'a topic that is not there');
  describe(`conformance over ${way}${by === undefined ? '' : `, ${by}`}`, () => {
    const ran = new Map<Case, boolean>();
    let driver: Driver | undefined;
    before(async () => {
      driver = await open();
    });
    after(async () => {
      await driver?.[Symbol.asyncDispose]();
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
    test(`conformance over ${way} says what it can and can't when every case has run`, (context) => {
      const cases = topics.flatMap((topic) => topic.cases);
      const failed = cases.filter((one) => ran.get(one) !== true);
      for (const line of tableLines(topics, way, failed)) context.diagnostic(line);
      assert.equal(ran.size, cases.length, `${cases.length - ran.size} cases of ${cases.length} did not run`);
    });
  });
}
