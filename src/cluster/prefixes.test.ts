import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { addressOf } from '../wire/index.ts';
import { freeAt, spanOf } from './prefixes.ts';

test('spanOf leaves out what would be mistaken for the network or for all of it', () => {
  const span = (family: 'ipv4' | 'ipv6', prefix: string): string[] => {
    const { first, last } = spanOf(family, prefix);
    return [addressOf(family, first), addressOf(family, last)];
  };
  assert.deepEqual(span('ipv4', '10.20.0.0/30'), ['10.20.0.1', '10.20.0.2']);
  assert.deepEqual(span('ipv4', '10.20.0.8/31'), ['10.20.0.8', '10.20.0.9']);
  assert.deepEqual(span('ipv6', 'fd00::/126'), ['fd00::1', 'fd00::3']);
  assert.throws(() => spanOf('ipv4', '10.20.0.1/30'), /write it as 10\.20\.0\.0\/30/);
  assert.throws(() => spanOf('ipv6', 'fd00::/48'), /length of 48; it must be from 64 to 128/);
  for (const prefix of [
    '169.254.0.0/16',
    '169.254.169.254/32',
    '127.0.0.0/8',
    '0.0.0.0/8',
    '224.0.0.0/24',
    '255.0.0.0/8',
  ])
    assert.throws(() => spanOf('ipv4', prefix), /which no VM can have/, prefix);
  for (const prefix of ['fe80::/64', 'ff02::/64', '::/64', '::ffff:10.0.0.0/120'])
    assert.throws(() => spanOf('ipv6', prefix), /which no VM can have/, prefix);
  for (const bad of ['', '10.0.0.0', '10.0.0/24', 'fd00::/64', '10.0.0.0/33', '10.0.0.0/'])
    assert.throws(() => spanOf('ipv4', bad));
});

test('freeAt finds every number that is not taken, and no other', () => {
  const spans = fc
    .uniqueArray(fc.integer({ min: 0, max: 60 }), { minLength: 2, maxLength: 6 })
    .map((ends) => ends.toSorted((a, b) => a - b))
    .map((ends) =>
      Array.from({ length: Math.floor(ends.length / 2) }, (_, i) => ({
        first: BigInt(ends[2 * i]!),
        last: BigInt(ends[2 * i + 1]!),
      })),
    );
  fc.assert(
    fc.property(spans, fc.func(fc.boolean()), (of, isTaken) => {
      const all = of.flatMap(({ first, last }) =>
        Array.from({ length: Number(last - first) + 1 }, (_, i) => first + BigInt(i)),
      );
      const taken = all.filter(isTaken);
      const free = all.filter((number) => !taken.includes(number));
      assert.deepEqual(
        Array.from({ length: free.length + 1 }, (_, i) => freeAt(of, taken, BigInt(i))),
        [...free, undefined],
      );
    }),
  );
});
