import assert from 'node:assert/strict';
import { constants } from 'node:os';
import { test } from 'node:test';
import * as errno from './errno.ts';

const codes = Object.entries(errno).flatMap(([name, value]): [string, number][] =>
  typeof value === 'number' ? [[name, value]] : [],
);

test('errno numbers are those of this Linux', () => {
  assert.ok(codes.length >= 36);
  const known: Readonly<Record<string, number>> = constants.errno;
  for (const [name, code] of codes) {
    // Node names those that libuv knows.
    if (name in known) assert.equal(code, known[name], name);
  }
  assert.ok(codes.filter(([name]) => name in known).length >= 34);
});

test('errnoName names every errno of the table, and says the number of any other', () => {
  for (const [name, code] of codes) assert.equal(errno.errnoName(code), name);
  assert.equal(errno.errnoName(0), 'OK');
  assert.equal(errno.errnoName(200), 'errno 200');
});
