import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { aclMode, chmodAcl, decodeAcl, encodeAcl, inheritAcl, isMinimal } from './acl.ts';
import type { Acl } from './node.ts';

const bits = fc.nat(7);
const entries = fc
  .uniqueArray(fc.record({ id: fc.nat({ max: 0xffff_fffe }), permissions: bits }), {
    selector: (entry) => entry.id,
    maxLength: 5,
  })
  .map((list) => list.map((entry) => ({ ...entry })).toSorted((a, b) => a.id - b.id));
const acl: fc.Arbitrary<Acl> = fc
  .record({
    userObj: bits,
    groupObj: bits,
    other: bits,
    mask: fc.integer({ min: -1, max: 7 }),
    users: entries,
    groups: entries,
  })
  .map((acl) => (acl.users.length + acl.groups.length > 0 && acl.mask < 0 ? { ...acl, mask: 7 } : { ...acl }));

test('decodeAcl gives back what encodeAcl wrote', () => {
  fc.assert(fc.property(acl, (acl) => assert.deepEqual(decodeAcl(encodeAcl(acl)), acl)));
});

test('encodeAcl writes the bytes of posix_acl_xattr.h', () => {
  const bytes = encodeAcl({
    userObj: 6,
    groupObj: 4,
    other: 0,
    mask: 5,
    users: [{ id: 1000, permissions: 7 }],
    groups: [],
  });
  assert.equal(
    Buffer.from(bytes).toString('hex'),
    [
      '02000000', // a_version
      '01000600ffffffff', // ACL_USER_OBJ rw-
      '02000700e8030000', // ACL_USER 1000 rwx
      '04000400ffffffff', // ACL_GROUP_OBJ r--
      '10000500ffffffff', // ACL_MASK r-x
      '20000000ffffffff', // ACL_OTHER ---
    ].join(''),
  );
});

const hex = (text: string) => new Uint8Array(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'));
const minimal = '02000000 01000600ffffffff 04000400ffffffff 20000000ffffffff';

test('decodeAcl answers undefined when the bytes are malformed', () => {
  assert.ok(decodeAcl(hex(minimal)));
  const named = '02000700e8030000';
  for (const [why, bytes] of Object.entries({
    empty: '',
    'a header alone': '02000000',
    'another version': minimal.replace('02000000', '01000000'),
    'a byte too many': `${minimal}00`,
    'no other': '02000000 01000600ffffffff 04000400ffffffff 10000400ffffffff',
    'owner twice': `${minimal} 01000600ffffffff`,
    'user twice': `${minimal} 10000700ffffffff ${named}${named}`,
    'named without a mask': `${minimal} ${named}`,
    'a user without an id': `${minimal} 10000700ffffffff 02000700ffffffff`,
    'an unknown tag': `${minimal} 40000700ffffffff`,
    'permissions over 7': minimal.replace('01000600', '01000800'),
    'too many': `${minimal} 10000700ffffffff ${Array.from({ length: 61 }, (_, i) => `02000700${i.toString(16).padStart(2, '0')}000000`).join('')}`,
  }))
    assert.equal(decodeAcl(hex(bytes)), undefined, why);
});

test('decodeAcl never throws, and takes only what it can write again', () => {
  const frame = fc.tuple(
    fc.constant([2, 0, 0, 0]),
    fc.array(fc.tuple(fc.constantFrom(1, 2, 4, 8, 16, 32, 64), fc.nat(9), fc.nat(3)), { maxLength: 8 }),
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.uint8Array({ maxLength: 100 }),
        frame.map(
          ([head, list]) =>
            new Uint8Array([
              ...head,
              ...list.flatMap(([tag, permissions, id]) => [tag, 0, permissions, 0, id, 0, 0, 0]),
            ]),
        ),
      ),
      (bytes) => {
        const acl = decodeAcl(bytes);
        if (acl !== undefined) assert.deepEqual(decodeAcl(encodeAcl(acl)), acl);
      },
    ),
    { numRuns: 3000 },
  );
});

test('chmodAcl makes an ACL show the mode, and leaves named entries', () => {
  fc.assert(
    fc.property(acl, fc.nat(0o777), (acl, mode) => {
      const changed = chmodAcl(acl, mode);
      assert.equal(aclMode(changed), mode);
      assert.deepEqual([changed.users, changed.groups], [acl.users, acl.groups]);
      if (acl.mask >= 0) assert.equal(changed.groupObj, acl.groupObj);
    }),
  );
});

test('inheritAcl grants no class more than the default ACL and the asked mode do', () => {
  fc.assert(
    fc.property(acl, fc.nat(0o777), (acl, asked) => {
      const { mode, acl: access } = inheritAcl(acl, asked);
      assert.equal(mode, aclMode(acl) & asked);
      assert.equal(access === undefined, isMinimal(acl));
      if (access !== undefined) assert.equal(aclMode(access), mode);
    }),
  );
});
