import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { EACCES, S_IFDIR, S_IFREG, W_OK, X_OK } from '../wire/index.ts';
import { decide } from './access.ts';
import type { Caller, Way } from './caller.ts';
import { ways } from './caller.ts';
import type { Acl, Node } from './node.ts';
import { type Effective, Policy } from './policy.ts';
import { defaultQuota, type Rule } from './spec.ts';

const time = { sec: 0, nsec: 0 };
const bits = fc.nat(7);
const id = fc.nat(4);
const entries = fc.uniqueArray(fc.record({ id, permissions: bits }), { selector: (entry) => entry.id, maxLength: 3 });
const acl: fc.Arbitrary<Acl> = fc.record({
  userObj: bits,
  groupObj: bits,
  other: bits,
  mask: bits,
  users: entries,
  groups: entries,
});

const nodeOf = (fields: Partial<Node>): Node => ({
  ino: 20,
  parentIno: 1,
  name: 'f',
  madeBy: 'guest',
  mode: S_IFREG,
  uid: 0,
  gid: 0,
  acl: undefined,
  defaultAcl: undefined,
  nlink: 1,
  sizeBytes: 0,
  bytes: new Uint8Array(),
  burned: false,
  dataRevision: 1,
  revision: 1,
  atime: time,
  mtime: time,
  ctime: time,
  ...fields,
});

/** acl(5), "access check algorithm", word by word; group membership is known in full. */
function aclAllows(
  acl: Acl,
  owner: number,
  group: number,
  uid: number,
  groups: readonly number[],
  mask: number,
): boolean {
  const grants = (permissions: number) => (permissions & mask) === mask;
  if (uid === owner) return grants(acl.userObj);
  const user = acl.users.find((entry) => entry.id === uid);
  if (user !== undefined) return grants(user.permissions) && grants(acl.mask);
  const matching = [
    ...(groups.includes(group) ? [acl.groupObj] : []),
    ...acl.groups.filter((entry) => groups.includes(entry.id)).map((entry) => entry.permissions),
  ];
  if (matching.some(grants)) return matching.some((permissions) => grants(permissions) && grants(acl.mask));
  if (matching.length > 0) return false;
  return grants(acl.other);
}

const effectiveOf = (rule: Partial<Rule>): Effective =>
  new Policy({ rules: [{ path: '/x', ...rule }], users: {}, groups: {}, quota: defaultQuota }).effective('/x');
const plain = effectiveOf({});
const policyOf = (groups: Record<string, { gid: number; members?: number[] }>) =>
  new Policy({ rules: [], users: {}, groups, quota: defaultQuota });
const noGroups = policyOf({});
const caller = (uid: number, gid: number, more: Partial<Caller> = {}): Caller => ({ uid, gid, pid: 1, ...more });
const ask = (
  node: Node,
  by: Caller,
  mask: number,
  as: { policy?: Policy; way?: Way; effective?: Effective; nowMs?: number } = {},
) => decide(as.policy ?? noGroups, as.way ?? ways.direct, node, as.effective ?? plain, by, mask, as.nowMs ?? 0);

test('decide agrees with acl(5) when the caller is not root', () => {
  fc.assert(
    fc.property(
      acl,
      id,
      id,
      fc.integer({ min: 1, max: 4 }),
      fc.array(id, { minLength: 1, maxLength: 3 }),
      fc.integer({ min: 1, max: 7 }),
      (acl, owner, group, uid, groups, mask) => {
        const node = nodeOf({
          mode: S_IFREG | (acl.userObj << 6) | (acl.mask << 3) | acl.other,
          uid: owner,
          gid: group,
          acl,
        });
        const [gid, ...others] = groups;
        const errno = ask(node, caller(uid, gid!, { groups: others }), mask);
        assert.equal(errno === 0, aclAllows(acl, owner, group, uid, groups, mask));
      },
    ),
    { numRuns: 5000 },
  );
});

test('decide agrees with the three classes when there is no ACL', () => {
  fc.assert(
    fc.property(
      fc.nat(0o777),
      id,
      id,
      fc.integer({ min: 1, max: 4 }),
      id,
      fc.integer({ min: 1, max: 7 }),
      (mode, owner, group, uid, gid, mask) => {
        const granted = uid === owner ? mode >> 6 : gid === group ? mode >> 3 : mode;
        const errno = ask(nodeOf({ mode: S_IFREG | mode, uid: owner, gid: group }), caller(uid, gid), mask);
        assert.equal(errno, (granted & mask) === mask ? 0 : EACCES);
      },
    ),
    { numRuns: 3000 },
  );
});

test('decide lets root read, search and write as on a disk, but write what the outside made by a write bit only', () => {
  const root = caller(0, 0);
  for (const mask of [4, 2, 6]) assert.equal(ask(nodeOf({ uid: 5, gid: 5 }), root, mask), 0);
  assert.equal(ask(nodeOf({ mode: S_IFDIR, uid: 5 }), root, X_OK), 0);
  assert.equal(ask(nodeOf({ mode: S_IFREG | 0o666 }), root, X_OK), EACCES, 'nobody may execute it');
  assert.equal(ask(nodeOf({ mode: S_IFREG | 0o001, uid: 5 }), root, X_OK), 0);
  const outside = (mode: number, uid: number) => nodeOf({ madeBy: 'outside', mode: S_IFREG | mode, uid, gid: 5 });
  assert.equal(ask(outside(0, 5), root, 4), 0);
  assert.equal(ask(outside(0o400, 0), root, W_OK), EACCES);
  assert.equal(ask(outside(0o600, 0), root, W_OK), 0);
  assert.equal(ask(outside(0o600, 5), root, W_OK), EACCES, 'the owner’s bit is not root’s');
  assert.equal(ask(outside(0o602, 5), root, W_OK), 0);
  assert.equal(ask(outside(0o600, 5), root, 6), EACCES);
});

test('decide takes a member list as the whole truth for what the outside made', () => {
  const policy = policyOf({ listed: { gid: 7, members: [1] }, open: { gid: 8 } });
  const outside = (gid: number) => nodeOf({ madeBy: 'outside', mode: S_IFREG | 0o040, uid: 9, gid });
  for (const way of [ways.direct, ways.virtiofs]) {
    assert.equal(ask(outside(7), caller(1, 50), 4, { policy, way }), 0);
    assert.equal(ask(outside(7), caller(2, 7), 4, { policy, way }), EACCES);
    assert.equal(ask(outside(8), caller(2, 8), 4, { policy, way }), 0);
  }
  const guest = nodeOf({ mode: S_IFREG | 0o040, uid: 9, gid: 7 });
  assert.equal(ask(guest, caller(2, 7), 4, { policy }), 0, 'the guest’s own files know its own groups');
});

test('decide leaves unlisted groups to the guest’s kernel where it has checked, and to nobody elsewhere', () => {
  const node = nodeOf({ madeBy: 'outside', mode: S_IFREG | 0o040, uid: 9, gid: 8 });
  assert.equal(ask(node, caller(2, 50), 4, { way: ways.virtiofs }), 0);
  assert.equal(ask(node, caller(2, 50), 4, { way: ways.mount }), EACCES);
  assert.equal(
    ask(node, caller(2, 50), 4, { way: ways.virtiofs, effective: effectiveOf({ decide: 'host' }) }),
    EACCES,
    'its kernel saw open bits',
  );
  assert.equal(ask(node, caller(2, 50, { groups: [] }), 4, { way: ways.virtiofs }), EACCES, 'its groups are known');
  assert.equal(ask(node, caller(2, 50), 6, { way: ways.virtiofs }), EACCES, 'no class grants it');
  // A caller who may be in a group that refuses may also be one of the others.
  assert.equal(
    ask(nodeOf({ madeBy: 'outside', mode: S_IFREG | 0o004, uid: 9, gid: 8 }), caller(2, 50), 4, { way: ways.virtiofs }),
    0,
  );
});

test('decide refuses what special keys refuse, root too, whatever the mode', () => {
  const node = nodeOf({ madeBy: 'outside', mode: S_IFREG | 0o777 });
  const refused = (rule: Partial<Rule>, by: Caller, way: Way = ways.direct, nowMs = 0) =>
    ask(node, by, 4, { effective: effectiveOf(rule), way, nowMs }) !== 0;
  assert.deepEqual([refused({ root: 'deny' }, caller(0, 0)), refused({ root: 'deny' }, caller(1, 0))], [true, false]);
  const psql = caller(0, 0, { program: '/bin/psql', unit: 'db.service' });
  assert.deepEqual(
    [
      refused({ program: ['/bin/psql'] }, psql),
      refused({ program: ['/bin/psql'] }, psql, ways.virtiofs),
      refused({ program: ['/bin/sh'] }, psql),
      refused({ program: ['/bin/psql'] }, caller(0, 0)),
      refused({ program: [] }, psql),
    ],
    [false, true, true, true, true],
  );
  assert.deepEqual(
    [
      refused({ unit: ['db.service'] }, psql),
      refused({ unit: ['db.service'] }, psql, ways.mount),
      refused({ unit: ['x'] }, psql),
    ],
    [false, true, true],
  );
  const window = { fromMs: 10, untilMs: 20 };
  assert.deepEqual(
    [9, 10, 19, 20].map((nowMs) => refused(window, caller(0, 0), ways.direct, nowMs)),
    [true, false, false, true],
  );
  const burned = { ...node, burned: true };
  assert.deepEqual(
    [4, 2, 1].map((mask) => ask(burned, caller(0, 0), mask)),
    [EACCES, EACCES, 0],
  );
});
