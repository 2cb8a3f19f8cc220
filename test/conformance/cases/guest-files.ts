import assert from 'node:assert/strict';
import {
  O_APPEND,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  X_OK,
} from '../../../src/wire/index.ts';
import { byV9fs } from '../ninep-ways.ts';
import { app, bytes, O_PATH, ok, plain, root, stranger, textOf, touch, workshop } from '../people.ts';
import type { Topic } from '../suite.ts';

const MiB = 1024 * 1024;

export const guestFiles: Topic = {
  name: 'files and directories under /guest',
  cases: [
    {
      name: 'create gives the creator’s ids and the mode that was asked for, less the umask',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/a', 0o666);
        assert.equal(await actor.umask(0o077), 'OK');
        await touch(actor, '/guest/b', 0o666);
        assert.equal(await actor.mkdir('/guest/d', 0o777), 'OK');
        const shown = async (path: string) => {
          const { mode, uid, gid, size, nlink } = ok(await actor.stat(path));
          return [mode, uid, gid, size, nlink];
        };
        assert.deepEqual(await shown('/guest/a'), [0o644, 1000, 1000, 0, 1]);
        assert.deepEqual(await shown('/guest/b'), [0o600, 1000, 1000, 0, 1]);
        assert.deepEqual((await shown('/guest/d')).slice(0, 3), [0o700, 1000, 1000]);
      },
    },
    {
      name: 'create with O_EXCL answers EEXIST when the name is there, without it opens what is there',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'there'), 'OK');
        assert.equal(await actor.open('/guest/f', O_WRONLY | O_CREAT | O_EXCL), 'EEXIST');
        assert.equal(await actor.symlink('nowhere', '/guest/l'), 'OK');
        assert.equal(await actor.open('/guest/l', O_WRONLY | O_CREAT | O_EXCL), 'EEXIST');
        const fd = ok(await actor.open('/guest/f', O_RDWR | O_CREAT));
        assert.equal(await textOf(actor, fd), 'there');
      },
    },
    {
      name: 'create with a mode that forbids writing can write by the handle that made it',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open('/guest/f', O_RDWR | O_CREAT | O_EXCL, 0o400));
        assert.equal(await actor.write(fd, bytes('x')), 1);
        assert.equal(await actor.open('/guest/f', O_WRONLY), 'EACCES');
        assert.equal(await actor.fchmod(fd, 0), 'OK');
        assert.equal(await actor.pwrite(fd, bytes('yz'), 0), 2);
        assert.equal(await textOf(actor, fd), 'yz');
      },
    },
    {
      name: 'write keeps every byte as it is, and nothing is appended',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const all = Uint8Array.from({ length: 256 }, (_, index) => index);
        assert.equal(await actor.writeFile('/guest/f', all), 'OK');
        assert.deepEqual(Buffer.from(ok(await actor.readFile('/guest/f'))), Buffer.from(all));
        assert.equal(ok(await actor.stat('/guest/f')).size, 256);
      },
    },
    {
      name: 'write at an offset overwrites there, and beyond the end leaves zeros between',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open('/guest/f', O_RDWR | O_CREAT));
        assert.equal(await actor.write(fd, bytes('abcdef')), 6);
        assert.equal(await actor.pwrite(fd, bytes('XY'), 2), 2);
        assert.equal(await actor.pwrite(fd, bytes('!'), 8), 1);
        assert.equal(await textOf(actor, fd), 'abXYef\0\0!');
        assert.equal(await actor.write(fd, bytes('g')), 1);
        assert.equal(await textOf(actor, fd), 'abXYefg\0!');
        assert.equal(ok(await actor.pread(fd, 10, 9)).length, 0);
        assert.equal(ok(await actor.pread(fd, 10, 1_000_000)).length, 0);
      },
    },
    {
      name: 'write with O_APPEND goes to the end whatever the offset says, of two writers too',
      spec: plain,
      run: async (tree) => {
        const [one, two] = [tree.as(app), tree.as(app)];
        const first = ok(await one.open('/guest/f', O_WRONLY | O_CREAT | O_APPEND));
        const second = ok(await two.open('/guest/f', O_WRONLY | O_APPEND));
        for (let round = 0; round < 3; round++) {
          assert.equal(await one.write(first, bytes('a')), 1);
          assert.equal(await two.write(second, bytes('b')), 1);
        }
        assert.equal(await one.readText('/guest/f'), 'ababab');
      },
    },
    {
      name: 'write up to 1 MiB is kept, one byte more is EFBIG, by truncate too',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open('/guest/f', O_RDWR | O_CREAT));
        assert.equal(await actor.pwrite(fd, bytes('z'), MiB - 1), 1);
        assert.equal(ok(await actor.fstat(fd)).size, MiB);
        assert.equal(await actor.pwrite(fd, bytes('z'), MiB), 'EFBIG');
        assert.equal(await actor.ftruncate(fd, MiB + 1), 'EFBIG');
        assert.equal(await actor.truncate('/guest/f', MiB + 1), 'EFBIG');
        assert.equal(await actor.ftruncate(fd, MiB), 'OK');
        assert.equal(ok(await actor.readFile('/guest/f')).length, MiB);
      },
    },
    {
      name: 'write of 1 MiB at once is read back whole',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const big = Buffer.alloc(MiB, 'porthole ');
        assert.equal(await actor.writeFile('/guest/f', big), 'OK');
        assert.ok(big.equals(ok(await actor.readFile('/guest/f'))));
        assert.equal((await tree.look('/guest/f'))?.text.length, MiB);
      },
    },
    {
      name: 'truncate grows with zeros and cuts, and needs write permission by path',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'abc'), 'OK');
        assert.equal(await actor.truncate('/guest/f', 5), 'OK');
        assert.equal(await actor.readText('/guest/f'), 'abc\0\0');
        assert.equal(await actor.truncate('/guest/f', 2), 'OK');
        assert.equal(await actor.readText('/guest/f'), 'ab');
        assert.equal(await tree.as(stranger).truncate('/guest/f', 0), 'EACCES');
        const fd = ok(await actor.open('/guest/f', O_RDONLY));
        assert.equal(await actor.ftruncate(fd, 0), 'EINVAL');
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
        assert.equal(await actor.truncate('/guest/d', 0), 'EISDIR');
      },
    },
    {
      name: 'read and write answer EBADF when the descriptor was not opened for them',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'abc'), 'OK');
        const reader = ok(await actor.open('/guest/f', O_RDONLY));
        const writer = ok(await actor.open('/guest/f', O_WRONLY));
        assert.equal(await actor.write(reader, bytes('x')), 'EBADF');
        assert.equal(await actor.read(writer, 1), 'EBADF');
      },
    },
    {
      name: 'mkdir, rmdir and unlink answer as POSIX has it for the wrong kind and for what is not empty',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'EEXIST');
        assert.equal(await actor.mkdir('/guest/none/d', 0o755), 'ENOENT');
        await touch(actor, '/guest/d/f');
        assert.equal(await actor.rmdir('/guest/d'), 'ENOTEMPTY');
        assert.equal(await actor.rmdir('/guest/d/f'), 'ENOTDIR');
        assert.equal(await actor.unlink('/guest/d'), 'EISDIR');
        assert.equal(await actor.unlink('/guest/none'), 'ENOENT');
        assert.equal(await actor.unlink('/guest/d/f'), 'OK');
        assert.equal(await actor.rmdir('/guest/d'), 'OK');
        assert.equal(await actor.stat('/guest/d'), 'ENOENT');
      },
    },
    {
      name: 'open of a directory reads no bytes, and for writing is EISDIR',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open('/guest', O_RDONLY | O_DIRECTORY));
        assert.equal(await actor.read(fd, 1), 'EISDIR');
        assert.equal(ok(await actor.fstat(fd)).type, 'directory');
        assert.equal(await actor.open('/guest', O_WRONLY), 'EISDIR');
        await touch(actor, '/guest/f');
        assert.equal(await actor.open('/guest/f', O_RDONLY | O_DIRECTORY), 'ENOTDIR');
      },
    },
    {
      name: 'unlink of an open file leaves it to who has it open, and the name to another file',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'old'), 'OK');
        const fd = ok(await actor.open('/guest/f', O_RDWR));
        const before = ok(await actor.fstat(fd));
        assert.equal(await actor.unlink('/guest/f'), 'OK');
        assert.equal(await actor.stat('/guest/f'), 'ENOENT');
        assert.equal(await actor.writeFile('/guest/f', 'new one'), 'OK');
        assert.equal(await textOf(actor, fd), 'old');
        assert.equal(await actor.pwrite(fd, bytes('OLDER'), 0), 5);
        assert.equal(await textOf(actor, fd), 'OLDER');
        const after = ok(await actor.fstat(fd));
        assert.deepEqual([after.ino, after.nlink, after.size], [before.ino, 0, 5]);
        assert.equal(await actor.close(fd), 'OK');
        assert.equal(await actor.readText('/guest/f'), 'new one');
        assert.notEqual(ok(await actor.stat('/guest/f')).ino, before.ino);
      },
    },
    {
      name: 'rmdir of an open directory leaves it empty, and nothing can be made in it',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
        const fd = ok(await actor.open('/guest/d', O_RDONLY | O_DIRECTORY));
        assert.equal(await actor.rmdir('/guest/d'), 'OK');
        assert.equal(ok(await actor.fstat(fd)).type, 'directory');
        assert.equal(await actor.open('/guest/d/f', O_WRONLY | O_CREAT), 'ENOENT');
        assert.equal(await actor.close(fd), 'OK');
      },
    },
    {
      name: 'fstat of what was removed and nobody has open shows it without links',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/f');
        assert.equal(await actor.mkdir('/guest/d', 0o755), 'OK');
        const file = ok(await actor.open('/guest/f', O_PATH));
        const directory = ok(await actor.open('/guest/d', O_PATH | O_DIRECTORY));
        assert.equal(await actor.unlink('/guest/f'), 'OK');
        assert.equal(await actor.rmdir('/guest/d'), 'OK');
        const shown = async (fd: number) => {
          const { type, nlink } = ok(await actor.fstat(fd));
          return [type, nlink];
        };
        assert.deepEqual(await shown(file), ['file', 0]);
        assert.deepEqual(await shown(directory), ['directory', 0]);
      },
      cannot: {
        direct: {
          because: 'FileSystem keeps what has a name or a handle; a session remembers the attributes of the rest',
          instead: async (tree) => {
            const actor = tree.as(app);
            await touch(actor, '/guest/f');
            const file = ok(await actor.open('/guest/f', O_PATH));
            assert.equal(await actor.unlink('/guest/f'), 'OK');
            assert.equal(await actor.fstat(file), 'ESTALE');
          },
        },
        ...byV9fs({
          because: 'Linux’s 9P client asks for attributes by name, and the name is gone',
          instead: async (tree) => {
            const actor = tree.as(app);
            await touch(actor, '/guest/f');
            const file = ok(await actor.open('/guest/f', O_PATH));
            assert.equal(await actor.unlink('/guest/f'), 'OK');
            assert.equal(await actor.fstat(file), 'ENOENT');
          },
        }),
      },
    },
    {
      name: 'open with O_NOFOLLOW refuses a symlink, and goes through one on the way',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const directory = await workshop(actor);
        assert.equal(await actor.writeFile(`${directory}/f`, 'x'), 'OK');
        assert.equal(await actor.symlink('f', `${directory}/l`), 'OK');
        assert.equal(await actor.symlink('w', '/guest/through'), 'OK');
        assert.equal(await actor.open(`${directory}/l`, O_RDONLY | O_NOFOLLOW), 'ELOOP');
        assert.equal(typeof (await actor.open('/guest/through/f', O_RDONLY | O_NOFOLLOW)), 'number');
      },
    },
    {
      name: 'access of execution tells the execute bits, for root too',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/plain', 0o644);
        await touch(actor, '/guest/script', 0o700);
        assert.equal(await actor.access('/guest/plain', X_OK), 'EACCES');
        assert.equal(await actor.access('/guest/script', X_OK), 'OK');
        assert.equal(await tree.as(stranger).access('/guest/script', X_OK), 'EACCES');
        assert.equal(await tree.as(root).access('/guest/plain', X_OK), 'EACCES');
        assert.equal(await tree.as(root).access('/guest/script', X_OK), 'OK');
        assert.equal(await actor.access('/guest', X_OK), 'OK');
      },
    },
    {
      name: 'open after chmod keeps to the rights that it was opened with',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'abc'), 'OK');
        const fd = ok(await actor.open('/guest/f', O_RDWR));
        assert.equal(await actor.chmod('/guest/f', 0), 'OK');
        assert.equal(await textOf(actor, fd), 'abc');
        assert.equal(await actor.pwrite(fd, bytes('X'), 0), 1);
        assert.equal(await actor.open('/guest/f', O_RDONLY), 'EACCES');
        assert.equal(await tree.as(root).readText('/guest/f'), 'Xbc');
      },
    },
    {
      name: 'fsync answers OK, and link and mknod make nothing',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const directory = await workshop(actor);
        const fd = ok(await actor.open(`${directory}/f`, O_WRONLY | O_CREAT));
        assert.equal(await actor.write(fd, bytes('x')), 1);
        assert.equal(await actor.fsync(fd), 'OK');
        assert.equal(await actor.link(`${directory}/f`, `${directory}/g`), 'EPERM');
        assert.equal(await actor.mknod(`${directory}/p`, 0o644), 'EPERM');
        assert.equal(ok(await actor.readdir(directory)).length, 3);
      },
      cannot: {
        direct: {
          because: 'FileSystem has no call that makes links or nodes',
          instead: async (tree) => {
            const actor = tree.as(app);
            await touch(actor, '/guest/f');
            assert.equal(await actor.link('/guest/f', '/guest/g'), 'ENOSYS');
            assert.equal(await actor.mknod('/guest/p', 0o644), 'ENOSYS');
            assert.equal(ok(await actor.readdir('/guest')).length, 4);
          },
        },
      },
    },
    {
      name: 'create, mkdir and unlink need write permission on a guest’s directory',
      spec: plain,
      run: async (tree) => {
        assert.equal(await tree.as(app).mkdir('/guest/d', 0o755), 'OK');
        await touch(tree.as(app), '/guest/d/f');
        const actor = tree.as(stranger);
        assert.equal(await actor.open('/guest/d/g', O_WRONLY | O_CREAT), 'EACCES');
        assert.equal(await actor.mkdir('/guest/d/e', 0o755), 'EACCES');
        assert.equal(await actor.symlink('x', '/guest/d/l'), 'EACCES');
        assert.equal(await actor.unlink('/guest/d/f'), 'EACCES');
        assert.equal(await actor.open('/guest/d/f', O_WRONLY), 'EACCES');
        await touch(tree.as(root), '/guest/d/by-root');
        assert.equal(await tree.as(app).unlink('/guest/d/by-root'), 'OK');
      },
    },
    {
      name: 'lookup below a guest’s directory without search permission is EACCES',
      spec: plain,
      run: async (tree) => {
        assert.equal(await tree.as(app).mkdir('/guest/d', 0o700), 'OK');
        await touch(tree.as(app), '/guest/d/f', 0o644);
        assert.equal(await tree.as(stranger).stat('/guest/d/f'), 'EACCES');
        assert.equal(await tree.as(root).readText('/guest/d/f'), '');
        assert.equal(await tree.as(stranger).open('/guest/d/f', O_RDONLY), 'EACCES');
      },
    },
  ],
};
