import assert from 'node:assert/strict';
import { O_RDWR, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT } from '../../../src/wire/index.ts';
import { by9p } from '../ninep-ways.ts';
import { app, ok, plain, root, stranger, textOf, touch, workshop } from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const noFlags: Cannot = {
  because: 'Trenameat has no flags: the client itself answers EINVAL',
  instead: async (tree) => {
    const actor = tree.as(app);
    for (const name of ['a', 'b']) assert.equal(await actor.writeFile(`/guest/${name}`, name), 'OK');
    // That a name is there already, a kernel finds out before.
    assert.equal(await actor.rename('/guest/a', '/guest/b', RENAME_NOREPLACE), 'EEXIST');
    assert.equal(await actor.rename('/guest/a', '/guest/c', RENAME_NOREPLACE), 'EINVAL');
    assert.equal(await actor.rename('/guest/a', '/guest/b', RENAME_EXCHANGE), 'EINVAL');
    assert.deepEqual([await actor.readText('/guest/a'), await actor.readText('/guest/b')], ['a', 'b']);
  },
};

export const renames: Topic = {
  name: 'rename',
  cases: [
    {
      name: 'rename moves a file with its number, bytes and open handles',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const directory = await workshop(actor);
        assert.equal(await actor.writeFile('/guest/f', 'abc'), 'OK');
        const { ino } = ok(await actor.stat('/guest/f'));
        const fd = ok(await actor.open('/guest/f', O_RDWR));
        assert.equal(await actor.rename('/guest/f', `${directory}/g`), 'OK');
        assert.equal(await actor.stat('/guest/f'), 'ENOENT');
        assert.equal(ok(await actor.stat(`${directory}/g`)).ino, ino);
        assert.equal(await actor.pwrite(fd, new TextEncoder().encode('X'), 0), 1);
        assert.equal(await actor.readText(`${directory}/g`), 'Xbc');
        assert.equal((await tree.look('/guest/w/g'))?.text, 'Xbc');
      },
    },
    {
      name: 'rename over a file replaces it at once, and who had it open keeps it',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'old'), 'OK');
        assert.equal(await actor.writeFile('/guest/f.tmp', 'new value'), 'OK');
        const fd = ok(await actor.open('/guest/f', O_RDWR));
        assert.equal(await actor.rename('/guest/f.tmp', '/guest/f'), 'OK');
        assert.equal(await actor.readText('/guest/f'), 'new value');
        assert.equal(await actor.stat('/guest/f.tmp'), 'ENOENT');
        assert.equal(await textOf(actor, fd), 'old');
        assert.equal(ok(await actor.fstat(fd)).nlink, 0);
      },
    },
    {
      name: 'rename of a directory takes what is in it along',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.mkdir('/guest/a', 0o755), 'OK');
        assert.equal(await actor.mkdir('/guest/a/b', 0o755), 'OK');
        assert.equal(await actor.writeFile('/guest/a/b/f', 'deep'), 'OK');
        assert.equal(await actor.rename('/guest/a', '/guest/z'), 'OK');
        assert.equal(await actor.readText('/guest/z/b/f'), 'deep');
        assert.equal(await actor.stat('/guest/a'), 'ENOENT');
        assert.equal(ok(await actor.stat('/guest/z/b/..')).ino, ok(await actor.stat('/guest/z')).ino);
      },
    },
    {
      name: 'rename answers as POSIX has it for the wrong kinds, into itself, and over what is not empty',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        for (const name of ['a', 'b', 'full']) assert.equal(await actor.mkdir(`/guest/${name}`, 0o755), 'OK');
        await touch(actor, '/guest/full/f');
        await touch(actor, '/guest/file');
        assert.equal(await actor.rename('/guest/file', '/guest/a'), 'EISDIR');
        assert.equal(await actor.rename('/guest/a', '/guest/file'), 'ENOTDIR');
        assert.equal(await actor.rename('/guest/a', '/guest/full'), 'ENOTEMPTY');
        assert.equal(await actor.rename('/guest/a', '/guest/a/inside'), 'EINVAL');
        assert.equal(await actor.rename('/guest/none', '/guest/x'), 'ENOENT');
        assert.equal(await actor.rename('/guest/a', '/guest/none/x'), 'ENOENT');
        assert.equal(await actor.rename('/guest/a', '/guest/b'), 'OK');
        assert.equal(await actor.rename('/guest/file', '/guest/file'), 'OK');
        assert.equal(await actor.stat('/guest/a'), 'ENOENT');
      },
    },
    {
      name: 'rename with RENAME_NOREPLACE leaves what is there',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/a', 'a'), 'OK');
        assert.equal(await actor.writeFile('/guest/b', 'b'), 'OK');
        assert.equal(await actor.rename('/guest/a', '/guest/b', RENAME_NOREPLACE), 'EEXIST');
        assert.equal(await actor.rename('/guest/a', '/guest/c', RENAME_NOREPLACE), 'OK');
        assert.deepEqual([await actor.readText('/guest/b'), await actor.readText('/guest/c')], ['b', 'a']);
      },
      cannot: { ...by9p(noFlags) },
    },
    {
      name: 'rename with RENAME_EXCHANGE swaps a file and a directory',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/a', 'a'), 'OK');
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
        await touch(actor, '/guest/d/f');
        assert.equal(await actor.rename('/guest/a', '/guest/d', RENAME_EXCHANGE), 'OK');
        assert.equal(await actor.readText('/guest/d'), 'a');
        assert.equal(ok(await actor.stat('/guest/a/f')).type, 'file');
        assert.equal(await actor.rename('/guest/a', '/guest/none', RENAME_EXCHANGE), 'ENOENT');
        assert.equal(await actor.rename('/guest/a', '/guest/d', RENAME_EXCHANGE | RENAME_NOREPLACE), 'EINVAL');
      },
      cannot: { ...by9p(noFlags) },
    },
    {
      name: 'rename with RENAME_WHITEOUT is EINVAL',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(root);
        await touch(actor, '/guest/a');
        assert.equal(await actor.rename('/guest/a', '/guest/b', RENAME_WHITEOUT), 'EINVAL');
        assert.equal(ok(await actor.stat('/guest/a')).type, 'file');
      },
    },
    {
      name: 'rename needs write permission on both directories, and on a directory that gets another parent',
      spec: plain,
      run: async (tree) => {
        const owner = tree.as(stranger);
        const actor = tree.as(app);
        assert.equal(await owner.mkdir('/guest/theirs', 0o755), 'OK');
        await touch(owner, '/guest/theirs/f');
        const directory = await workshop(actor);
        await touch(actor, `${directory}/f`);
        assert.equal(await actor.rename(`${directory}/f`, '/guest/theirs/g'), 'EACCES');
        assert.equal(await actor.rename('/guest/theirs/f', `${directory}/g`), 'EACCES');
        assert.equal(await actor.mkdir('/guest/d', 0o555), 'OK');
        assert.equal(await actor.rename('/guest/d', `${directory}/d`), 'EACCES');
        assert.equal(await actor.rename('/guest/d', '/guest/e'), 'OK');
      },
    },
    {
      name: 'rename moves the times of both directories and the ctime of the file',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        for (const name of ['a', 'b']) assert.equal(await actor.mkdir(`/guest/${name}`, 0o755), 'OK');
        await touch(actor, '/guest/a/f');
        const times = async () => {
          const [a, b] = [ok(await actor.stat('/guest/a')), ok(await actor.stat('/guest/b'))];
          return [a.mtime, b.mtime];
        };
        const before = await times();
        const file = ok(await actor.stat('/guest/a/f'));
        await tree.pass(50);
        assert.equal(await actor.rename('/guest/a/f', '/guest/b/f'), 'OK');
        const after = await times();
        assert.notDeepEqual(after[0], before[0]);
        assert.notDeepEqual(after[1], before[1]);
        const moved = ok(await actor.stat('/guest/b/f'));
        assert.deepEqual(moved.mtime, file.mtime);
        assert.notDeepEqual(moved.ctime, file.ctime);
      },
    },
  ],
};
