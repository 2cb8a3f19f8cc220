import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { fuzzFuse } from './fuse.ts';

const corpus = new URL('../corpus/fuse/', import.meta.url);

for (const name of readdirSync(corpus).toSorted())
  test(`a FUSE session answers each request of corpus/fuse/${name} once`, () => {
    fuzzFuse(readFileSync(new URL(name, corpus)));
  });

test('a FUSE session answers each random request once', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 64, maxLength: 2000 }), (bytes) => fuzzFuse(bytes)),
    { numRuns: 300 },
  );
});
