import assert from 'node:assert/strict';
import { O_CREAT, O_EXCL, O_RDWR, O_WRONLY } from '../../../src/wire/index.ts';
import { app, bytes, ok, plain, policy, postgres, root, stranger, touch, visitor } from '../people.ts';
import type { Topic } from '../suite.ts';

const fifth = { uid: 3000, gid: 3000, groups: [] };

export const quotas: Topic = {
  name: 'quotas',
  cases: [
    {
      name: 'write beyond a uid’s quarter of the bytes is EDQUOT, beyond the VM’s bytes ENOSPC',
      spec: { ...plain, policy: { ...policy, quota: { bytes: 8000, nodes: 1000 } } },
      run: async (tree) => {
        for (const who of [app, postgres, stranger, visitor]) {
          const actor = tree.as(who);
          const fd = ok(await actor.open(`/guest/${who.uid}`, O_RDWR | O_CREAT));
          assert.equal(await actor.write(fd, Buffer.alloc(2000)), 2000);
          assert.equal(await actor.write(fd, bytes('x')), who === visitor ? 'ENOSPC' : 'EDQUOT');
          assert.equal(ok(await actor.fstat(fd)).size, 2000);
          await actor.close(fd);
        }
        const actor = tree.as(fifth);
        const fd = ok(await actor.open('/guest/fifth', O_RDWR | O_CREAT));
        assert.equal(await actor.write(fd, bytes('x')), 'ENOSPC');
        assert.equal(await actor.ftruncate(fd, 1), 'ENOSPC');
        assert.equal(await tree.as(app).unlink(`/guest/${app.uid}`), 'OK');
        assert.equal(await actor.write(fd, bytes('x')), 1);
      },
    },
    {
      name: 'create beyond a uid’s quarter of the nodes is EDQUOT, beyond the VM’s nodes ENOSPC',
      spec: { ...plain, policy: { ...policy, quota: { bytes: 80_000, nodes: 8 } } },
      run: async (tree) => {
        for (const who of [app, postgres, stranger]) {
          const actor = tree.as(who);
          await touch(actor, `/guest/${who.uid}`);
          assert.equal(await actor.mkdir(`/guest/${who.uid}.d`, 0o755), 'OK');
          assert.equal(await actor.symlink('x', `/guest/${who.uid}.l`), 'EDQUOT');
        }
        await touch(tree.as(visitor), '/guest/visitor');
        await touch(tree.as(fifth), '/guest/fifth');
        assert.equal(await tree.as(fifth).mkdir('/guest/fifth.d', 0o755), 'ENOSPC');
        assert.equal(await tree.as(app).rmdir(`/guest/${app.uid}.d`), 'OK');
        assert.equal(await tree.as(fifth).mkdir('/guest/fifth.d', 0o755), 'OK');
      },
    },
    {
      name: 'write beyond a rule’s quota is EDQUOT for everybody, and elsewhere is not',
      spec: {
        content: { guest: { box: {} } },
        policy,
        rules: [{ path: '/guest/box', mode: 0o777, quota: { bytes: 100, nodes: 2 } }],
      },
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/box/a', Buffer.alloc(100)), 'OK');
        assert.equal(await tree.as(stranger).writeFile('/guest/box/b', 'x'), 'EDQUOT');
        assert.equal(await tree.as(root).mkdir('/guest/box/c', 0o755), 'EDQUOT');
        assert.equal(await actor.writeFile('/guest/elsewhere', Buffer.alloc(1000)), 'OK');
        assert.equal(await actor.truncate('/guest/box/a', 10), 'OK');
        assert.equal(await tree.as(stranger).writeFile('/guest/box/b', 'x'), 'OK');
        assert.equal(await actor.rename('/guest/elsewhere', '/guest/box/b'), 'EDQUOT');
      },
    },
    {
      name: 'write to what was made outside counts for who owns it',
      spec: {
        content: { instance: { log: '' } },
        policy: { ...policy, quota: { bytes: 400, nodes: 100 } },
        rules: [{ path: '/instance/log', owner: app.uid, mode: 0o644 }],
      },
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open('/instance/log', O_WRONLY));
        assert.equal(await actor.write(fd, Buffer.alloc(100)), 100);
        assert.equal(await actor.write(fd, bytes('x')), 'EDQUOT');
        assert.equal((await tree.look('/instance/log'))?.text.length, 100);
      },
    },
    {
      name: 'statfs tells the quota and what is left of it',
      spec: { ...plain, policy: { ...policy, quota: { bytes: 409_600, nodes: 50 } } },
      run: async (tree) => {
        const actor = tree.as(app);
        const before = ok(await actor.statfs('/guest'));
        assert.equal(before.blocks * before.blockSizeBytes, 409_600);
        assert.deepEqual(
          [before.blocksFree, before.files, before.filesFree, before.nameBytes],
          [before.blocks, 50, 50, 255],
        );
        assert.equal(await actor.writeFile('/guest/f', Buffer.alloc(before.blockSizeBytes * 3)), 'OK');
        const after = ok(await actor.statfs('/guest'));
        assert.deepEqual([after.blocksFree, after.filesFree], [before.blocks - 3, 49]);
      },
    },
    {
      name: 'create that is refused for want of room leaves nothing behind',
      spec: { ...plain, policy: { ...policy, quota: { bytes: 4000, nodes: 4 } } },
      run: async (tree) => {
        const actor = tree.as(app);
        await touch(actor, '/guest/a');
        assert.equal(await actor.open('/guest/b', O_WRONLY | O_CREAT | O_EXCL), 'EDQUOT');
        assert.equal(await actor.stat('/guest/b'), 'ENOENT');
        assert.equal(ok(await actor.readdir('/guest')).length, 4);
      },
    },
  ],
};
