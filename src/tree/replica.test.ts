import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import type { Delta } from './delta.ts';
import { Replica } from './replica.ts';
import type { Rule } from './spec.ts';

const cachingOf = (rules: Rule[], ...paths: string[]) => {
  const world = new World({
    content: { instance: { id: 'x', sub: { f: 'y' } }, secrets: { k: 'z' }, guest: {} },
    rules,
  });
  const { replica } = world.authority;
  return paths.map((path) => replica.facts(replica.snapshot.resolve(path)!).caching);
};

test('caching is shared only for what every caller gets the same answer of', () => {
  assert.deepEqual(
    cachingOf([], '/', '/instance', '/instance/id', '/secrets', '/secrets/k', '/guest', '/guest/.agent', '/.changes'),
    ['shared', 'shared', 'shared', 'shared', 'private', 'shared', 'private', 'private'],
  );
  const special: Partial<Rule>[] = [
    { root: 'deny' },
    { decide: 'host' },
    { hidden: true },
    { once: true },
    { program: ['/bin/x'] },
    { unit: ['x'] },
    { fromMs: 1 },
    { untilMs: 1 },
    { mode: 0o440 },
    { mode: 0o044 },
    { mode: 0o404 },
    { acl: [{ tag: 'user', id: 5, permissions: 0 }] },
    { acl: [{ tag: 'group', id: 5, permissions: 0 }] },
  ];
  for (const rule of special)
    assert.deepEqual(cachingOf([{ path: '/instance/id', ...rule }], '/instance/id'), ['private'], JSON.stringify(rule));
  assert.deepEqual(
    cachingOf([{ path: '/instance/id', acl: [{ tag: 'user', id: 5, permissions: 4 }] }], '/instance/id'),
    ['shared'],
  );
});

test('caching is mutable for what guests may write', () => {
  assert.deepEqual(cachingOf([{ path: '/instance/id', mode: 0o644 }], '/instance/id'), ['mutable']);
  assert.deepEqual(
    cachingOf([{ path: '/instance/id', acl: [{ tag: 'user', id: 5, permissions: 6 }] }], '/instance/id'),
    ['mutable'],
  );
});

test('caching is private for all below a directory that not everybody may search', () => {
  for (const rule of [{ mode: 0o750 }, { root: 'deny' }, { acl: [{ tag: 'user', id: 5, permissions: 0 }] }] as const)
    assert.deepEqual(
      cachingOf([{ path: '/instance', ...rule }], '/instance', '/instance/id', '/instance/sub/f'),
      ['private', 'private', 'private'],
      JSON.stringify(rule),
    );
});

test('facts follow a new policy, and a directory that becomes another', () => {
  const content = { instance: { sub: { f: 'y' } } };
  const world = new World({ content });
  const { replica } = world.authority;
  const facts = () => replica.facts(replica.snapshot.resolve('/instance/sub/f')!);
  assert.equal(facts().caching, 'shared');
  world.load({ content, rules: [{ path: '/instance/sub', mode: 0o700 }] });
  assert.deepEqual([facts().caching, facts().readsAudited], ['private', true]);
  world.load({ content, rules: [{ path: '/instance/sub/f', decide: 'host', mode: 0o400 }] });
  assert.deepEqual([facts().caching, facts().shownMode & 0o777], ['private', 0o666]);
  world.load({ content });
  assert.deepEqual([facts().caching, facts().readsAudited], ['shared', false]);
});

test('a full delta for a replica that has an older state is told as the difference, and changes no version that is open', () => {
  const world = new World({ content: { instance: { id: 'x', a: '1', gone: '2' }, guest: {} } });
  const replica = new Replica();
  const told: Delta[] = [];
  replica.apply(world.authority.full());
  replica.onApply((delta) => told.push(delta));
  const before = replica.snapshot;
  world.load({ content: { instance: { id: 'x', a: '12', made: '3' }, guest: {} } });
  replica.apply(structuredClone(world.authority.full()));
  assert.deepEqual(replica.snapshot.nodes.size, world.authority.snapshot.nodes.size);
  const same = (path: string): boolean => replica.snapshot.resolve(path) === before.resolve(path);
  assert.equal(same('/instance/id'), true);
  assert.equal(same('/instance/a'), false);
  assert.deepEqual(told.flatMap(({ changes }) => changes.map(({ path, what }) => `${what} ${path}`)).toSorted(), [
    'changed /instance/a',
    'created /instance/made',
    'removed /instance/gone',
  ]);
  assert.deepEqual(
    told.map(({ remove }) => remove),
    [[before.resolve('/instance/gone')!.ino]],
  );
});
