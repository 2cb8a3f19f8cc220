import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { readCursor, writeCursor } from './cursor.ts';
import { ApiError } from './problem.ts';
import { readIfMatch, readRevision, writeRevision } from './revision.ts';
import { decodeTreePath, encodeTreePath, parseTreePath } from './tree-path.ts';

const name = fc
  .string({ unit: 'grapheme', minLength: 1, maxLength: 60 })
  .filter((text) => text !== '.' && text !== '..' && !/[/\0]/.test(text) && Buffer.byteLength(text) <= 255);
const path = fc.array(name, { maxLength: 64 }).map((names) => `/${names.join('/')}`);

const refuses = (code: string, run: () => unknown): void =>
  assert.throws(run, (error) => error instanceof ApiError && error.code === code);

test('decodeTreePath gives back every path that encodeTreePath wrote', () => {
  fc.assert(
    fc.property(path, fc.boolean(), (one, slash) => {
      const encoded = encodeTreePath(one);
      assert.match(encoded, /^[\x21-\x7e]*$/);
      assert.equal(decodeTreePath(encoded), one);
      if (slash && one !== '/') assert.equal(decodeTreePath(`${encoded}/`), one);
      assert.equal(parseTreePath(one), one);
    }),
  );
});

test('decodeTreePath gives a normalised absolute path, or refuses, for any text', () => {
  const piece = fc.oneof(
    fc.string(),
    fc.constantFrom('/', '//', '.', '..', '%2e', '%2E%2e', '%2f', '%00', '%', '%ff', '%c3%a9', '\\', 'a'),
  );
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
      let decoded: string;
      try {
        decoded = decodeTreePath(pieces.join(''));
      } catch (error) {
        return assert.ok(error instanceof ApiError && error.code === 'BAD_PATH');
      }
      assert.ok(decoded.startsWith('/'));
      assert.ok(
        decoded === '/' ||
          decoded
            .slice(1)
            .split('/')
            .every((one) => one !== '' && one !== '.' && one !== '..' && !one.includes('\0')),
      );
      assert.equal(parseTreePath(decoded), decoded);
    }),
    { numRuns: 2_000 },
  );
});

test('paths that are none are refused', () => {
  for (const one of [
    '/',
    'a//b',
    '//',
    '..',
    'a/../b',
    '%2e%2e',
    'a/%2e',
    'a%2Fb',
    'a%00',
    '%',
    '%zz',
    '%ff',
    'a'.repeat(256),
    'é'.repeat(128),
    '%ED%A0%80',
  ])
    refuses('BAD_PATH', () => decodeTreePath(one));
  for (const one of ['', 'a', 'a/b', '//', '/a/', '/a//b', '/..', '/a/./b', '/a\0', '/\ud800', `/${'a/'.repeat(64)}a`])
    refuses('BAD_PATH', () => parseTreePath(one));
});

test('readIfMatch takes what writeRevision wrote, and nothing else', () => {
  fc.assert(
    fc.property(fc.nat(), fc.nat(), (epoch, revision) => {
      const text = writeRevision({ epoch }, revision);
      assert.deepEqual(readRevision(text, 'x'), { epoch, revision });
      assert.deepEqual(readIfMatch(`"${text}"`), { epoch, revision });
    }),
  );
  assert.equal(readIfMatch('*'), '*');
  assert.equal(readIfMatch(undefined), undefined);
  for (const one of ['1.2', 'W/"1.2"', '"1.2", "1.3"', '""', '"1"', '"-1.2"', '"1.2e3"', '"', `"1.${'9'.repeat(16)}"`])
    refuses('BAD_REQUEST', () => readIfMatch(one));
});

test('readCursor takes what writeCursor wrote for the same list, and refuses anything else', () => {
  const at = { epoch: 1, revision: 7, next: 'vm/b' };
  assert.deepEqual(readCursor(writeCursor(at, 'f'), 'f', 'vm/', 1), at);
  refuses('BAD_CURSOR', () => readCursor(writeCursor(at, 'g'), 'f', 'vm/', 1));
  refuses('BAD_CURSOR', () => readCursor(writeCursor({ ...at, next: 'key/b' }, 'f'), 'f', 'vm/', 1));
  refuses('COMPACTED', () => readCursor(writeCursor(at, 'f'), 'f', 'vm/', 2));
  fc.assert(fc.property(fc.string(), (text) => refuses('BAD_CURSOR', () => readCursor(text, 'f', 'vm/', 1))));
  fc.assert(
    fc.property(fc.jsonValue(), (value) =>
      refuses('BAD_CURSOR', () => readCursor(Buffer.from(JSON.stringify(value)).toString('base64url'), 'f', 'vm/', 1)),
    ),
  );
});
