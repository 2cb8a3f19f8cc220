import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { ENODATA, ENOENT } from '../wire/index.ts';
import { decodeAcl } from './acl.ts';
import { type Caller, ways } from './caller.ts';

const caller = (uid: number): Caller => ({ uid, gid: uid, pid: 1 });

test('getxattr tells why, revision and age, and the ACL where it decides for the guest too', () => {
  const acl = [{ tag: 'user', id: 114, permissions: 4 }] as const;
  const world = new World({
    content: { secrets: { a: 'x', b: 'y', c: 'z' } },
    rules: [
      { path: '/secrets/a', acl },
      { path: '/secrets/b', acl, decide: 'host' },
      { path: '/secrets/c', hidden: true },
    ],
  });
  const fileSystem = world.fileSystem(ways.virtiofs);
  const inoOf = (name: string) => world.authority.snapshot.resolve(`/secrets/${name}`)!.ino;
  const ask = (uid: number, name: string, attribute: string) => {
    const value = fileSystem.getxattr(caller(uid), inoOf(name), attribute);
    return typeof value === 'number' ? value : new TextDecoder().decode(value);
  };
  assert.match(`${ask(114, 'a', 'system.porthole.why')}`, /read: allowed \(mode 0440 and ACL\)/);
  assert.match(`${ask(115, 'a', 'system.porthole.why')}`, /read: denied/);
  assert.equal(ask(0, 'a', 'system.porthole.revision'), String(world.authority.snapshot.revision));
  assert.equal(ask(0, 'a', 'system.porthole.age'), '0');
  assert.equal(ask(0, 'a', 'user.x'), ENODATA);
  assert.equal(ask(1, 'c', 'system.porthole.why'), ENOENT);
  const bytes = fileSystem.getxattr(caller(0), inoOf('a'), 'system.posix_acl_access');
  assert.deepEqual(decodeAcl(bytes as Uint8Array)?.users, [{ id: 114, permissions: 4 }]);
  assert.equal(ask(0, 'b', 'system.posix_acl_access'), ENODATA);
  const listed = fileSystem.listxattr(caller(0), inoOf('a'));
  assert.equal(new TextDecoder().decode(listed as Uint8Array), 'system.posix_acl_access\0');
});
