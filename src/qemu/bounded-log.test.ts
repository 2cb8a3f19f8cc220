import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { trimLog } from './bounded-log.ts';

const dir = mkdtempSync(join(tmpdir(), 'porthole-log-'));
after(() => rmSync(dir, { recursive: true }));

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
