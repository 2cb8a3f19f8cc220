import assert from 'node:assert/strict';
import { test } from 'node:test';
import { printable } from './printable.ts';

test('printable leaves words, and shows what a terminal would obey', () => {
  assert.equal(printable('a queue broke: größer, 日本'), 'a queue broke: größer, 日本');
  assert.equal(
    printable('\u001B]0;x\u0007\u009B2J\nok\r\u202E'),
    String.raw`\u{1b}]0;x\u{7}\u{9b}2J\u{a}ok\u{d}\u{202e}`,
  );
});
