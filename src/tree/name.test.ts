import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { EILSEQ, EINVAL, ENAMETOOLONG, ENOENT } from '../wire/index.ts';
import { checkName, utf8Bytes } from './name.ts';

test('utf8Bytes agrees with TextEncoder when the text is Unicode', () => {
  fc.assert(
    fc.property(
      fc.string({ unit: fc.constantFrom('a', '\u007f', '\u0080', '\u07ff', '\u0800', '\uffff', '😀') }),
      (text) => {
        assert.equal(utf8Bytes(text), new TextEncoder().encode(text).length);
      },
    ),
  );
});

test('checkName says why when a name can be none', () => {
  for (const [name, errno] of [
    ['a', 0],
    ['…', 0],
    [' ', 0],
    ['x'.repeat(255), 0],
    ['é'.repeat(127), 0],
    ['😀'.repeat(63), 0],
    ['', ENOENT],
    ['.', EINVAL],
    ['..', EINVAL],
    ['a/b', EINVAL],
    ['a\0', EINVAL],
    ['x'.repeat(256), ENAMETOOLONG],
    ['é'.repeat(128), ENAMETOOLONG],
    ['😀'.repeat(64), ENAMETOOLONG],
    ['\ud800', EILSEQ],
    ['a\udc00b', EILSEQ],
  ] as const)
    assert.equal(checkName(name), errno, JSON.stringify(name));
});
