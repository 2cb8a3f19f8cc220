import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { fuzzNinep } from './ninep.ts';

const corpus = new URL('../corpus/ninep/', import.meta.url);
/** Seconds of new inputs, for long runs by hand. */
const seconds = Number(process.env['PORTHOLE_FUZZ_SECONDS'] ?? 0);

for (const name of readdirSync(corpus).toSorted())
  test(`a 9P session answers each request of corpus/ninep/${name} once, or ends`, () => {
    fuzzNinep(readFileSync(new URL(name, corpus)));
  });

test('a 9P session answers each random request once, or ends', (t) => {
  let broken = 0;
  let runs = 0;
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 64, maxLength: 2000 }), (bytes) => {
      runs++;
      if (fuzzNinep(bytes)) broken++;
    }),
    seconds > 0
      ? { numRuns: 100_000_000, interruptAfterTimeLimit: seconds * 1000, markInterruptAsFailure: false }
      : { numRuns: 300 },
  );
  t.diagnostic(`${runs} streams, ${broken} of them broken off`);
});
