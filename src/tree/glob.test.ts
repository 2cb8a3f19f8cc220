import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Glob } from './glob.ts';

/** The meaning of a glob, by trying everything. */
function means(tokens: readonly string[], names: readonly string[], last = true): boolean {
  const [token, ...rest] = tokens;
  if (token === undefined) return names.length === 0;
  if (token === '**') {
    const least = rest.length === 0 && last ? 1 : 0;
    for (let taken = least; taken <= names.length; taken++) if (means(rest, names.slice(taken))) return true;
    return false;
  }
  return names.length > 0 && meansName([...token], [...names[0]!]) && means(rest, names.slice(1));
}

function meansName(tokens: readonly string[], characters: readonly string[]): boolean {
  const [token, ...rest] = tokens;
  if (token === undefined) return characters.length === 0;
  if (token === '*')
    return meansName(rest, characters) || (characters.length > 0 && meansName(tokens, characters.slice(1)));
  return characters.length > 0 && (token === '?' || token === characters[0]) && meansName(rest, characters.slice(1));
}

test('Glob agrees with its definition when patterns and paths are short', () => {
  const segment = fc.oneof(
    fc.constantFrom('**', '*', '?', 'a', '*a', 'a*b', '?a*'),
    fc
      .string({ unit: fc.constantFrom('a', 'b', '*', '?'), minLength: 1, maxLength: 4 })
      .filter((text) => text !== '**'),
  );
  const name = fc.string({ unit: fc.constantFrom('a', 'b', '😀'), minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(fc.array(segment, { maxLength: 4 }), fc.array(name, { maxLength: 4 }), (segments, names) => {
      assert.equal(new Glob(`/${segments.join('/')}`).matches(`/${names.join('/')}`), means(segments, names));
    }),
    { numRuns: 3000 },
  );
});

test('Glob matches all below and not the directory itself when it ends in **', () => {
  const glob = new Glob('/secrets/**');
  assert.deepEqual(
    ['/secrets', '/secrets/a', '/secrets/a/b', '/secretsx/a', '/', '/other/secrets/a'].map((path) =>
      glob.matches(path),
    ),
    [false, true, true, false, false, false],
  );
  assert.deepEqual(
    ['/', '/a', '/a/b'].map((path) => new Glob('/**').matches(path)),
    [false, true, true],
  );
  assert.ok(new Glob('/').matches('/'));
  assert.ok(new Glob('/a/**/z').matches('/a/z'));
});

test('Glob takes characters of regular expressions as they are', () => {
  assert.ok(new Glob('/tls.key').matches('/tls.key'));
  assert.ok(!new Glob('/tls.key').matches('/tlsxkey'));
  assert.ok(new Glob('/a+(b)[c]{d}^$|\\').matches('/a+(b)[c]{d}^$|\\'));
});

test('Glob answers at once when a guest makes the worst name for a pattern', () => {
  const before = process.cpuUsage();
  const glob = new Glob(`/guest/${'*a'.repeat(60)}b/${'**/x/'.repeat(10)}y`);
  for (let round = 0; round < 100; round++) assert.ok(!glob.matches(`/guest/${'a'.repeat(255)}/${'x/'.repeat(60)}z`));
  const { user, system } = process.cpuUsage(before);
  assert.ok(user + system < 2_000_000, `${user + system} µs`);
});

test('Glob may match within a directory whenever it matches it or a path below it', () => {
  const segment = fc.constantFrom('**', '*', '?', 'a', 'b', 'a*', '?b');
  const name = fc.constantFrom('a', 'b', 'ab', 'ba', '😀');
  fc.assert(
    fc.property(
      fc.array(segment, { minLength: 1, maxLength: 4 }),
      fc.array(name, { maxLength: 3 }),
      fc.array(name, { maxLength: 3 }),
      (segments, directory, below) => {
        const glob = new Glob(`/${segments.join('/')}`);
        if (glob.matches(`/${[...directory, ...below].join('/')}`)) assert.ok(glob.mayMatchWithin(directory));
      },
    ),
    { numRuns: 3000 },
  );
  assert.ok(!new Glob('/secrets/**').mayMatchWithin(['guest']));
  assert.ok(!new Glob('/guest/*').mayMatchWithin(['guest', 'a', 'b']));
  assert.ok(new Glob('/guest/a/b/c').mayMatchWithin(['guest', 'a']));
});
