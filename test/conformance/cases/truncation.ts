import assert from 'node:assert/strict';
import { O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } from '../../../src/wire/index.ts';
import { app, bytes, eventually, ok, plain, policy, stranger, textOf } from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const releasedLater: Cannot = {
  because: 'close(2) returns before the kernel sends RELEASE: the truncation follows at once',
  instead: async (tree) => {
    const actor = tree.as(app);
    assert.equal(await actor.writeFile('/guest/f', 'old'), 'OK');
    await actor.close(ok(await actor.open('/guest/f', O_WRONLY | O_TRUNC)));
    await eventually(async () => assert.equal(await actor.readText('/guest/f'), ''));
    assert.equal(await actor.writeFile('/guest/f', 'old'), 'OK');
    const fd = ok(await actor.open('/guest/f', O_RDWR | O_TRUNC));
    assert.equal(await actor.fsync(fd), 'OK');
    assert.equal((await tree.look('/guest/f'))?.text, '');
    const before = ok(await actor.stat('/guest/f'));
    await tree.pass(50);
    assert.equal(await actor.fsync(ok(await actor.open('/guest/f', O_WRONLY | O_TRUNC))), 'OK');
    assert.notDeepEqual(ok(await actor.stat('/guest/f')).mtime, before.mtime);
  },
};

export const truncation: Topic = {
  name: 'open with O_TRUNC',
  cases: [
    {
      name: 'open with O_TRUNC shows size 0, and other opens read the old bytes until the first write',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'old bytes'), 'OK');
        const before = ok(await tree.as(stranger).open('/guest/f', O_RDONLY));
        const fd = ok(await actor.open('/guest/f', O_WRONLY | O_TRUNC));
        assert.equal(ok(await actor.fstat(fd)).size, 0);
        assert.equal(ok(await actor.stat('/guest/f')).size, 0);
        assert.equal(await tree.as(stranger).readText('/guest/f'), 'old bytes');
        assert.equal((await tree.look('/guest/f'))?.text, 'old bytes');
        assert.equal(await actor.write(fd, bytes('new')), 3);
        assert.equal((await tree.look('/guest/f'))?.text, 'new');
        assert.equal(ok(await actor.stat('/guest/f')).size, 3);
        assert.equal(await tree.as(stranger).readText('/guest/f'), 'new');
        assert.ok(before >= 0);
      },
    },
    {
      name: 'close and fsync make an O_TRUNC that nothing was written after take effect',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/a', 'old'), 'OK');
        assert.equal(await actor.writeFile('/guest/b', 'old'), 'OK');
        await actor.close(ok(await actor.open('/guest/a', O_WRONLY | O_TRUNC)));
        assert.equal(await actor.readText('/guest/a'), '');
        assert.equal((await tree.look('/guest/a'))?.text, '');
        const fd = ok(await actor.open('/guest/b', O_RDWR | O_TRUNC));
        assert.equal(await actor.fsync(fd), 'OK');
        assert.equal((await tree.look('/guest/b'))?.text, '');
        assert.equal(await textOf(actor, fd), '');
        // `: > stamp` of a stamp that is empty already.
        const before = ok(await actor.stat('/guest/a'));
        await tree.pass(50);
        assert.equal(await actor.fsync(ok(await actor.open('/guest/a', O_WRONLY | O_TRUNC))), 'OK');
        assert.notDeepEqual(ok(await actor.stat('/guest/a')).mtime, before.mtime);
      },
      cannot: {
        mount: releasedLater,
        agent: releasedLater,
      },
    },
    {
      name: 'write after O_TRUNC is one commit with it: nobody sees the file empty',
      spec: { ...plain, rules: [{ path: '/instance/hostname', owner: app.uid, mode: 0o644 }] },
      run: async (tree) => {
        const watcher = tree.as(stranger);
        const watch = ok(await watcher.open('/.changes', O_RDONLY));
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/instance/hostname', 'web-2', O_WRONLY | O_TRUNC), 'OK');
        const lines = new TextDecoder()
          .decode(ok(await watcher.read(watch, 4096)))
          .trim()
          .split('\n');
        const seen = lines.map((line) => JSON.parse(line)).filter((line) => line.heartbeat === undefined);
        assert.equal(seen.length, 1);
        assert.deepEqual(seen[0].changes, [{ path: '/instance/hostname', change: 'changed' }]);
        assert.equal((await tree.look('/instance/hostname'))?.text, 'web-2');
      },
    },
    {
      name: 'open with O_TRUNC needs write permission, of a file that is there too',
      spec: { content: { instance: { id: 'i-1' } }, policy, rules: [{ path: '/instance/id', mode: 0o444 }] },
      run: async (tree) => {
        assert.equal(await tree.as(app).open('/instance/id', O_WRONLY | O_TRUNC), 'EACCES');
        assert.equal(await tree.as(app).open('/instance/id', O_RDONLY | O_TRUNC), 'EACCES');
        assert.equal((await tree.look('/instance/id'))?.text, 'i-1');
      },
    },
    {
      name: 'open with O_TRUNC twice cuts once each, and the second writer wins',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'something long'), 'OK');
        const one = ok(await actor.open('/guest/f', O_WRONLY | O_TRUNC | O_CREAT));
        const two = ok(await actor.open('/guest/f', O_WRONLY | O_TRUNC | O_CREAT));
        assert.equal(await actor.write(one, bytes('first')), 5);
        assert.equal(await actor.write(two, bytes('2nd')), 3);
        assert.equal(await actor.readText('/guest/f'), '2nd');
        assert.equal(await actor.close(one), 'OK');
        assert.equal(await actor.close(two), 'OK');
        assert.equal(await actor.readText('/guest/f'), '2nd');
      },
    },
    {
      name: 'ftruncate of a handle with O_TRUNC sets the size it says',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/f', 'abcdef'), 'OK');
        const fd = ok(await actor.open('/guest/f', O_RDWR | O_TRUNC));
        assert.equal(await actor.ftruncate(fd, 3), 'OK');
        assert.equal(await textOf(actor, fd), '\0\0\0');
        assert.equal(ok(await actor.fstat(fd)).size, 3);
      },
    },
  ],
};
