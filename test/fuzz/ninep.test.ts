import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { changedOf } from './changed.ts';
import { fuzzNinep } from './ninep.ts';

const corpus = new URL('../corpus/ninep/', import.meta.url);
/** Seconds of new inputs, for long runs by hand. */
const seconds = Number(process.env['PORTHOLE_FUZZ_SECONDS'] ?? 0);

const kept = readdirSync(corpus)
  .toSorted()
  .map((name) => ({ name, bytes: readFileSync(new URL(name, corpus)) }));

for (const { name, bytes } of kept)
  test(`a 9P session answers each request of corpus/ninep/${name} once, or ends`, () => {
    fuzzNinep(bytes);
  });

test('a 9P session answers each request once, or ends, when they are random or what was kept is changed', (t) => {
  let broken = 0;
  let runs = 0;
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ minLength: 64, maxLength: 2000 }), changedOf(kept)), (bytes) => {
      runs++;
      if (fuzzNinep(bytes)) broken++;
    }),
    seconds > 0
      ? { numRuns: 100_000_000, interruptAfterTimeLimit: seconds * 1000, markInterruptAsFailure: false }
      : { numRuns: 300 },
  );
  t.diagnostic(`${runs} streams, ${broken} of them broken off`);
});
