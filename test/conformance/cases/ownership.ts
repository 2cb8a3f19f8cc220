import assert from 'node:assert/strict';
import { O_CREAT, O_RDONLY, O_WRONLY, RENAME_EXCHANGE } from '../../../src/wire/index.ts';
import type { WorldSpec } from '../../tree/world.ts';
import { aclBytes } from '../acl-bytes.ts';
import { by9p } from '../ninep-ways.ts';
import { app, ok, openStat, plain, policy, postgres, root, stranger, touch, workshop } from '../people.ts';
import type { Topic } from '../suite.ts';

const content = { instance: { id: 'i-0001', report: 'old', sub: { file: 'x' }, empty: {} } };
const report = '/instance/report';
const writable: WorldSpec = { content, policy, rules: [{ path: report, owner: app.uid, mode: 0o644 }] };

export const ownership: Topic = {
  name: 'what was made outside belongs to the outside',
  cases: [
    {
      name: 'chmod, chown, setxattr of an ACL and utimens of it are EPERM, for its owner and for root',
      spec: writable,
      run: async (tree) => {
        for (const who of [root, app]) {
          const actor = tree.as(who);
          assert.equal(await actor.chmod(report, 0o666), 'EPERM');
          assert.equal(await actor.chown(report, who.uid, who.gid), 'EPERM');
          assert.equal(await actor.utimens(report, { sec: 1, nsec: 0 }, { sec: 1, nsec: 0 }), 'EPERM');
          const acl = aclBytes({ userObj: 6, groupObj: 4, other: 4, mask: 4, users: { [stranger.uid]: 4 } });
          assert.equal(await actor.setxattr(report, 'system.posix_acl_access', acl), 'EPERM');
        }
        assert.equal(await tree.as(stranger).chmod(report, 0o666), 'EPERM');
        assert.equal((await tree.look(report))?.mode, 0o644);
      },
    },
    {
      name: 'unlink, rmdir and rename of it are EPERM for root, and EACCES for those who may not write its directory',
      spec: { content, policy },
      run: async (tree) => {
        const asRoot = tree.as(root);
        assert.equal(await asRoot.unlink('/instance/id'), 'EPERM');
        assert.equal(await asRoot.rmdir('/instance/empty'), 'EPERM');
        assert.equal(await asRoot.rename('/instance/id', '/guest/id'), 'EPERM');
        assert.equal(await asRoot.rename('/instance/id', '/instance/new'), 'EPERM');
        assert.equal(await asRoot.rename('/instance/sub', '/guest/sub'), 'EPERM');
        assert.equal(await tree.as(app).unlink('/instance/id'), 'EACCES');
        assert.equal(await tree.as(app).rename('/instance/id', '/guest/id'), 'EACCES');
        assert.equal((await tree.look('/instance/id'))?.text, 'i-0001');
      },
    },
    {
      name: 'rename over it and exchange with it are EPERM',
      spec: { content, policy, rules: [{ path: '/instance', mode: 0o777 }] },
      run: async (tree) => {
        for (const who of [root, app]) {
          const actor = tree.as(who);
          await touch(actor, '/instance/mine');
          assert.equal(await actor.rename('/instance/mine', '/instance/id'), 'EPERM');
          assert.equal(await actor.rename('/instance/mine', '/instance/id', RENAME_EXCHANGE), 'EPERM');
          assert.equal(await actor.rename('/instance/id', '/instance/mine'), 'EPERM');
          assert.equal(await actor.unlink('/instance/mine'), 'OK');
        }
        assert.equal((await tree.look('/instance/id'))?.text, 'i-0001');
      },
      cannot: {
        ...by9p({
          because: 'Trenameat has no flags: the client itself answers EINVAL',
          instead: async (tree) => {
            for (const who of [root, app]) {
              const actor = tree.as(who);
              await touch(actor, '/instance/mine');
              assert.equal(await actor.rename('/instance/mine', '/instance/id'), 'EPERM');
              assert.equal(await actor.rename('/instance/id', '/instance/mine'), 'EPERM');
              assert.equal(await actor.rename('/instance/mine', '/instance/id', RENAME_EXCHANGE), 'EINVAL');
              assert.equal(await actor.unlink('/instance/mine'), 'OK');
            }
            assert.equal((await tree.look('/instance/id'))?.text, 'i-0001');
          },
        }),
      },
    },
    {
      name: 'write by a write bit is seen outside when the call returns',
      spec: writable,
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open(report, O_WRONLY));
        assert.equal(await actor.write(fd, new TextEncoder().encode('new report')), 10);
        assert.equal((await tree.look(report))?.text, 'new report');
        await actor.close(fd);
        assert.equal(await tree.as(stranger).open(report, O_WRONLY), 'EACCES');
        assert.equal(await tree.as(stranger).readText(report), 'new report');
        assert.equal((await openStat(actor, report)).uid, app.uid);
      },
    },
    {
      name: 'write by root’s override is EACCES, by root’s own write bit is granted',
      spec: {
        content,
        policy,
        rules: [
          { path: report, owner: app.uid, mode: 0o644 },
          { path: '/instance/id', mode: 0o644 },
        ],
      },
      run: async (tree) => {
        assert.equal(await tree.as(root).open(report, O_WRONLY), 'EACCES');
        assert.equal(await tree.as(root).truncate(report, 0), 'EACCES');
        assert.equal(await tree.as(root).writeFile('/instance/id', 'i-2'), 'OK');
        assert.equal((await tree.look('/instance/id'))?.text, 'i-2');
      },
    },
    {
      name: 'create in a directory from outside needs a rule that gives the write bit',
      spec: { content, policy, rules: [{ path: '/instance/sub', owner: app.uid, mode: 0o755 }] },
      run: async (tree) => {
        assert.equal(await tree.as(root).open('/instance/new', O_WRONLY | O_CREAT), 'EACCES');
        assert.equal(await tree.as(root).mkdir('/new', 0o755), 'EACCES');
        assert.equal(await tree.as(app).open('/instance/new', O_WRONLY | O_CREAT), 'EACCES');
        assert.equal(await tree.as(app).writeFile('/instance/sub/new', 'mine'), 'OK');
        assert.equal(await tree.as(root).open('/instance/sub/other', O_WRONLY | O_CREAT), 'EACCES');
        assert.deepEqual((({ uid, mode, text }) => [uid, mode, text])((await tree.look('/instance/sub/new'))!), [
          app.uid,
          0o644,
          'mine',
        ]);
        assert.equal(await tree.as(app).unlink('/instance/sub/new'), 'OK');
        assert.equal(await tree.as(app).unlink('/instance/sub/file'), 'EPERM');
      },
    },
    {
      name: 'write by a guest stays when the outside says the same again, under a new rule too, and gives way to a new value',
      spec: writable,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile(report, 'mine'), 'OK');
        await tree.load(writable);
        assert.equal(await actor.readText(report), 'mine');
        await tree.load({ ...writable, rules: [{ path: report, owner: postgres.uid, mode: 0o600 }] });
        assert.equal(await actor.open(report, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(postgres).readText(report), 'mine');
        await tree.load({ ...writable, content: { instance: { report: 'theirs' } } });
        assert.equal(await actor.readText(report), 'theirs');
      },
    },
    {
      name: 'utimens to now by whom may write changes nothing, as touch(1) needs',
      spec: writable,
      run: async (tree) => {
        const before = await openStat(tree.as(stranger), report);
        await tree.pass(50);
        assert.equal(await tree.as(app).utimens(report, 'now', 'now'), 'OK');
        assert.deepEqual((await openStat(tree.as(stranger), report)).mtime, before.mtime);
        assert.equal((await tree.look(report))?.text, 'old');
      },
    },
    {
      name: 'load puts the outside’s file where a guest’s was, and keeps a directory while a guest’s file is in it',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'guest'), 'OK');
        await tree.load({
          ...plain,
          content: { guest: { f: 'outside', box: {} } },
          rules: [
            { path: '/guest/box', mode: 0o777 },
            { path: '/guest/f', mode: 0o444 },
          ],
        });
        assert.equal(await actor.readText('/guest/f'), 'outside');
        assert.equal(await actor.unlink('/guest/f'), 'EPERM');
        await touch(actor, '/guest/box/mine');
        await tree.load(plain);
        assert.equal(ok(await tree.as(root).stat('/guest/box/mine')).uid, app.uid);
        assert.equal(await actor.stat('/guest/box/mine'), 'EACCES');
      },
    },
    {
      name: 'unlink of what one guest user made in /guest is EPERM for another, for the directory is sticky',
      spec: plain,
      run: async (tree) => {
        await touch(tree.as(app), '/guest/f', 0o666);
        assert.equal(await tree.as(stranger).unlink('/guest/f'), 'EPERM');
        assert.equal(await tree.as(stranger).rename('/guest/f', '/guest/g'), 'EPERM');
        const directory = await workshop(tree.as(app));
        await touch(tree.as(app), `${directory}/f`);
        assert.equal(await tree.as(stranger).unlink(`${directory}/f`), 'OK');
        assert.equal(await tree.as(root).unlink('/guest/f'), 'OK');
      },
    },
  ],
};
