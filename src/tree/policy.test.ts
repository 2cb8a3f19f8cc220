import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { defaults, Policy } from './policy.ts';
import { defaultQuota, type Rule } from './spec.ts';

const policyOf = (...rules: Rule[]) => new Policy({ rules, users: { app: 1000 }, groups: {}, quota: defaultQuota });

test('Policy prefers the more specific rule when several match, whatever their order', () => {
  const ordered = [
    '/a/b/c',
    '/a/b/c*',
    '/a/b/*',
    '/a/b/**',
    '/a/xb?/c',
    '/a/b?/c',
    '/a/*/c',
    '/a/**/c',
    '/a/**',
    '/*/b/c',
    '/**',
  ];
  const path = '/a/b/c';
  const matching = ordered.filter((glob) => policyOf({ path: glob, mode: 1 }).effective(path).mode === 1);
  assert.deepEqual(matching, ['/a/b/c', '/a/b/c*', '/a/b/*', '/a/b/**', '/a/*/c', '/a/**/c', '/a/**', '/*/b/c', '/**']);
  for (const [index, winner] of matching.entries()) {
    const rules = matching.slice(index).map((glob) => ({ path: glob, mode: 0o400 }));
    for (const order of [rules, rules.toReversed()])
      assert.equal(policyOf(...order).effective(path).rule?.path, winner);
  }
  assert.equal(policyOf({ path: '/x*', owner: 1 }, { path: '/xy*', owner: 2 }).effective('/xyz').owner, 2);
});

test('Policy takes the later rule when two are equally specific', () => {
  assert.equal(policyOf({ path: '/a', owner: 1 }, { path: '/a', owner: 2 }).effective('/a').owner, 2);
  assert.equal(policyOf({ path: '/*a', owner: 2 }, { path: '/a*', owner: 1 }).effective('/aa').owner, 1);
});

test('Policy takes each key from the most specific rule that sets it', () => {
  const policy = policyOf(
    { path: '/secrets/**', root: 'deny', mode: 0o440, owner: 7 },
    { path: '/secrets/db', mode: 0o400 },
    { path: '/secrets/*', owner: 8, hidden: true },
  );
  const { mode, owner, rootDenied, hidden, special, rule, sources } = policy.effective('/secrets/db');
  assert.deepEqual(
    { mode, owner, rootDenied, hidden, special },
    { mode: 0o400, owner: 8, rootDenied: true, hidden: true, special: true },
  );
  assert.equal(rule?.path, '/secrets/db');
  assert.equal(sources.get('root')?.path, '/secrets/**');
  assert.equal(sources.get('owner')?.path, '/secrets/*');
  assert.equal(policy.effective('/secrets').rule, undefined);
});

test('Policy lets a specific rule take a special key back', () => {
  const policy = policyOf(
    { path: '/s/**', root: 'deny', hidden: true, decide: 'host', once: true },
    { path: '/s/a', root: 'allow', hidden: false, decide: 'kernel', once: false },
  );
  assert.equal(policy.effective('/s/b').special, true);
  assert.equal(policy.effective('/s/a').special, false);
});

test('Policy stays small when guests choose which of many patterns match', () => {
  const letters = [...'abcdefghijklm'];
  const policy = policyOf(...letters.map((letter) => ({ path: `/guest/*${letter}*`, owner: 1 })));
  for (let subset = 0; subset < 2 ** letters.length; subset++) {
    const name = letters.filter((_, bit) => (subset & (1 << bit)) !== 0).join('');
    assert.equal(policy.effective(`/guest/${name}`).sources.size, subset === 0 ? 0 : 1);
  }
  // Answers are right after the cache was emptied, and shared again.
  assert.equal(policy.effective('/guest/a'), policy.effective('/guest/a1'));
});

test('defaults are those of each area', () => {
  const expected: Record<string, readonly [file: number, directory: number]> = {
    '/instance/id': [0o444, 0o755],
    '/network/a/b': [0o444, 0o755],
    '/cluster/x': [0o444, 0o755],
    '/user/x': [0o444, 0o755],
    '/cloud-init/meta-data': [0o444, 0o755],
    '/cloud-init/user-data': [0o400, 0o755],
    '/cloud-init/vendor-data': [0o400, 0o755],
    '/cloud-init/x/user-data': [0o444, 0o755],
    '/secrets/x': [0o400, 0o711],
    '/guest/x': [0o400, 0o700],
    '/elsewhere': [0o400, 0o700],
    '/instances': [0o400, 0o700],
  };
  for (const [path, [file, directory]] of Object.entries(expected)) {
    assert.equal(defaults(path, false).mode, file, path);
    assert.equal(defaults(path, true).mode, directory, path);
    assert.equal(defaults(path, true).grantsWrites, false, path);
  }
  assert.deepEqual(defaults('/guest', true), { mode: 0o1777, grantsWrites: true });
  assert.deepEqual(defaults('/guest/.agent', true), { mode: 0o700, grantsWrites: true });
  assert.equal(defaults('/', true).mode, 0o755);
});

test('a rule gives owner, mode and ACL to what the outside made, with search for directories only by a pattern', () => {
  const world = new World({
    content: { secrets: { a: { f: '1' }, b: { f: '2' } }, link: 'x' },
    rules: [
      { path: '/secrets/**', mode: 0o440, owner: 5, group: 6 },
      { path: '/secrets/b', mode: 0o640, acl: [{ tag: 'user', id: 9, permissions: 7 }] },
    ],
  });
  const at = (path: string) => world.authority.snapshot.resolve(path)!;
  assert.equal(at('/secrets').mode & 0o7777, 0o711);
  assert.equal(at('/secrets/a').mode & 0o7777, 0o550);
  assert.equal(at('/secrets/a/f').mode & 0o7777, 0o440);
  assert.deepEqual([at('/secrets/a/f').uid, at('/secrets/a/f').gid], [5, 6]);
  // The mask stands in the group's place and covers what the entries give.
  assert.equal(at('/secrets/b').mode & 0o7777, 0o670);
  assert.deepEqual(at('/secrets/b').acl, {
    userObj: 6,
    groupObj: 4,
    other: 0,
    mask: 7,
    users: [{ id: 9, permissions: 7 }],
    groups: [],
  });
});

test('Policy tells which directories a special key may guard something within', () => {
  const policy = policyOf({ path: '/secrets/**', root: 'deny' }, { path: '/guest/*/key', once: true }, { path: '/**' });
  const guarded = ['/', '/secrets', '/secrets/a/b', '/guest', '/guest/a', '/guest/a/key', '/guest/a/b', '/guestbook'];
  assert.deepEqual(
    guarded.filter((path) => policy.guardsWithin(path)),
    ['/', '/secrets', '/secrets/a/b', '/guest', '/guest/a', '/guest/a/key'],
  );
});

test('a rename of a thousand nodes with long paths is no matter of seconds, however many rules there are', () => {
  const rules: Rule[] = Array.from({ length: 100 }, (_, i) => ({ path: `/app${i}/**`, root: 'deny' }));
  const world = new World({ content: { guest: {} }, rules: [...rules, { path: '/guest/*/private/**', root: 'deny' }] });
  const caller = { uid: 1000, gid: 1000, pid: 1 };
  const make = (op: 'mkdir' | 'create', parentIno: number, name: string): number => {
    const { errno, ino } = world.commit({ op, caller, parentIno, name, mode: 0o755, umask: 0 });
    assert.equal(errno, 0);
    return ino;
  };
  const guest = world.authority.snapshot.resolve('/guest')!.ino;
  const top = make('mkdir', guest, 'top');
  let deepest = top;
  for (let depth = 0; depth < 60; depth++) deepest = make('mkdir', deepest, 'd'.repeat(250));
  for (let i = 0; i < 1_000; i++) make('create', deepest, `f${i}`);
  const before = process.cpuUsage();
  const to = { newParentIno: guest, newName: 'other' };
  assert.equal(world.commit({ op: 'rename', caller, parentIno: guest, name: 'top', ...to, flags: 0 }).errno, 0);
  const { user, system } = process.cpuUsage(before);
  assert.ok(user + system < 2_000_000, `the host daemon did nothing else for ${user + system} µs`);
});

test('Policy knows root and the uids that it names, and nobody else', () => {
  const policy = new Policy({
    rules: [
      {
        path: '/a',
        owner: 5,
        acl: [
          { tag: 'user', id: 6, permissions: 4 },
          { tag: 'group', id: 7, permissions: 4 },
        ],
      },
    ],
    users: { app: 1000 },
    groups: { staff: { gid: 50, members: [8] }, open: { gid: 51 } },
    quota: defaultQuota,
    ninepMountUid: 9,
  });
  assert.deepEqual(
    [0, 5, 6, 7, 8, 9, 50, 1000, 1001].filter((uid) => policy.knows(uid)),
    [0, 5, 6, 8, 9, 1000],
  );
});
