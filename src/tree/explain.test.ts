import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { type Caller, ways } from './caller.ts';
import { explain, why } from './explain.ts';

const caller = (uid: number): Caller => ({ uid, gid: uid, pid: 1 });
const world = new World({
  content: { secrets: { db: 'x', wo: 'y', deep: { f: 'z' } }, guest: {} },
  rules: [
    { path: '/secrets/**', root: 'deny', source: 'web.yaml:7' },
    { path: '/secrets/db', mode: 0o400, owner: 114 },
    { path: '/secrets/wo', mode: 0o666, writeOnce: true },
    { path: '/secrets/deep', mode: 0o700, root: 'allow' },
  ],
});
const of = (path: string, uid: number) => {
  const { replica } = world.authority;
  const node = replica.snapshot.resolve(path)!;
  return {
    told: explain(replica, ways.direct, node, caller(uid), 0),
    line: why(replica, ways.direct, node, caller(uid), 0),
  };
};

test('explain agrees with what decide answers, for every caller and node', () => {
  const { replica } = world.authority;
  for (const node of replica.snapshot.nodes.values())
    for (const uid of [0, 114, 1000]) {
      const told = explain(replica, ways.direct, node, caller(uid), 0);
      for (const [mask, verdict] of [
        [4, told.read],
        [1, told.search],
      ] as const)
        assert.equal(verdict.allowed, replica.decide(ways.direct, node, caller(uid), mask, 0) === 0, told.path);
    }
});

test('explain names the rule of each key, and what refuses', () => {
  const { told, line } = of('/secrets/db', 0);
  assert.deepEqual(told.read, { allowed: false, because: 'root: deny', rule: '/secrets/** (web.yaml:7)' });
  assert.equal(told.rule, '/secrets/db');
  assert.deepEqual(
    told.keys.toSorted((a, b) => (a.key < b.key ? -1 : 1)),
    [
      { key: 'mode', value: '0400', rule: '/secrets/db' },
      { key: 'owner', value: '114', rule: '/secrets/db' },
      { key: 'root', value: 'deny', rule: '/secrets/** (web.yaml:7)' },
    ],
  );
  assert.equal(
    line,
    'uid 0; read: denied (root: deny); write: denied (root: deny); rule: /secrets/db; special: root: deny',
  );
  assert.deepEqual(of('/secrets/db', 114).told.read, { allowed: true, because: 'mode 0400', rule: '/secrets/db' });
});

test('explain says where a caller is stopped, and that a sealed file can not be written', () => {
  assert.equal(of('/secrets/deep/f', 1000).told.stoppedAt, '/secrets/deep');
  assert.match(of('/secrets/deep/f', 1000).line, /no search permission on \/secrets\/deep/);
  assert.deepEqual(of('/secrets/wo', 1000).told.write, {
    allowed: false,
    because: 'writeOnce: it has been written',
    rule: '/secrets/wo',
  });
});
