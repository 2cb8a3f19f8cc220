import assert from 'node:assert/strict';
import { test } from 'node:test';
import { specOf, World, type WorldSpec } from '../../test/tree/world.ts';
import { type Caller, ways } from './caller.ts';
import { Comparison, callersOf, underPolicy } from './preview.ts';
import type { Replica } from './replica.ts';
import { rightsOf, TreeRights } from './rights.ts';
import type { PolicySpec } from './spec.ts';

const finished = <T>(steps: Generator<undefined, T>): T => {
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
  }
};

const policyOf = (policy: Omit<WorldSpec, 'content'>): PolicySpec => specOf({ content: {}, ...policy }).policy;

const content = { instance: { id: 'i' }, secrets: { db: 'x', tls: { key: 'k' } }, guest: {} };
const groups = { web: { gid: 50, members: [1000, 1001] }, adm: { gid: 4 }, idle: { gid: 99, members: [7] } };
const before = policyOf({
  policy: { users: { app: 1000, api: 1001, cron: 1002, idle: 7 }, groups },
  rules: [
    { path: '/secrets/db', mode: 0o440, owner: 114, group: 50 },
    { path: '/secrets/tls/**', mode: 0o440, group: 4, program: ['/usr/bin/nginx', '/usr/sbin/nginx'] },
  ],
});

const compare = (replica: Replica, policy: PolicySpec) => {
  const after = finished(underPolicy(replica, policy, { sec: 0, nsec: 0 }));
  const { classes, callers, leftOut } = finished(callersOf(replica.snapshot, [replica.policy.spec, policy]));
  assert.equal(leftOut, 0);
  const comparison = new Comparison(replica, after, callers, 0);
  const told: Record<string, string[]> = {};
  for (const node of replica.snapshot.nodes.values()) {
    const words = comparison.changesOf(node).flatMap(({ callers: who, gained, lost }) =>
      who.map((i) => {
        const { uids, gids, programs } = classes[i]!;
        const name = `${uids === undefined ? '' : `u${uids.join('+')}`}${gids === undefined ? '' : `g${gids.join('+')}`}`;
        return `${name === '' ? 'any' : name}${programs === undefined ? '' : ` ${programs.join('+')}`} ${[...gained.map((one) => `+${one}`), ...lost.map((one) => `-${one}`)].join(' ')}`;
      }),
    );
    if (words.length > 0) told[replica.snapshot.path(node)] = words.toSorted();
  }
  return { after, callers, classes, told };
};

test('Comparison names the callers that gain or lose a right, and those alike together', () => {
  const { replica } = new World({ content, policy: before }).authority;
  const rules = before.rules.with(0, { path: '/secrets/db', mode: 0o400, owner: 1002 });
  const { told, classes } = compare(replica, { ...before, rules });
  assert.deepEqual(told, {
    '/secrets/db': [
      ...['', ' /usr/bin/nginx+/usr/sbin/nginx'].flatMap((program) => [
        `u1000+1001${program} -read`,
        `u1002${program} +read`,
        `u114${program} -read`,
      ]),
    ].toSorted(),
  });
  // A group that no rule names tells nobody apart.
  assert.ok(classes.every(({ uids, gids }) => uids?.includes(7) !== true && gids?.includes(99) !== true));
});

test('Comparison tells of what is lost below a directory that may be searched no more', () => {
  const { replica } = new World({ content, policy: before }).authority;
  const rules = [...before.rules, { path: '/secrets', mode: 0o700, root: 'deny' as const }];
  const { told } = compare(replica, { ...before, rules });
  assert.ok(told['/secrets/db']!.includes('u1000+1001 -see -read'), JSON.stringify(told));
  assert.ok(told['/secrets/tls/key']!.includes('g4 /usr/bin/nginx+/usr/sbin/nginx -see -read'), JSON.stringify(told));
  assert.ok(told['/secrets/db']!.includes('u0 -see -read'), JSON.stringify(told));
  assert.deepEqual(
    Object.keys(told).filter((path) => !path.startsWith('/secrets')),
    [],
  );
});

test('underPolicy gives the tree that setPolicy makes, and leaves the one that it was made from as it was', () => {
  const world = new World({ content, policy: before });
  const { replica } = world.authority;
  const policy = policyOf({ rules: [{ path: '/secrets/*', mode: 0o444, hidden: true }] });
  const was = [...replica.snapshot.nodes.values()];
  const after = finished(underPolicy(replica, policy, { sec: 0, nsec: 0 }));
  assert.deepEqual([...replica.snapshot.nodes.values()], was);
  world.authority.setPolicy(policy);
  const rightsIn = (one: Replica) =>
    [...one.snapshot.nodes.values()].map(({ ino, uid, gid, mode, acl }) => [ino, uid, gid, mode, acl]);
  assert.deepEqual(rightsIn(after), rightsIn(replica));
});

test('TreeRights agrees with what decide answers on every step of the way, for every caller and node', () => {
  const { replica } = new World({ content, policy: before }).authority;
  const rules = [
    ...before.rules,
    { path: '/secrets', hidden: true, mode: 0o711 },
    { path: '/instance', mode: 0o777, unit: ['a.service'] },
  ];
  const { after, callers } = compare(replica, { ...before, rules });
  const may = (caller: Caller, path: string, mask: number): boolean => {
    const node = after.snapshot.resolve(path)!;
    const names = path.split('/').slice(1, -1);
    const above = ['/', ...names.map((_, i) => `/${names.slice(0, i + 1).join('/')}`)].map(
      (one) => after.snapshot.resolve(one)!,
    );
    return (
      (path === '/' ||
        above.every(
          (one) => after.decide(ways.direct, one, caller, 1, 0) === 0 && !after.hides(ways.direct, one, caller, 0),
        )) &&
      !after.hides(ways.direct, node, caller, 0) &&
      after.decide(ways.direct, node, caller, mask, 0) === 0
    );
  };
  const rights = new TreeRights(after, callers, 0);
  let searched = 0;
  for (const node of after.snapshot.nodes.values()) {
    const path = after.snapshot.path(node);
    for (const [i, caller] of callers.entries()) {
      const told = rightsOf(rights.of(node).bits[i]!);
      assert.equal(told.includes('read'), may(caller, path, 4), `${path} read ${JSON.stringify(caller)}`);
      if (!told.includes('search')) continue;
      searched++;
      assert.ok(may(caller, path, 1), path);
    }
  }
  assert.ok(searched > 0);
});

test('descendantsAfter goes on where a path was told, or would have been', () => {
  const { snapshot } = new World({ content }).authority.replica;
  const root = snapshot.resolve('/')!;
  const all = [...snapshot.descendants(root)].map((node) => snapshot.path(node));
  const after = (path: string) =>
    [...snapshot.descendantsAfter(root, path.split('/').filter(Boolean))].map((node) => snapshot.path(node));
  for (const [i, path] of all.entries()) assert.deepEqual(after(path), all.slice(i + 1), path);
  assert.deepEqual(after('/secrets/dc'), after('/secrets/db'));
  assert.deepEqual(after('/secrets/db/x'), after('/secrets/db'));
});
