import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import * as fc from 'fast-check';
import { RotatingFile, readTail, trimLog } from './bounded-log.ts';

const dir = mkdtempSync(join(tmpdir(), 'porthole-log-'));
after(() => rmSync(dir, { recursive: true }));
let count = 0;

test('RotatingFile keeps the last bytes, in order, and at most twice the limit', () => {
  const writes = fc.array(fc.tuple(fc.nat(50), fc.boolean()), { maxLength: 30 });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), writes, (limitBytes, pieces) => {
      const path = join(dir, `rotating-${count++}`);
      let file = new RotatingFile(path, limitBytes);
      let all = '';
      for (const [length, again] of pieces) {
        const piece = Array.from({ length }, (_, index) => String((all.length + index) % 10)).join('');
        file.append(Buffer.from(piece));
        all += piece;
        if (!again) continue;
        file.close();
        file = new RotatingFile(path, limitBytes);
      }
      file.close();
      assert.ok(statSync(path).size <= limitBytes);
      const kept = readTail(path, 1_000).toString();
      assert.ok(kept.length >= Math.min(all.length, limitBytes) && kept.length <= 2 * limitBytes);
      assert.ok(all.endsWith(kept));
      assert.equal(readTail(path, 3).toString(), kept.slice(-3));
    }),
    { numRuns: 60 },
  );
});

test('trimLog cuts what is too long, under a writer that appends', () => {
  const path = join(dir, 'log');
  trimLog(path, 100);
  appendFileSync(path, 'x'.repeat(100));
  trimLog(path, 100);
  assert.equal(statSync(path).size, 100);
  appendFileSync(path, 'the end');
  trimLog(path, 100);
  assert.equal(readFileSync(path, 'utf8'), `${'x'.repeat(43)}the end`);
  writeFileSync(path, ' and more', { flag: 'a' });
  assert.match(readFileSync(path, 'utf8'), /^x{43}the end and more$/);
});
