/** Inputs that were kept, with changes: what found something once is near to what finds the next. */
import fc from 'fast-check';

const MOST_CHANGES = 24;

/** One of `kept` of which a few bytes are others, some are left out, and those of another follow. */
export const changedOf = (kept: readonly { readonly bytes: Uint8Array }[]): fc.Arbitrary<Uint8Array> => {
  const one = fc.constantFrom(...kept.map(({ bytes }) => bytes));
  const place = fc.nat({ max: 1_000_000 });
  const changes = fc.array(fc.tuple(place, fc.nat(255)), { maxLength: MOST_CHANGES });
  return fc
    .tuple(one, changes, fc.option(fc.tuple(place, place)), fc.option(one))
    .map(([bytes, changed, cut, other]) => {
      const first = Uint8Array.from(bytes);
      for (const [at, value] of changed) if (first.length > 0) first[at % first.length] = value;
      const [from, to] = (cut ?? [0, 0]).map((at) => at % (first.length + 1)).toSorted((a, b) => a - b) as [
        number,
        number,
      ];
      return Buffer.concat([first.subarray(0, from), first.subarray(to), other ?? new Uint8Array()]);
    });
};
