import assert from 'node:assert/strict';
import { O_RDONLY, O_RDWR, O_WRONLY, R_OK, W_OK } from '../../../src/wire/index.ts';
import type { WorldSpec } from '../../tree/world.ts';
import { byV9fs } from '../ninep-ways.ts';
import {
  app,
  appInSslCert,
  ok,
  policy,
  postgres,
  root,
  sslCert,
  staff,
  stranger,
  strangerInSslCert,
  visitor,
  visitorInStaff,
} from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const content = { secrets: { 'db-password': 'hunter2', 'tls.key': 'KEY' } };
const key = '/secrets/tls.key';

const groupOnly: WorldSpec = { content, policy, rules: [{ path: key, group: sslCert, mode: 0o440 }] };
const staffOnly: WorldSpec = { content, policy, rules: [{ path: key, group: staff, mode: 0o440 }] };

const primaryGroupOnly: Cannot = {
  because: 'a FUSE request carries the primary gid alone, and nobody has checked the others before us',
  instead: async (tree) => assert.equal(await tree.as(visitorInStaff).readText(key), 'EACCES'),
};

const rootOverrides: Cannot = {
  because: 'the guest kernel answers access(2), and lets root override; the open is refused outside',
  instead: async (tree) => {
    assert.equal(await tree.as(root).access(key, W_OK), 'OK');
    assert.equal(await tree.as(root).open(key, O_WRONLY), 'EACCES');
  },
};

const NO_GROUPS = '9P tells of no groups: nobody is in one whose members the policy does not list';

const notTheirs: Cannot = {
  because: NO_GROUPS,
  instead: async (tree) => assert.equal(await tree.as(visitor).readText(key), 'EACCES'),
};

const ownGroups: Cannot = {
  because: 'the guest kernel refuses by its own groups before we are asked',
  instead: async (tree) => assert.equal(await tree.as(app).readText(key), 'EACCES'),
};

const NO_ACL = 'Linux’s 9P client decides by the mode first, and looks at ACLs with access=client alone';

export const permissions: Topic = {
  name: 'permissions',
  cases: [
    {
      name: 'open of a 0400 file is its owner’s and root’s, and nobody else’s',
      spec: { content, policy, rules: [{ path: '/secrets/db-password', owner: postgres.uid, mode: 0o400 }] },
      run: async (tree) => {
        assert.equal(await tree.as(postgres).readText('/secrets/db-password'), 'hunter2');
        assert.equal(await tree.as(root).readText('/secrets/db-password'), 'hunter2');
        for (const who of [app, stranger, visitor])
          assert.equal(await tree.as(who).open('/secrets/db-password', O_RDONLY), 'EACCES');
        for (const who of [postgres, app, root])
          assert.equal(await tree.as(who).open('/secrets/db-password', O_WRONLY), 'EACCES');
      },
    },
    {
      name: 'open takes the owner’s class alone when the owner has fewer rights than the others',
      spec: { content, policy, rules: [{ path: key, owner: app.uid, group: sslCert, mode: 0o044 }] },
      run: async (tree) => {
        assert.equal(await tree.as(app).open(key, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(stranger).readText(key), 'KEY');
      },
    },
    {
      name: 'open for reading and writing needs both',
      spec: { content, policy, rules: [{ path: key, owner: app.uid, mode: 0o604 }] },
      run: async (tree) => {
        assert.equal(typeof (await tree.as(app).open(key, O_RDWR)), 'number');
        assert.equal(await tree.as(stranger).open(key, O_RDWR), 'EACCES');
        assert.equal(typeof (await tree.as(stranger).open(key, O_RDONLY)), 'number');
      },
    },
    {
      name: 'open by the primary group works everywhere',
      spec: { content, policy, rules: [{ path: key, group: visitor.gid, mode: 0o440 }] },
      run: async (tree) => {
        assert.equal(await tree.as(visitor).readText(key), 'KEY');
        assert.equal(await tree.as(stranger).readText(key), 'EACCES');
      },
      cannot: { ninep: notTheirs, ...byV9fs(notTheirs) },
    },
    {
      name: 'open by a group with listed members is theirs',
      spec: groupOnly,
      run: async (tree) => {
        assert.equal(await tree.as(appInSslCert).readText(key), 'KEY');
        assert.equal(await tree.as(stranger).readText(key), 'EACCES');
        assert.equal(await tree.as(root).readText(key), 'KEY');
      },
    },
    {
      name: 'open is refused to a process in the group whose uid the list does not name',
      spec: groupOnly,
      run: async (tree) => assert.equal(await tree.as(strangerInSslCert).readText(key), 'EACCES'),
    },
    {
      name: 'open is granted to a listed member whose process is not in the group',
      spec: groupOnly,
      run: async (tree) => assert.equal(await tree.as(app).readText(key), 'KEY'),
      cannot: {
        virtiofs: ownGroups,
        ...byV9fs(ownGroups),
      },
    },
    {
      name: 'open by a group without listed members is for those that the kernel puts in it',
      spec: staffOnly,
      run: async (tree) => {
        assert.equal(await tree.as(visitorInStaff).readText(key), 'KEY');
        assert.equal(await tree.as(visitor).readText(key), 'EACCES');
      },
      cannot: {
        session: primaryGroupOnly,
        ninep: { because: NO_GROUPS, instead: primaryGroupOnly.instead },
        mount: primaryGroupOnly,
        ...byV9fs({ because: NO_GROUPS, instead: primaryGroupOnly.instead }),
      },
    },
    {
      name: 'open is granted to whom an ACL entry of a rule names, and to nobody else',
      spec: {
        content,
        policy,
        rules: [{ path: key, mode: 0o400, acl: [{ tag: 'user', id: postgres.uid, permissions: 4 }] }],
      },
      run: async (tree) => {
        assert.equal(await tree.as(postgres).readText(key), 'KEY');
        assert.equal(await tree.as(postgres).open(key, O_WRONLY), 'EACCES');
        for (const who of [app, stranger]) assert.equal(await tree.as(who).readText(key), 'EACCES');
        assert.equal(ok(await tree.as(root).stat(key)).mode, 0o440);
      },
      cannot: {
        v9fs: {
          because: NO_ACL,
          instead: async (tree) => {
            for (const who of [postgres, app, stranger]) assert.equal(await tree.as(who).readText(key), 'EACCES');
          },
        },
      },
    },
    {
      name: 'open is refused to whom an ACL entry gives nothing, though all others may',
      spec: {
        content,
        policy,
        rules: [{ path: key, mode: 0o444, acl: [{ tag: 'user', id: app.uid, permissions: 0 }] }],
      },
      run: async (tree) => {
        assert.equal(await tree.as(app).readText(key), 'EACCES');
        assert.equal(await tree.as(stranger).readText(key), 'KEY');
      },
    },
    {
      name: 'open is granted by an ACL entry for a group',
      spec: {
        content,
        policy,
        rules: [{ path: key, mode: 0o400, acl: [{ tag: 'group', id: sslCert, permissions: 4 }] }],
      },
      run: async (tree) => {
        assert.equal(await tree.as(appInSslCert).readText(key), 'KEY');
        assert.equal(await tree.as(strangerInSslCert).readText(key), 'EACCES');
        assert.equal(await tree.as(stranger).readText(key), 'EACCES');
      },
      cannot: {
        v9fs: {
          because: NO_ACL,
          instead: async (tree) => {
            for (const who of [appInSslCert, stranger]) assert.equal(await tree.as(who).readText(key), 'EACCES');
          },
        },
      },
    },
    {
      name: 'open by root reads what has no permission bit, as on a disk',
      spec: { content, policy, rules: [{ path: key, mode: 0 }] },
      run: async (tree) => {
        assert.equal(await tree.as(root).readText(key), 'KEY');
        assert.equal(await tree.as(root).open(key, O_WRONLY), 'EACCES');
        assert.equal(await tree.as(app).open(key, O_RDONLY), 'EACCES');
      },
    },
    {
      name: 'access agrees with open, reading',
      spec: {
        content,
        policy,
        rules: [
          { path: '/secrets/db-password', owner: postgres.uid, mode: 0o600 },
          { path: key, mode: 0o400, acl: [{ tag: 'user', id: app.uid, permissions: 4 }] },
        ],
      },
      run: async (tree) => {
        for (const who of [root, postgres, app, stranger]) {
          const actor = tree.as(who);
          for (const path of ['/secrets/db-password', key]) {
            const opened = await actor.open(path, O_RDONLY);
            assert.equal(
              await actor.access(path, R_OK),
              typeof opened === 'number' ? 'OK' : opened,
              `${who.uid} ${path}`,
            );
          }
        }
        assert.equal(await tree.as(postgres).access('/secrets/db-password', R_OK | W_OK), 'OK');
        assert.equal(await tree.as(stranger).access(key, W_OK), 'EACCES');
      },
      cannot: {
        ninep: {
          because: '9P has no message for access(2): the kernel answers by the mode, and knows of no ACL',
          instead: async (tree) => {
            for (const who of [root, postgres, app, stranger]) {
              const actor = tree.as(who);
              const opened = await actor.open('/secrets/db-password', O_RDONLY);
              const verdict = await actor.access('/secrets/db-password', R_OK);
              assert.equal(verdict, typeof opened === 'number' ? 'OK' : opened, `${who.uid}`);
            }
            assert.equal(await tree.as(app).readText(key), 'KEY');
            assert.equal(await tree.as(app).access(key, R_OK), 'EACCES');
          },
        },
      },
    },
    {
      name: 'access tells root that it may not write what no write bit gives it',
      spec: { content, policy },
      run: async (tree) => assert.equal(await tree.as(root).access(key, W_OK), 'EACCES'),
      cannot: { ninep: rootOverrides, virtiofs: rootOverrides, ...byV9fs(rootOverrides) },
    },
    {
      name: 'open follows a rule that changes',
      spec: { content, policy, rules: [{ path: key, owner: app.uid, mode: 0o400 }] },
      run: async (tree) => {
        assert.equal(await tree.as(app).readText(key), 'KEY');
        await tree.load({ content, policy, rules: [{ path: key, owner: stranger.uid, mode: 0o400 }] });
        assert.equal(await tree.as(app).readText(key), 'EACCES');
        assert.equal(await tree.as(stranger).readText(key), 'KEY');
      },
    },
    {
      name: 'read by a handle is refused when a new rule takes the right away',
      spec: { content, policy, rules: [{ path: key, owner: app.uid, mode: 0o400 }] },
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open(key, O_RDONLY));
        assert.equal(ok(await actor.pread(fd, 1, 0)).length, 1);
        await tree.load({ content, policy, rules: [{ path: key, owner: stranger.uid, mode: 0o400 }] });
        assert.equal(await actor.pread(fd, 1, 0), 'EACCES');
      },
    },
  ],
};
