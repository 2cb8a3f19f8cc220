/** The C probes: that they pass what is right and find what is wrong. They run on this machine, as in the guest. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { tinyImage } from '../../images/tiny/image.ts';
import { patternLength, patternValue } from '../../images/tiny/probe/pattern.ts';
import { modes, type Report } from '../../images/tiny/probe/readers.ts';

let probes: string;
let dir: string;
let value: string;
let floor: string;

before(async () => {
  ({ probes } = await tinyImage());
  dir = mkdtempSync(join(tmpdir(), 'porthole-probes-'));
  value = join(dir, 'value');
  floor = join(dir, 'floor');
});
after(() => rmSync(dir, { recursive: true }));

function setFloor(number: number): void {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(number));
  writeFileSync(floor, bytes, { flag: 'r+' });
}

function readOnce(mode: string): { report: Report; status: number | null } {
  const { stdout, status } = spawnSync(join(probes, 'readers'), [mode, value, floor, '0.01', '50'], {
    encoding: 'utf8',
  });
  return { report: JSON.parse(stdout), status };
}

for (const mode of modes) {
  test(`readers ${mode} accepts whole values and finds every kind of broken one`, () => {
    writeFileSync(floor, Buffer.alloc(8));
    const kinds = (bytes: Uint8Array): string[] => {
      writeFileSync(value, bytes);
      const { report, status } = readOnce(mode);
      assert.equal(status, report.violations > 0 ? 1 : 0);
      return [...new Set(report.details.map(({ kind }) => kind))];
    };
    const [five, six] = [patternValue(5, 65_537), patternValue(6, 65_537)];
    const mix = (at: number): Buffer => Buffer.concat([five.subarray(0, at), six.subarray(at)]);
    for (let number = 1; number <= 12; number++)
      assert.deepEqual(kinds(patternValue(number, patternLength(number))), []);
    assert.deepEqual(kinds(mix(4096)), ['body']);
    assert.deepEqual(kinds(mix(65_500)), ['body']);
    assert.deepEqual(kinds(mix(65_525)), ['trailer']);
    assert.deepEqual(kinds(five.subarray(0, 65_536)), ['length']);
    assert.deepEqual(kinds(Buffer.concat([five, Buffer.alloc(1)])), ['length']);
    assert.deepEqual(kinds(Buffer.alloc(65_536)), ['header']);
    assert.deepEqual(kinds(Buffer.alloc(1)), ['short']);
    setFloor(6);
    assert.deepEqual(kinds(five), ['old']);
    assert.deepEqual(kinds(six), []);
    rmSync(value);
    const { report } = readOnce(mode);
    assert.deepEqual([report.details[0]?.kind, report.details[0]?.got], ['open', 2]);
  });
}

test('readers find a file cut under them', () => {
  writeFileSync(value, patternValue(9, 65_536));
  writeFileSync(floor, Buffer.alloc(8));
  truncateSync(value, 40_000);
  for (const mode of modes) assert.equal(readOnce(mode).report.details[0]?.kind, 'length');
});

test('readers pass over atomic replacements with the floor following, and stop on SIGTERM', async () => {
  // On a busy machine a reader may hardly have begun by then.
  for (let ms = 2000; !(await replacedFor(ms)); ms *= 2) assert.ok(ms < 60_000, 'the readers see nothing');
});

/** Replaces the value for so long; whether each reader saw another one meanwhile. Fails where one saw what it must not. */
async function replacedFor(ms: number): Promise<boolean> {
  writeFileSync(value, patternValue(1, patternLength(1)));
  setFloor(1);
  const readers = modes.map((mode) => {
    const child = spawn(join(probes, 'readers'), [mode, value, floor, '60', '1']);
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (data: string) => {
      text += data;
    });
    return { child, closed: once(child, 'close'), report: (): Report => JSON.parse(text) };
  });
  const end = performance.now() + ms;
  let number = 1;
  while (performance.now() < end) {
    number++;
    writeFileSync(`${value}.new`, patternValue(number, patternLength(number)));
    renameSync(`${value}.new`, value);
    setFloor(number);
    await new Promise((resolve) => setImmediate(resolve));
  }
  let haveSeen = true;
  for (const { child, closed, report } of readers) {
    child.kill('SIGTERM');
    const ended = await closed;
    if (ended[1] === 'SIGTERM') {
      // It was not ready for the signal yet.
      haveSeen = false;
      continue;
    }
    assert.deepEqual(ended, [0, null]);
    const { violations, distinct, highest, floors, movedWhileHeld } = report();
    assert.deepEqual([violations, movedWhileHeld], [0, 0]);
    assert.ok(highest <= number);
    haveSeen &&= distinct >= 2 && floors >= 2;
  }
  return haveSeen;
}

test('bench-fs prints one line of nanoseconds per operation', () => {
  for (const op of ['stat', 'open', 'pread']) {
    const { stdout } = spawnSync(join(probes, 'bench-fs'), [op, '1000', value, floor], { encoding: 'utf8' });
    const result = JSON.parse(stdout);
    assert.deepEqual(Object.keys(result), ['op', 'n', 'p50', 'p99', 'mean']);
    assert.ok(result.n === 1000 && result.p50 > 0 && result.p99 >= result.p50);
  }
  assert.equal(spawnSync(join(probes, 'bench-fs'), ['stat', '10', join(dir, 'absent')]).status, 1);
});

test('poll-wait says that a plain file is always ready', () => {
  const { stdout } = spawnSync(join(probes, 'poll-wait'), [value, '1000'], { encoding: 'utf8' });
  const [waiting, result] = stdout.split('\n');
  assert.equal(waiting, 'waiting');
  const { woke, in: readable } = JSON.parse(result ?? '');
  assert.deepEqual([woke, readable], [1, true]);
});
