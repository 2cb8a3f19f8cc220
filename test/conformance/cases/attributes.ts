import assert from 'node:assert/strict';
import { Symlink } from '../../tree/world.ts';
import type { Driver, Identity } from '../driver.ts';
import { byV9fs } from '../ninep-ways.ts';
import { app, eventually, ok, openStat, plain, policy, postgres, root, sslCert, stranger, touch } from '../people.ts';
import type { Topic } from '../suite.ts';

const WHOLE_SECONDS = 'Linux’s 9P client sets times to whole seconds, from 1970 on';

const octal = (mode: number): string => mode.toString(8).padStart(4, '0');

async function shows(tree: Driver, who: Identity, wanted: Readonly<Record<string, string>>): Promise<void> {
  const actor = tree.as(who);
  for (const [path, line] of Object.entries(wanted)) {
    const { type, mode, uid, gid } = ok(await actor.lstat(path));
    assert.equal(`${type} ${octal(mode)} ${uid} ${gid}`, line, path);
  }
}

export const attributes: Topic = {
  name: 'attributes',
  cases: [
    {
      name: 'stat shows the default owner and mode of every area when no rule speaks',
      spec: plain,
      run: async (tree) => {
        await shows(tree, root, {
          '/': 'directory 0755 0 0',
          '/.changes': 'file 0444 0 0',
          '/instance': 'directory 0755 0 0',
          '/instance/id': 'file 0444 0 0',
          '/network/mac': 'file 0444 0 0',
          '/cloud-init': 'directory 0755 0 0',
          '/cloud-init/meta-data': 'file 0444 0 0',
          '/cloud-init/user-data': 'file 0400 0 0',
          '/cloud-init/vendor-data': 'file 0400 0 0',
          '/secrets': 'directory 0711 0 0',
          '/secrets/db-password': 'file 0400 0 0',
          '/guest': 'directory 1777 0 0',
          '/guest/.agent': 'directory 0700 0 0',
          '/other': 'directory 0700 0 0',
          '/other/thing': 'file 0400 0 0',
        });
      },
    },
    {
      name: 'stat shows each key of the most specific rule that sets it',
      spec: {
        content: { secrets: { db: { password: 'a', certificate: 'b' }, key: 'c' }, user: { link: new Symlink('x') } },
        policy,
        rules: [
          { path: '/secrets/**', owner: postgres.uid, mode: 0o440 },
          { path: '/secrets/db/password', mode: 0o400 },
          { path: '/secrets/db/*', group: sslCert },
          { path: '/user/link', owner: app.uid, mode: 0o400 },
        ],
      },
      run: async (tree) => {
        await shows(tree, root, {
          '/secrets/key': 'file 0440 114 0',
          '/secrets/db': 'directory 0550 114 0',
          '/secrets/db/certificate': 'file 0440 114 115',
          '/secrets/db/password': 'file 0400 114 115',
          '/user/link': 'symlink 0777 1000 0',
        });
      },
    },
    {
      name: 'stat shows the exact size and one link',
      spec: { content: { instance: { empty: '', three: 'abc', big: new Uint8Array(1024 * 1024) } }, policy },
      run: async (tree) => {
        const actor = tree.as(stranger);
        for (const [name, size] of [
          ['empty', 0],
          ['three', 3],
          ['big', 1024 * 1024],
        ] as const) {
          const stat = ok(await actor.stat(`/instance/${name}`));
          assert.deepEqual([stat.size, stat.nlink], [size, 1], name);
        }
      },
    },
    {
      name: 'stat keeps a file’s number over new values and new rules, and never gives it to another',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(root);
        const { ino } = await openStat(actor, '/instance/id');
        await tree.load({ ...plain, content: { instance: { id: 'i-0002' } } });
        assert.equal((await openStat(actor, '/instance/id')).ino, ino);
        await tree.load({
          ...plain,
          content: { instance: { id: 'i-0002' } },
          rules: [{ path: '/instance/id', mode: 0o400 }],
        });
        assert.equal((await openStat(actor, '/instance/id')).ino, ino);
        await tree.load({ ...plain, content: { instance: {} } });
        await tree.load(plain);
        await eventually(async () => assert.equal(await actor.readText('/instance/id'), 'i-0001'));
        assert.notEqual((await openStat(actor, '/instance/id')).ino, ino);
      },
    },
    {
      name: 'stat moves mtime when bytes change outside, and not when they are loaded again or attributes change',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(root);
        const before = await openStat(actor, '/instance/id');
        await tree.pass(50);
        await tree.load({ ...plain, rules: [{ path: '/instance/id', mode: 0o440 }] });
        const ruled = await openStat(actor, '/instance/id');
        assert.deepEqual([ruled.mode, ruled.mtime], [0o440, before.mtime]);
        assert.notDeepEqual(ruled.ctime, before.ctime);
        await tree.load({
          ...plain,
          content: { instance: { id: 'i-0002' } },
          rules: [{ path: '/instance/id', mode: 0o440 }],
        });
        assert.notDeepEqual((await openStat(actor, '/instance/id')).mtime, before.mtime);
      },
    },
    {
      name: 'stat moves a directory’s mtime when a name comes or goes',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
        const before = ok(await actor.stat('/guest/d'));
        await tree.pass(50);
        await touch(actor, '/guest/d/f');
        const made = ok(await actor.stat('/guest/d'));
        assert.notDeepEqual(made.mtime, before.mtime);
        await tree.pass(50);
        assert.equal(await actor.unlink('/guest/d/f'), 'OK');
        assert.notDeepEqual(ok(await actor.stat('/guest/d')).mtime, made.mtime);
      },
    },
    {
      name: 'utimens sets what the owner says, now needs write permission only, and anything else is EPERM',
      spec: plain,
      run: async (tree) => {
        const owner = tree.as(app);
        await touch(owner, '/guest/f', 0o644);
        const atime = { sec: 1_000_000_000, nsec: 123_456_789 };
        const mtime = { sec: 1_600_000_000, nsec: 1 };
        assert.equal(await owner.utimens('/guest/f', atime, mtime), 'OK');
        const stat = ok(await owner.stat('/guest/f'));
        assert.deepEqual([stat.atime, stat.mtime], [atime, mtime]);
        assert.equal(await owner.utimens('/guest/f', 'omit', { sec: 5, nsec: 6 }), 'OK');
        assert.deepEqual(ok(await owner.stat('/guest/f')).atime, atime);
        assert.equal(await tree.as(stranger).utimens('/guest/f', atime, mtime), 'EPERM');
        assert.equal(await tree.as(stranger).utimens('/guest/f', 'now', 'now'), 'EACCES');
        assert.equal(await owner.chmod('/guest/f', 0o666), 'OK');
        assert.equal(await tree.as(stranger).utimens('/guest/f', 'now', 'now'), 'OK');
        assert.equal(await tree.as(stranger).utimens('/guest/f', 'now', 'omit'), 'EPERM');
        assert.equal(await tree.as(stranger).utimens('/guest/f', 'omit', 'now'), 'EPERM');
        assert.notEqual(ok(await owner.stat('/guest/f')).mtime.sec, 5);
      },
      cannot: byV9fs({
        because: WHOLE_SECONDS,
        instead: async (tree) => {
          const owner = tree.as(app);
          await touch(owner, '/guest/f', 0o644);
          const time = { sec: 1_000_000_000, nsec: 123_456_789 };
          assert.equal(await owner.utimens('/guest/f', time, time), 'OK');
          assert.deepEqual(ok(await owner.stat('/guest/f')).mtime, { sec: time.sec, nsec: 0 });
          assert.equal(await tree.as(stranger).utimens('/guest/f', time, time), 'EPERM');
          assert.equal(await tree.as(stranger).utimens('/guest/f', 'now', 'now'), 'EACCES');
          assert.equal(await owner.chmod('/guest/f', 0o666), 'OK');
          assert.equal(await tree.as(stranger).utimens('/guest/f', 'now', 'now'), 'OK');
          assert.notEqual(ok(await owner.stat('/guest/f')).mtime.sec, time.sec);
        },
      }),
    },
    {
      name: 'utimens keeps times before 1970',
      spec: plain,
      run: async (tree) => {
        const owner = tree.as(app);
        await touch(owner, '/guest/f');
        const old = { sec: -86_400, nsec: 500 };
        assert.equal(await owner.utimens('/guest/f', old, old), 'OK');
        assert.deepEqual(ok(await owner.stat('/guest/f')).mtime, old);
      },
      cannot: byV9fs({
        because: WHOLE_SECONDS,
        instead: async (tree) => {
          const owner = tree.as(app);
          await touch(owner, '/guest/f');
          const old = { sec: -86_400, nsec: 500 };
          assert.equal(await owner.utimens('/guest/f', old, old), 'OK');
          assert.deepEqual(ok(await owner.stat('/guest/f')).mtime, { sec: 0, nsec: 0 });
        },
      }),
    },
  ],
};
