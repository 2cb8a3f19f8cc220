import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Glob, namesOf } from './glob.ts';
import { RuleIndex } from './rule-index.ts';

/** Ordered as the index wants it: more names before the first pattern come first. */
const entriesOf = (globs: readonly Glob[]) =>
  globs.toSorted((a, b) => b.literalNames.length - a.literalNames.length).map((glob, index) => ({ glob, index }));

test('RuleIndex finds what asking each finds, in the same order', () => {
  const segment = fc.constantFrom('**', '*', 'a', 'b', 'a*', '?');
  const glob = fc.array(segment, { maxLength: 4 }).map((segments) => new Glob(`/${segments.join('/')}`));
  const path = fc.array(fc.constantFrom('a', 'b', 'ab', 'c'), { maxLength: 4 });
  fc.assert(
    fc.property(fc.array(glob, { maxLength: 12 }), path, (globs, names) => {
      const entries = entriesOf(globs);
      const each = entries.filter((entry) => entry.glob.matchesNames(names));
      assert.deepEqual(new RuleIndex(entries).matching(names), each);
    }),
    { numRuns: 2000 },
  );
});

test('RuleIndex asks only those that begin with names of the path', () => {
  let asked = 0;
  class Counted extends Glob {
    override matchesNames(names: readonly string[]): boolean {
      asked++;
      return super.matchesNames(names);
    }
  }
  const globs = Array.from({ length: 300 }, (_, index) => new Counted(`/secrets/app${index}/*`));
  const index = new RuleIndex(entriesOf([...globs, new Counted('/secrets/**')]));
  const found = index.matching(namesOf('/secrets/app7/key'));
  assert.deepEqual(
    found.map(({ glob }) => glob.segments.join('/')),
    ['secrets/app7/*', 'secrets/**'],
  );
  assert.equal(asked, 2);
});
