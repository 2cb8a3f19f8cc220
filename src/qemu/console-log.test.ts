import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { ConsoleLog, carryOn, readConsole } from './console-log.ts';

test('ConsoleLog keeps the newest bytes at their offsets, whatever is written and however often it is opened anew', (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-console-'));
  t.after(() => rmSync(directory, { recursive: true }));
  let run = 0;
  fc.assert(
    fc.property(
      fc.array(fc.record({ bytes: fc.uint8Array({ maxLength: 40 }), reopen: fc.boolean() }), { maxLength: 30 }),
      fc.integer({ min: -60, max: 300 }),
      fc.integer({ min: 0, max: 80 }),
      (writes, from, most) => {
        const file = path.join(directory, `log-${run++}`);
        const pieceBytes = 16;
        let log = new ConsoleLog(file, pieceBytes);
        const all: number[] = [];
        for (const { bytes, reopen } of writes) {
          log.append(bytes);
          all.push(...bytes);
          if (!reopen) continue;
          log.close();
          log = new ConsoleLog(file, pieceBytes);
        }
        log.close();
        const { start, offset, end, bytes } = readConsole(file, from, most);
        assert.equal(end, all.length);
        assert.ok(start <= Math.max(0, end - pieceBytes) && end - start <= 2 * pieceBytes, `${start} to ${end}`);
        assert.equal(offset, Math.min(end, Math.max(start, from < 0 ? end + from : from)));
        assert.deepEqual([...bytes], all.slice(offset, offset + most));
        const kept = readdirSync(directory).filter((name) => name.startsWith(`log-${run - 1}.`));
        assert.ok(kept.length <= 2);
        for (const name of kept) assert.equal(statSync(path.join(directory, name)).mode & 0o777, 0o600);
      },
    ),
    { numRuns: 300 },
  );
});

test('readConsole of a log that is not there is empty', () => {
  const { start, offset, end, bytes } = readConsole('/nonexistent/console.log', -10, 100);
  assert.deepEqual([start, offset, end, bytes.length], [0, 0, 0, 0]);
});

test('carryOn makes another log go on at the same offsets, and takes nothing from one that is as far', (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-console-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const [here, there] = [path.join(directory, 'here'), path.join(directory, 'there')];
  const write = (file: string, text: string): void => {
    const log = new ConsoleLog(file, 16);
    log.append(Buffer.from(text));
    log.close();
  };
  const text = (file: string): string => Buffer.from(readConsole(file, 0, 100).bytes).toString();
  write(here, 'of before');
  write(there, '0123456789abcdefghijklmnopqrstuvwxyz');
  carryOn(there, here);
  assert.deepEqual(readConsole(here, 0, 100), readConsole(there, 0, 100));
  write(here, '+');
  assert.equal(readConsole(here, 0, 100).end, 37);
  carryOn(there, here);
  assert.match(text(here), /z\+$/);
  carryOn(path.join(directory, 'nowhere'), here);
  assert.match(text(here), /z\+$/);
});
