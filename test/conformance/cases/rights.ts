import assert from 'node:assert/strict';
import { O_CREAT, O_WRONLY } from '../../../src/wire/index.ts';
import type { Actor } from '../driver.ts';
import { by9p } from '../ninep-ways.ts';
import { app, appInSslCert, bytes, ok, plain, root, sslCert, stranger, touch, workshop } from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const modeOf = async (actor: Actor, path: string): Promise<number> => ok(await actor.stat(path)).mode;

const primaryGroupOnly: Cannot = {
  because: 'a FUSE request carries the primary gid alone, and nobody has checked the others before us',
  instead: async (tree) => {
    const actor = tree.as(appInSslCert);
    await touch(actor, '/guest/f');
    assert.equal(await actor.chown('/guest/f', -1, sslCert), 'EPERM');
  },
};

const NO_GROUPS = '9P tells of no groups: set-group-id and a group of their own are root’s to give';

export const rights: Topic = {
  name: 'modes and owners of what guests made',
  cases: [
    {
      name: 'chmod is the owner’s and root’s',
      spec: plain,
      run: async (tree) => {
        await touch(tree.as(app), '/guest/f');
        assert.equal(await tree.as(stranger).chmod('/guest/f', 0o666), 'EPERM');
        assert.equal(await tree.as(app).chmod('/guest/f', 0o640), 'OK');
        assert.equal(await modeOf(tree.as(app), '/guest/f'), 0o640);
        assert.equal(await tree.as(root).chmod('/guest/f', 0o604), 'OK');
        assert.equal((await tree.look('/guest/f'))?.mode, 0o604);
      },
    },
    {
      name: 'chmod moves ctime and leaves mtime',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/f');
        const before = ok(await actor.stat('/guest/f'));
        await tree.pass(50);
        assert.equal(await actor.chmod('/guest/f', 0o600), 'OK');
        const after = ok(await actor.stat('/guest/f'));
        assert.deepEqual(after.mtime, before.mtime);
        assert.notDeepEqual(after.ctime, before.ctime);
      },
    },
    {
      name: 'chown gives a file away for root only',
      spec: plain,
      run: async (tree) => {
        await touch(tree.as(app), '/guest/f');
        assert.equal(await tree.as(app).chown('/guest/f', stranger.uid, -1), 'EPERM');
        assert.equal(await tree.as(stranger).chown('/guest/f', stranger.uid, -1), 'EPERM');
        assert.equal(await tree.as(app).chown('/guest/f', -1, stranger.gid), 'EPERM');
        assert.equal(await tree.as(app).chown('/guest/f', app.uid, app.gid), 'OK');
        assert.equal(await tree.as(root).chown('/guest/f', stranger.uid, stranger.gid), 'OK');
        const stat = ok(await tree.as(root).stat('/guest/f'));
        assert.deepEqual([stat.uid, stat.gid], [stranger.uid, stranger.gid]);
        assert.equal(await tree.as(app).open('/guest/f', O_WRONLY), 'EACCES');
      },
    },
    {
      name: 'chown to a supplementary group of the owner’s is granted',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(appInSslCert);
        await touch(actor, '/guest/f');
        assert.equal(await actor.chown('/guest/f', -1, sslCert), 'OK');
        assert.equal(ok(await actor.stat('/guest/f')).gid, sslCert);
      },
      cannot: {
        session: primaryGroupOnly,
        ...by9p({ because: NO_GROUPS, instead: primaryGroupOnly.instead }),
        mount: primaryGroupOnly,
      },
    },
    {
      name: 'chown takes set-user-id and set-group-id away',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/f');
        assert.equal(await actor.chmod('/guest/f', 0o6755), 'OK');
        assert.equal(await modeOf(actor, '/guest/f'), 0o6755);
        assert.equal(await actor.chown('/guest/f', -1, app.gid), 'OK');
        assert.equal(await modeOf(actor, '/guest/f'), 0o755);
      },
      cannot: {
        ...by9p({
          because: NO_GROUPS,
          instead: async (tree) => {
            const actor = tree.as(app);
            await touch(actor, '/guest/f');
            assert.equal(await actor.chmod('/guest/f', 0o6755), 'OK');
            assert.equal(await modeOf(actor, '/guest/f'), 0o4755);
            assert.equal(await tree.as(root).chmod('/guest/f', 0o6755), 'OK');
            assert.equal(await actor.chown('/guest/f', -1, app.gid), 'OK');
            assert.equal(await modeOf(actor, '/guest/f'), 0o755);
          },
        }),
      },
    },
    {
      name: 'write by another than root takes set-user-id and set-group-id away, truncate too',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        for (const path of ['/guest/a', '/guest/b']) {
          await touch(actor, path);
          assert.equal(await actor.chmod(path, 0o6777), 'OK');
        }
        const fd = ok(await tree.as(app).open('/guest/a', O_WRONLY));
        assert.equal(typeof fd, 'number');
        const writer = tree.as(stranger);
        const other = ok(await writer.open('/guest/a', O_WRONLY));
        assert.equal(await writer.write(other, bytes('x')), 1);
        assert.equal(await modeOf(actor, '/guest/a'), 0o777);
        assert.equal(await writer.truncate('/guest/b', 5), 'OK');
        assert.equal(await modeOf(actor, '/guest/b'), 0o777);
      },
    },
    {
      name: 'chmod drops set-group-id when the owner is not in the file’s group',
      spec: plain,
      run: async (tree) => {
        await touch(tree.as(app), '/guest/f');
        assert.equal(await tree.as(root).chown('/guest/f', app.uid, stranger.gid), 'OK');
        assert.equal(await tree.as(app).chmod('/guest/f', 0o2755), 'OK');
        assert.equal(await modeOf(tree.as(app), '/guest/f'), 0o755);
        assert.equal(await tree.as(app).mkdir('/guest/d', 0o755), 'OK');
        assert.equal(await tree.as(root).chown('/guest/d', app.uid, stranger.gid), 'OK');
        assert.equal(await tree.as(app).chmod('/guest/d', 0o2755), 'OK');
        assert.equal(await modeOf(tree.as(app), '/guest/d'), 0o755);
      },
    },
    {
      name: 'create in a set-group-id directory takes its group, and mkdir its bit as well',
      spec: plain,
      run: async (tree) => {
        const directory = await workshop(tree.as(stranger));
        assert.equal(await tree.as(stranger).chmod(directory, 0o2777), 'OK');
        const actor = tree.as(app);
        await touch(actor, `${directory}/f`);
        assert.equal(await actor.mkdir(`${directory}/d`, 0o755), 'OK');
        const file = ok(await actor.stat(`${directory}/f`));
        const sub = ok(await actor.stat(`${directory}/d`));
        assert.deepEqual([file.uid, file.gid, file.mode], [app.uid, stranger.gid, 0o644]);
        assert.deepEqual([sub.uid, sub.gid, sub.mode], [app.uid, stranger.gid, 0o2755]);
      },
      cannot: {
        ...by9p({
          because: NO_GROUPS,
          instead: async (tree) => {
            const directory = await workshop(tree.as(stranger));
            assert.equal(await tree.as(stranger).chmod(directory, 0o2777), 'OK');
            assert.equal(await modeOf(tree.as(stranger), directory), 0o777);
            assert.equal(await tree.as(root).chmod(directory, 0o2777), 'OK');
            const actor = tree.as(app);
            await touch(actor, `${directory}/f`);
            assert.equal(await actor.mkdir(`${directory}/d`, 0o755), 'OK');
            assert.equal(ok(await actor.stat(`${directory}/f`)).gid, stranger.gid);
            const sub = ok(await actor.stat(`${directory}/d`));
            assert.deepEqual([sub.gid, sub.mode], [stranger.gid, 0o2755]);
          },
        }),
      },
    },
    {
      name: 'unlink and rename in a sticky directory are for the file’s and the directory’s owner and root',
      spec: plain,
      run: async (tree) => {
        const owner = tree.as(stranger);
        const directory = await workshop(owner, '/guest/w', 0o1777);
        for (const name of ['a', 'b', 'c']) await touch(tree.as(app), `${directory}/${name}`, 0o666);
        const other = tree.as({ uid: 3000, gid: 3000, groups: [] });
        assert.equal(await other.unlink(`${directory}/a`), 'EPERM');
        assert.equal(await other.rename(`${directory}/a`, `${directory}/z`), 'EPERM');
        await touch(other, `${directory}/mine`);
        assert.equal(await other.rename(`${directory}/mine`, `${directory}/a`), 'EPERM');
        assert.equal(await tree.as(app).unlink(`${directory}/a`), 'OK');
        assert.equal(await owner.unlink(`${directory}/b`), 'OK');
        assert.equal(await tree.as(root).unlink(`${directory}/c`), 'OK');
      },
    },
    {
      name: 'chmod of a symlink’s target follows it, chown of the link does not',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const directory = await workshop(actor);
        await touch(actor, `${directory}/f`);
        assert.equal(await actor.symlink('f', `${directory}/l`), 'OK');
        assert.equal(await actor.chmod(`${directory}/l`, 0o600), 'OK');
        assert.equal(await modeOf(actor, `${directory}/f`), 0o600);
        assert.equal(await tree.as(root).chown(`${directory}/l`, stranger.uid, -1), 'OK');
        assert.equal(ok(await actor.lstat(`${directory}/l`)).uid, stranger.uid);
        assert.equal(ok(await actor.stat(`${directory}/l`)).uid, app.uid);
      },
    },
    {
      name: 'create takes the special bits that were asked for',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        await actor.close(ok(await actor.open('/guest/f', O_WRONLY | O_CREAT, 0o4755)));
        assert.equal(await modeOf(actor, '/guest/f'), 0o4755);
        assert.equal(await actor.mkdir('/guest/d', 0o1777), 'OK');
        assert.equal(await modeOf(actor, '/guest/d'), 0o1755);
      },
    },
  ],
};
