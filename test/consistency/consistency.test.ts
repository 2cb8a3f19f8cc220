/**
 * The promise on consistency: readers that overlap a writer outside see one whole value, never one older than the last
 * write that was completed before their open.
 */
import assert from 'node:assert/strict';
import { rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { patternLength, patternValue } from '../../images/tiny/probe/pattern.ts';
import { modes, type Report } from '../../images/tiny/probe/readers.ts';
import type { Counters } from '../../src/host/index.ts';
import { Outside, secretOwner, values } from './outside.ts';
import { guestPlace, mountPlace, type Place } from './readers.ts';

const DIRECT_WRITES = 850;
const FILE_WRITES = 200;
const LONGEST_PAUSE_MS = 3000;

/** From nothing to 3 s: most so short that readers meet several writes, some so long that everything cached expires. */
function pauseMs(number: number): number {
  if (number % 100 === 0) return 1000 + ((number / 100) % 3) * 1000;
  if (number % 10 === 0) return 60 + (number % 7) * 30;
  return number % 3 === 0 ? 0 : 1 + (number % 29);
}

const inWords = ({ mode, reads, distinct, lowest, highest }: Report): string =>
  `${mode}: ${reads} whole copies, ${distinct} values, of numbers ${lowest} to ${highest}`;

interface Seen {
  readonly way: string;
  readonly value: string;
  readonly report: Report;
}

describe('a value that is changed outside', () => {
  const places: Place[] = [];
  const seen: Seen[] = [];
  let outside: Outside;
  let counters: Counters | undefined;
  let longestPauseMs = 0;

  before(async () => {
    outside = await Outside.start();
    places.push(await guestPlace(outside.socket), await mountPlace(outside.mountPoint));
    const readers = places.flatMap((place) =>
      Object.values(values).flatMap((value) =>
        modes.map((mode) => ({
          way: place.name,
          value,
          end: place.read(mode, value, value === values.secret ? secretOwner : 1001),
        })),
      ),
    );
    const completed = (number: number): void => {
      for (const place of places) place.tell(number);
    };
    completed(outside.number);
    for (let i = 0; i < DIRECT_WRITES + FILE_WRITES; i++) {
      // Every change by a file is in its middle, so that both kinds meet readers that have been at it for a while.
      const byFile = i >= DIRECT_WRITES / 2 && i < DIRECT_WRITES / 2 + FILE_WRITES;
      completed(await (byFile ? outside.writeFile() : outside.write()));
      const ms = pauseMs(i);
      longestPauseMs = Math.max(longestPauseMs, ms);
      if (ms > 0) await pause(ms);
    }
    for (const { way, value, end } of readers) seen.push({ way, value, report: await end() });
    counters = await outside.server.statistics(60_000);
  });

  after(async () => {
    for (const place of places) await place[Symbol.asyncDispose]();
    await outside[Symbol.asyncDispose]();
  });

  for (const [way, atLeast] of [
    ['a guest over virtiofs', 100],
    ['this machine over /dev/fuse', 500],
  ] as const)
    for (const value of Object.values(values))
      test(`${value} reaches readers in ${way} whole and never older than what was told before`, (t) => {
        const reports = seen.filter((each) => each.way === way && each.value === value).map(({ report }) => report);
        assert.deepEqual(
          reports.map(({ mode }) => mode),
          modes,
        );
        for (const report of reports) {
          t.diagnostic(inWords(report));
          const { mode, details } = report;
          assert.equal(report.violations, 0, `${mode}: ${JSON.stringify(details)}`);
          assert.equal(report.movedWhileHeld, 0, `${mode}: an open file changed`);
          const least = mode === 'held' ? 20 : atLeast;
          assert.ok(
            report.distinct >= least && report.floors >= least,
            `${mode} saw too few: ${JSON.stringify(report)}`,
          );
          assert.ok(report.highest > outside.number - 100, `${mode} stopped at ${report.highest} of ${outside.number}`);
        }
      });

  test('write was completed at least a thousand times, with pauses up to 3 s', () => {
    assert.ok(outside.number > 1000);
    assert.equal(longestPauseMs, LONGEST_PAUSE_MS);
  });

  test('open was answered from the cached path for what all may read, and from the direct path for the secret', (t) => {
    const cached = counters!['fuse.opensCached']!;
    const direct = counters!['fuse.opensDirect']!;
    t.diagnostic(`${cached} opens cached, ${direct} direct`);
    const opens = (value: string): number =>
      seen
        .filter((each) => each.value === value && each.report.mode !== 'held')
        .reduce((sum, { report }) => sum + report.reads, 0);
    assert.ok(cached >= opens(values.shared), `${cached} cached for ${opens(values.shared)} opens`);
    assert.ok(direct >= opens(values.secret), `${direct} direct for ${opens(values.secret)} opens`);
    assert.equal(counters!['fuse.bugs'], 0);
  });
});

describe('a file that a program replaces by rename(2)', () => {
  const REPLACEMENTS = 400;
  const places: Place[] = [];
  const seen: Seen[] = [];
  let outside: Outside;
  const value = 'guest/value';

  before(async () => {
    outside = await Outside.start();
    const file = path.join(outside.mountPoint, value);
    // Two writes, so that a reader that sees the new file early sees a cut value.
    const replace = async (number: number): Promise<void> => {
      const bytes = patternValue(number, patternLength(number));
      await writeFile(`${file}.new`, bytes.subarray(0, 50_000));
      await writeFile(`${file}.new`, bytes.subarray(50_000), { flag: 'a' });
      await rename(`${file}.new`, file);
    };
    await replace(1);
    places.push(await guestPlace(outside.socket), await mountPlace(outside.mountPoint));
    const readers = places.flatMap((place) =>
      modes.map((mode) => ({ way: place.name, value, end: place.read(mode, value, 1001) })),
    );
    for (let number = 2; number <= REPLACEMENTS; number++) {
      await replace(number);
      for (const place of places) place.tell(number);
      const ms = number % 40 === 0 ? 150 : number % 8;
      if (ms > 0) await pause(ms);
    }
    for (const { way, end } of readers) seen.push({ way, value, report: await end() });
  });

  after(async () => {
    for (const place of places) await place[Symbol.asyncDispose]();
    await outside[Symbol.asyncDispose]();
  });

  for (const way of ['a guest over virtiofs', 'this machine over /dev/fuse'])
    test(`rename shows readers in ${way} the old file or the new one, and open never fails`, (t) => {
      const reports = seen.filter((each) => each.way === way).map(({ report }) => report);
      assert.equal(reports.length, modes.length);
      for (const report of reports) {
        t.diagnostic(inWords(report));
        assert.equal(report.violations, 0, `${report.mode}: ${JSON.stringify(report.details)}`);
        assert.equal(report.movedWhileHeld, 0, `${report.mode}: an open file changed`);
        assert.ok(report.distinct >= 3, `${report.mode} saw too few: ${JSON.stringify(report)}`);
      }
    });
});
