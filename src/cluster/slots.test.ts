import assert from 'node:assert/strict';
import { test } from 'node:test';
import { boundOf } from './slots.ts';

const prefix = 'slot/team/nano/';
const slots = (...numbers: number[]): string[] => numbers.map((n) => `${prefix}${String(n).padStart(9, '0')}`);

/** As it is said: the highest bound that leaves as many slots below it as are not stood for by those above. */
const plainly = (taken: readonly string[], limit: number): number => {
  for (let bound = limit; ; bound--)
    if (bound === 0 || bound + taken.filter((key) => key >= slots(bound)[0]!).length <= limit) return bound;
};

test('boundOf leaves a slot below for none that is taken above', () => {
  assert.equal(boundOf([], prefix, 3), 3);
  assert.equal(boundOf(slots(0, 1), prefix, 3), 3);
  assert.equal(boundOf([...slots(0, 7, 8), `${prefix}x-i-1`], prefix, 5), 2);
  for (let limit = 0; limit < 12; limit++)
    for (let round = 0; round < 40; round++) {
      const taken = slots(
        ...Array.from({ length: 20 }, (_, n) => n).filter((n) => (n * 7 + round * 5) % 11 < round % 9),
      );
      assert.equal(boundOf(taken, prefix, limit), plainly(taken, limit), `${limit}: ${taken.join()}`);
    }
});

test('boundOf looks once at each of very many slots', () => {
  const limit = 50_000;
  const taken = slots(...Array.from({ length: limit }, (_, n) => n + 1));
  // Each is one comparison: were it limit × taken, this would take minutes.
  assert.equal(boundOf(taken, prefix, limit), 0);
});
