import assert from 'node:assert/strict';
import { O_CREAT, O_RDONLY, O_WRONLY } from '../../../src/wire/index.ts';
import { byV9fs } from '../ninep-ways.ts';
import { app, bytes, ok, plain, postgres, root, stranger, touch, workshop } from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const kernelSplits: Cannot = {
  because: 'the kernel itself splits paths at slashes and ends them at NUL',
  instead: async (tree) => {
    const actor = tree.as(app);
    assert.equal(await actor.createNamed('/guest', 'a/b'), 'ENOENT');
    // Which of the two depends on the kernel's version.
    for (const name of ['.', '..']) assert.match(await actor.createNamed('/guest', name), /^(EISDIR|EEXIST)$/);
    assert.equal(await actor.createNamed('/guest', 'a\0b'), 'OK');
    assert.deepEqual(ok(await actor.lstat('/guest/a')).type, 'file');
  },
};

export const names: Topic = {
  name: 'lookups and names',
  cases: [
    {
      name: 'create takes a name of 255 bytes and refuses one of 256',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        for (const name of ['n'.repeat(255), `${'é'.repeat(127)}x`]) {
          await touch(actor, `/guest/${name}`);
          assert.equal(ok(await actor.stat(`/guest/${name}`)).type, 'file');
        }
        for (const name of ['n'.repeat(256), 'é'.repeat(128)]) {
          assert.equal(await actor.open(`/guest/${name}`, O_WRONLY | O_CREAT, 0o644), 'ENAMETOOLONG');
          assert.equal(await actor.mkdir(`/guest/${name}`, 0o755), 'ENAMETOOLONG');
          assert.equal(await actor.stat(`/guest/${name}`), 'ENAMETOOLONG');
        }
      },
    },
    {
      name: 'create keeps a name of any Unicode, and readdir gives it back',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const wanted = [' ', 'new\nline', 'Grüße', '文', '🗝', '\u{FEFF}mark', '-', '*', '\\', 'é', 'e\u0301'];
        for (const name of wanted) await touch(actor, `/guest/${name}`);
        const found = ok(await actor.readdir('/guest')).map((entry) => entry.name);
        assert.deepEqual(found.filter((name) => !name.startsWith('.')).toSorted(), wanted.toSorted());
      },
    },
    {
      name: 'create answers EILSEQ when the name is no UTF-8',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const path = Uint8Array.from([...bytes('/guest/a'), 0xff, 0x62]);
        assert.equal(await actor.open(path, O_WRONLY | O_CREAT, 0o644), 'EILSEQ');
        assert.equal(await actor.mkdir(path, 0o755), 'EILSEQ');
        assert.equal(await actor.symlink('x', path), 'EILSEQ');
      },
    },
    {
      name: 'create answers EINVAL when a name holds a slash or NUL or is a dot',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        for (const name of ['a/b', 'a\0b', '.', '..']) assert.equal(await actor.createNamed('/guest', name), 'EINVAL');
        assert.deepEqual(
          ok(await actor.readdir('/guest'))
            .map((entry) => entry.name)
            .toSorted(),
          ['.', '..', '.agent'],
        );
      },
      cannot: { mount: kernelSplits, agent: kernelSplits, virtiofs: kernelSplits, ...byV9fs(kernelSplits) },
    },
    {
      name: 'lookup of . and .. stays in the tree',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const top = ok(await actor.stat('/')).ino;
        assert.equal(ok(await actor.stat('/guest/..')).ino, top);
        assert.equal(ok(await actor.stat('/instance/../instance/./id')).ino, ok(await actor.stat('/instance/id')).ino);
      },
    },
    {
      name: 'lookup answers ENOENT for what is not there and ENOTDIR below a file',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        assert.equal(await actor.stat('/instance/none'), 'ENOENT');
        assert.equal(await actor.stat('/instance/none/more'), 'ENOENT');
        assert.equal(await actor.stat('/instance/id/more'), 'ENOTDIR');
        assert.equal(await actor.stat('/instance/id/'), 'ENOTDIR');
        assert.equal(await actor.open('/none', O_RDONLY), 'ENOENT');
      },
    },
    {
      name: 'lookup answers EACCES below a directory that the caller may not search',
      spec: plain,
      run: async (tree) => {
        assert.equal(await tree.as(app).stat('/other/thing'), 'EACCES');
        assert.equal(await tree.as(app).stat('/other/none'), 'EACCES');
        assert.equal(await tree.as(app).readdir('/other'), 'EACCES');
        assert.equal(await tree.as(root).readText('/other/thing'), 'x');
      },
    },
    {
      name: 'mkdir refuses the 65th level with ENAMETOOLONG, and rename a tree that would reach it',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        let path = '/guest';
        for (let level = 2; level <= 64; level++) {
          path += '/d';
          assert.equal(await actor.mkdir(path, 0o755), 'OK');
        }
        assert.equal(await actor.mkdir(`${path}/d`, 0o755), 'ENAMETOOLONG');
        assert.equal(await actor.open(`${path}/f`, O_WRONLY | O_CREAT, 0o644), 'ENAMETOOLONG');
        assert.equal(await actor.mkdir('/guest/two', 0o755), 'OK');
        assert.equal(await actor.mkdir('/guest/two/levels', 0o755), 'OK');
        const almost = path.slice(0, -2);
        assert.equal(await actor.rename('/guest/two', `${almost}/two`), 'ENAMETOOLONG');
        assert.equal(await actor.rename('/guest/two/levels', `${almost}/levels`), 'OK');
      },
    },
    {
      name: 'readdir lists . and .. first, and then every name once with its type and number',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const directory = await workshop(actor);
        const wanted = Array.from({ length: 300 }, (_, index) => `file-${String(index).padStart(3, '0')}`);
        for (const name of wanted) await touch(actor, `${directory}/${name}`);
        assert.equal(await actor.mkdir(`${directory}/sub`, 0o755), 'OK');
        assert.equal(await actor.symlink('sub', `${directory}/link`), 'OK');
        const entries = ok(await actor.readdir(directory));
        assert.deepEqual(
          entries.slice(0, 2).map((entry) => entry.name),
          ['.', '..'],
        );
        assert.deepEqual(
          entries
            .slice(2)
            .map((entry) => entry.name)
            .toSorted(),
          [...wanted, 'link', 'sub'],
        );
        const of = (name: string) => entries.find((entry) => entry.name === name)!;
        assert.equal(of('sub').type, 'directory');
        assert.equal(of('link').type, 'symlink');
        assert.equal(of('file-007').type, 'file');
        assert.equal(of('file-007').ino, ok(await actor.stat(`${directory}/file-007`)).ino);
        assert.equal(of('.').ino, ok(await actor.stat(directory)).ino);
      },
    },
    {
      name: 'readdir needs read permission, open of a name only search permission',
      spec: { ...plain, rules: [{ path: '/secrets/db-password', mode: 0o444 }] },
      run: async (tree) => {
        assert.equal(await tree.as(app).readdir('/secrets'), 'EACCES');
        assert.equal(await tree.as(app).readText('/secrets/db-password'), 'hunter2');
        assert.equal(ok(await tree.as(root).readdir('/secrets')).length, 3);
      },
    },
    {
      name: 'symlink is followed at the end and on the way, and a loop answers ELOOP',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(postgres);
        const directory = await workshop(actor);
        assert.equal(await actor.symlink('../../instance', `${directory}/instance`), 'OK');
        assert.equal(await actor.symlink('instance/id', `${directory}/id`), 'OK');
        assert.equal(await actor.readText(`${directory}/id`), 'i-0001');
        assert.equal(await actor.readText(`${directory}/instance/hostname`), 'web-1');
        assert.equal(await actor.symlink('b', `${directory}/a`), 'OK');
        assert.equal(await actor.symlink('a', `${directory}/b`), 'OK');
        assert.equal(await actor.stat(`${directory}/a`), 'ELOOP');
        assert.equal(ok(await actor.lstat(`${directory}/a`)).type, 'symlink');
      },
    },
    {
      name: 'symlink keeps a target of 4095 bytes exactly, and refuses a longer one',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        const target = 't'.repeat(4095);
        assert.equal(await actor.symlink(target, '/guest/long'), 'OK');
        assert.equal(new TextDecoder().decode(ok(await actor.readlink('/guest/long'))), target);
        assert.equal(ok(await actor.lstat('/guest/long')).size, 4095);
        assert.equal(await actor.symlink(`${target}t`, '/guest/longer'), 'ENAMETOOLONG');
      },
    },
    {
      name: 'readlink answers EINVAL for what is no symlink',
      spec: plain,
      run: async (tree) => {
        assert.equal(await tree.as(app).readlink('/instance/id'), 'EINVAL');
        assert.equal(await tree.as(app).readlink('/instance'), 'EINVAL');
      },
    },
  ],
};
