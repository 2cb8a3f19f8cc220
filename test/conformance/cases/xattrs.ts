import assert from 'node:assert/strict';
import { O_RDONLY, O_WRONLY, XATTR_CREATE, XATTR_REPLACE } from '../../../src/wire/index.ts';
import { aclBytes } from '../acl-bytes.ts';
import type { Actor, Errno } from '../driver.ts';
import { byV9fs } from '../ninep-ways.ts';
import { app, ok, plain, policy, postgres, root, stranger, touch, visitor, workshop } from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const ACCESS = 'system.posix_acl_access';
const DEFAULT = 'system.posix_acl_default';

const text = async (actor: Actor, path: string, name: string): Promise<string | Errno> => {
  const value = await actor.getxattr(path, name);
  return typeof value === 'string' ? value : new TextDecoder().decode(value);
};
const hex = (value: Uint8Array | Errno): string =>
  typeof value === 'string' ? value : Buffer.from(value).toString('hex');

const notAsked: Cannot = {
  because: 'Linux’s 9P client asks nobody for attributes of `system.` but ACLs',
  instead: async (tree) => {
    for (const name of ['why', 'revision', 'age'])
      assert.equal(await tree.as(app).getxattr('/instance/id', `system.porthole.${name}`), 'EOPNOTSUPP');
  },
};

const MODE_FIRST = 'Linux’s 9P client decides by the mode first, and looks at ACLs with access=client alone';

const flagsDropped: Cannot = {
  because: 'the kernel drops the flags of a setxattr(2) of an ACL',
  instead: async (tree) => {
    const actor = tree.as(app);
    assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
    const acl = aclBytes({ userObj: 7, groupObj: 5, other: 0 });
    assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_REPLACE), 'OK');
    assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_CREATE), 'OK');
    assert.deepEqual(await actor.listxattr('/guest/d'), [DEFAULT]);
  },
};

const flagsByKernel: Cannot = {
  because: 'the kernel drops the flags of a setxattr(2) of an ACL from Linux 6.2 on',
  instead: async (tree) => {
    const actor = tree.as(app);
    assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
    const acl = aclBytes({ userObj: 7, groupObj: 5, other: 0 });
    const first = await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_REPLACE);
    assert.ok(first === 'OK' || first === 'ENODATA', first);
    const dropsThem = first === 'OK';
    assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_CREATE), 'OK');
    assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_CREATE), dropsThem ? 'OK' : 'EEXIST');
    assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_REPLACE), 'OK');
    assert.deepEqual(await actor.listxattr('/guest/d'), [DEFAULT]);
  },
};

export const xattrs: Topic = {
  name: 'extended attributes',
  cases: [
    {
      name: 'getxattr of system.porthole.why tells the caller’s rights and the rule',
      spec: {
        ...plain,
        rules: [{ path: '/secrets/db-password', owner: postgres.uid, mode: 0o400, root: 'deny', source: 'web.yaml:9' }],
      },
      run: async (tree) => {
        const why = (who: typeof app) => text(tree.as(who), '/secrets/db-password', 'system.porthole.why');
        assert.match(
          await why(postgres),
          /uid 114.*read: allowed.*write: denied.*rule: \/secrets\/db-password \(web\.yaml:9\)/,
        );
        assert.match(await why(stranger), /uid 2000.*read: denied \(mode 0400\)/);
        assert.match(await why(root), /uid 0.*read: denied \(root: deny\).*special: root: deny/);
        assert.match(await text(tree.as(app), '/instance/id', 'system.porthole.why'), /read: allowed.*rule: default/);
      },
      cannot: byV9fs(notAsked),
    },
    {
      name: 'getxattr of system.porthole.revision rises with each change of the value, and age is 0 while connected',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const revision = async () => {
          await actor.readText('/instance/id');
          return Number(await text(actor, '/instance/id', 'system.porthole.revision'));
        };
        const before = await revision();
        assert.ok(before > 0);
        await tree.load({ ...plain, content: { ...plain.content, instance: { id: 'i-2', hostname: 'web-1' } } });
        assert.ok((await revision()) > before);
        assert.equal(await text(actor, '/instance/id', 'system.porthole.age'), '0');
      },
      cannot: byV9fs(notAsked),
    },
    {
      name: 'listxattr shows ACLs only, and other attributes are not there',
      spec: {
        ...plain,
        rules: [{ path: '/instance/id', mode: 0o444, acl: [{ tag: 'user', id: app.uid, permissions: 6 }] }],
      },
      run: async (tree) => {
        const actor = tree.as(stranger);
        assert.deepEqual(await actor.listxattr('/instance/hostname'), []);
        assert.deepEqual(await actor.listxattr('/instance/id'), [ACCESS]);
        assert.equal(await actor.getxattr('/instance/hostname', 'user.none'), 'ENODATA');
        assert.equal(await actor.getxattr('/instance/hostname', 'system.porthole.none'), 'ENODATA');
        assert.equal(await actor.getxattr('/instance/hostname', ACCESS), 'ENODATA');
        await touch(tree.as(app), '/guest/f');
        assert.equal(await tree.as(app).setxattr('/guest/f', 'user.mine', new Uint8Array(1)), 'EOPNOTSUPP');
      },
      cannot: byV9fs({
        because: notAsked.because,
        instead: async (tree) => {
          const actor = tree.as(stranger);
          assert.deepEqual(await actor.listxattr('/instance/hostname'), []);
          assert.deepEqual(await actor.listxattr('/instance/id'), [ACCESS]);
          assert.equal(await actor.getxattr('/instance/hostname', 'user.none'), 'ENODATA');
          assert.equal(await actor.getxattr('/instance/hostname', 'system.porthole.none'), 'EOPNOTSUPP');
          assert.equal(await actor.getxattr('/instance/hostname', ACCESS), 'ENODATA');
        },
      }),
    },
    {
      name: 'getxattr of the ACL gives what a rule says',
      spec: {
        ...plain,
        rules: [
          {
            path: '/instance/id',
            mode: 0o440,
            acl: [
              { tag: 'user', id: app.uid, permissions: 6 },
              { tag: 'group', id: 50, permissions: 4 },
            ],
          },
        ],
      },
      run: async (tree) => {
        const wanted = aclBytes({
          userObj: 4,
          groupObj: 4,
          other: 0,
          mask: 6,
          users: { [app.uid]: 6 },
          groups: { 50: 4 },
        });
        assert.equal(hex(await tree.as(app).getxattr('/instance/id', ACCESS)), hex(wanted));
        assert.equal(ok(await tree.as(app).stat('/instance/id')).mode, 0o460);
        assert.equal(await tree.as(app).writeFile('/instance/id', 'x', O_WRONLY), 'OK');
      },
      cannot: {
        v9fs: {
          because: MODE_FIRST,
          instead: async (tree) => {
            assert.equal((await tree.as(app).getxattr('/instance/id', ACCESS)).length, 52);
            assert.equal(ok(await tree.as(app).stat('/instance/id')).mode, 0o460);
            assert.equal(await tree.as(app).open('/instance/id', O_WRONLY), 'EACCES');
          },
        },
      },
    },
    {
      name: 'setxattr of an access ACL grants, shows in the mode, and is taken back',
      spec: { ...plain, policy },
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/f', 0o600);
        assert.equal(await tree.as(stranger).open('/guest/f', O_RDONLY), 'EACCES');
        const acl = aclBytes({ userObj: 6, groupObj: 0, other: 0, mask: 4, users: { [stranger.uid]: 6 } });
        assert.equal(await actor.setxattr('/guest/f', ACCESS, acl), 'OK');
        assert.equal(await tree.as(stranger).readText('/guest/f'), '');
        assert.equal(await tree.as(stranger).open('/guest/f', O_WRONLY), 'EACCES');
        assert.equal(await tree.as(visitor).open('/guest/f', O_RDONLY), 'EACCES');
        assert.equal(ok(await actor.stat('/guest/f')).mode, 0o640);
        assert.equal(hex(await actor.getxattr('/guest/f', ACCESS)), hex(acl));
        assert.equal(await actor.chmod('/guest/f', 0o600), 'OK');
        assert.equal(await tree.as(stranger).open('/guest/f', O_RDONLY), 'EACCES');
        assert.equal(await actor.removexattr('/guest/f', ACCESS), 'OK');
        assert.equal(await actor.getxattr('/guest/f', ACCESS), 'ENODATA');
        assert.equal(ok(await actor.stat('/guest/f')).mode, 0o600);
      },
      cannot: {
        v9fs: {
          because: MODE_FIRST,
          instead: async (tree) => {
            const actor = tree.as(app);
            await touch(actor, '/guest/f', 0o600);
            const acl = aclBytes({ userObj: 6, groupObj: 0, other: 0, mask: 4, users: { [stranger.uid]: 6 } });
            assert.equal(await actor.setxattr('/guest/f', ACCESS, acl), 'OK');
            assert.equal(await tree.as(stranger).open('/guest/f', O_RDONLY), 'EACCES');
            assert.equal(ok(await actor.stat('/guest/f')).mode, 0o640);
            assert.equal(hex(await actor.getxattr('/guest/f', ACCESS)), hex(acl));
            assert.equal(await actor.removexattr('/guest/f', ACCESS), 'OK');
            assert.equal(await actor.getxattr('/guest/f', ACCESS), 'ENODATA');
          },
        },
      },
    },
    {
      name: 'setxattr of an ACL is the owner’s, of a default ACL for directories only, and malformed ones are EINVAL',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/f', 0o644);
        const acl = aclBytes({ userObj: 6, groupObj: 4, other: 4, mask: 4, users: { [stranger.uid]: 4 } });
        assert.equal(await tree.as(stranger).setxattr('/guest/f', ACCESS, acl), 'EPERM');
        assert.equal(await actor.setxattr('/guest/f', DEFAULT, acl), 'EACCES');
        const noMask = aclBytes({ userObj: 6, groupObj: 4, other: 4, users: { [stranger.uid]: 4 } });
        assert.equal(await actor.setxattr('/guest/f', ACCESS, noMask), 'EINVAL');
        assert.equal(await actor.setxattr('/guest/f', ACCESS, acl.subarray(0, 9)), 'EINVAL');
        assert.equal(await actor.setxattr('/guest/f', ACCESS, acl), 'OK');
      },
      cannot: {
        'v9fs-client': {
          because: 'Linux’s 9P client itself answers EINVAL to a default ACL of a file',
          instead: async (tree) => {
            const actor = tree.as(app);
            await touch(actor, '/guest/f', 0o644);
            const acl = aclBytes({ userObj: 6, groupObj: 4, other: 4, mask: 4, users: { [stranger.uid]: 4 } });
            assert.equal(await tree.as(stranger).setxattr('/guest/f', ACCESS, acl), 'EPERM');
            assert.equal(await actor.setxattr('/guest/f', DEFAULT, acl), 'EINVAL');
            assert.equal(await actor.setxattr('/guest/f', ACCESS, acl), 'OK');
          },
        },
      },
    },
    {
      name: 'setxattr with XATTR_CREATE and XATTR_REPLACE minds what is there',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
        const acl = aclBytes({ userObj: 7, groupObj: 5, other: 0 });
        assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_REPLACE), 'ENODATA');
        assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_CREATE), 'OK');
        assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_CREATE), 'EEXIST');
        assert.equal(await actor.setxattr('/guest/d', DEFAULT, acl, XATTR_REPLACE), 'OK');
        assert.deepEqual(await actor.listxattr('/guest/d'), [DEFAULT]);
      },
      cannot: { mount: flagsDropped, agent: flagsByKernel, virtiofs: flagsDropped },
    },
    {
      name: 'create and mkdir inherit a directory’s default ACL instead of the umask',
      spec: plain,
      run: async (tree) => {
        const owner = tree.as(app);
        const directory = await workshop(owner);
        const acl = aclBytes({ userObj: 7, groupObj: 5, other: 0, mask: 7, users: { [stranger.uid]: 6 } });
        assert.equal(await owner.setxattr(directory, DEFAULT, acl), 'OK');
        await touch(owner, `${directory}/f`, 0o666);
        assert.equal(ok(await owner.stat(`${directory}/f`)).mode, 0o660);
        assert.equal(await tree.as(stranger).writeFile(`${directory}/f`, 'granted', O_WRONLY), 'OK');
        assert.equal(await tree.as(visitor).open(`${directory}/f`, O_RDONLY), 'EACCES');
        assert.equal(await owner.mkdir(`${directory}/d`, 0o777), 'OK');
        assert.equal(hex(await owner.getxattr(`${directory}/d`, DEFAULT)), hex(acl));
        assert.equal(ok(await owner.stat(`${directory}/d`)).mode, 0o770);
        assert.equal(await owner.removexattr(directory, DEFAULT), 'OK');
        await touch(owner, `${directory}/g`, 0o666);
        assert.equal(ok(await owner.stat(`${directory}/g`)).mode, 0o644);
      },
      cannot: {
        ninep: {
          because: 'the client applies the umask before it asks, whatever default ACL there is',
          instead: async (tree) => {
            const owner = tree.as(app);
            const directory = await workshop(owner);
            const acl = aclBytes({ userObj: 7, groupObj: 5, other: 0, mask: 7, users: { [stranger.uid]: 6 } });
            assert.equal(await owner.setxattr(directory, DEFAULT, acl), 'OK');
            await touch(owner, `${directory}/f`, 0o666);
            assert.equal(ok(await owner.stat(`${directory}/f`)).mode, 0o640);
            assert.equal(typeof (await tree.as(stranger).open(`${directory}/f`, O_RDONLY)), 'number');
            assert.equal(await tree.as(stranger).open(`${directory}/f`, O_WRONLY), 'EACCES');
            assert.equal(await tree.as(visitor).open(`${directory}/f`, O_RDONLY), 'EACCES');
            assert.equal(await owner.mkdir(`${directory}/d`, 0o777), 'OK');
            assert.equal(hex(await owner.getxattr(`${directory}/d`, DEFAULT)), hex(acl));
            assert.equal(await owner.removexattr(directory, DEFAULT), 'OK');
            await touch(owner, `${directory}/g`, 0o666);
            assert.equal(ok(await owner.stat(`${directory}/g`)).mode, 0o644);
          },
        },
        v9fs: {
          because: MODE_FIRST,
          instead: async (tree) => {
            const owner = tree.as(app);
            const directory = await workshop(owner);
            const acl = aclBytes({ userObj: 7, groupObj: 5, other: 0, mask: 7, users: { [stranger.uid]: 6 } });
            assert.equal(await owner.setxattr(directory, DEFAULT, acl), 'OK');
            await touch(owner, `${directory}/f`, 0o666);
            assert.equal(ok(await owner.stat(`${directory}/f`)).mode, 0o640);
            assert.equal(await tree.as(stranger).open(`${directory}/f`, O_RDONLY), 'EACCES');
            assert.equal(await owner.mkdir(`${directory}/d`, 0o777), 'OK');
            assert.equal(hex(await owner.getxattr(`${directory}/d`, DEFAULT)), hex(acl));
          },
        },
      },
    },
  ],
};
