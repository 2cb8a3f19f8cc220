import assert from 'node:assert/strict';
import { O_RDONLY, O_RDWR } from '../../../src/wire/index.ts';
import type { WorldSpec } from '../../tree/world.ts';
import { Symlink } from '../../tree/world.ts';
import { byV9fs } from '../ninep-ways.ts';
import { app, bytes, eventually, ok, openStat, plain, policy, stranger, textOf } from '../people.ts';
import type { Topic } from '../suite.ts';

/** One value three times: for all to read, for one to read, for one to write. */
const three = (value: string): WorldSpec => ({
  content: { instance: { shared: value, private: value, writable: value } },
  policy,
  rules: [
    { path: '/instance/private', owner: app.uid, mode: 0o400 },
    { path: '/instance/writable', owner: app.uid, mode: 0o644 },
  ],
});
const kinds = ['shared', 'private', 'writable'] as const;

export const consistency: Topic = {
  name: 'consistency',
  cases: [
    {
      name: 'open after a change outside sees the new value, at its new size',
      spec: three('value 0'),
      run: async (tree) => {
        const actor = tree.as(app);
        for (let round = 1; round <= 12; round++) {
          const value = 'x'.repeat((round * 37) % 100);
          await tree.load(three(value));
          for (const kind of kinds) {
            const fd = ok(await actor.open(`/instance/${kind}`, O_RDONLY));
            assert.equal(ok(await actor.fstat(fd)).size, value.length, `${kind} ${round}`);
            assert.equal(await textOf(actor, fd), value, `${kind} ${round}`);
            await actor.close(fd);
          }
        }
      },
    },
    {
      name: 'read by a handle opened before a change gives the bytes and the size of what was opened',
      spec: three('old bytes, many of them'),
      run: async (tree) => {
        const actor = tree.as(app);
        const fds = new Map<string, number>();
        for (const kind of ['shared', 'private']) fds.set(kind, ok(await actor.open(`/instance/${kind}`, O_RDONLY)));
        await tree.load(three('new'));
        for (const [kind, fd] of fds) {
          assert.equal(await textOf(actor, fd), 'old bytes, many of them', kind);
          assert.equal(ok(await actor.fstat(fd)).size, 23, kind);
          assert.equal(await actor.readText(`/instance/${kind}`), 'new', kind);
          assert.equal(await textOf(actor, fd, 4), 'bytes, many of them', kind);
        }
      },
      cannot: byV9fs({
        because: 'Linux’s 9P client asks for attributes by name: they are those of now',
        instead: async (tree) => {
          const actor = tree.as(app);
          const fd = ok(await actor.open('/instance/shared', O_RDONLY));
          await tree.load(three('new'));
          assert.equal(await textOf(actor, fd), 'old bytes, many of them');
          assert.equal(ok(await actor.fstat(fd)).size, 3);
          assert.equal(await actor.readText('/instance/shared'), 'new');
        },
      }),
    },
    {
      name: 'read by a handle of a file that the outside took away gives what was opened, and open answers ENOENT',
      spec: three('gone soon'),
      run: async (tree) => {
        const actor = tree.as(app);
        const shared = ok(await actor.open('/instance/shared', O_RDONLY));
        const secret = ok(await actor.open('/instance/private', O_RDONLY));
        await tree.load({ content: { instance: {} }, policy });
        assert.equal(await textOf(actor, shared), 'gone soon');
        assert.equal(await textOf(actor, secret), 'gone soon');
        for (const kind of kinds) assert.equal(await actor.open(`/instance/${kind}`, O_RDONLY), 'ENOENT');
        await eventually(async () => assert.equal(await actor.stat('/instance/shared'), 'ENOENT'));
        assert.equal(await actor.close(shared), 'OK');
      },
      cannot: byV9fs({
        because: 'Linux’s 9P client keeps the name of what somebody has open',
        instead: async (tree) => {
          const actor = tree.as(app);
          const fd = ok(await actor.open('/instance/shared', O_RDONLY));
          await tree.load({ content: { instance: {} }, policy });
          assert.equal(await textOf(actor, fd), 'gone soon');
          assert.equal(await actor.open('/instance/shared', O_RDONLY), 'ESTALE');
          assert.equal(await actor.open('/instance/private', O_RDONLY), 'ENOENT');
          assert.equal(ok(await actor.stat('/instance/shared')).nlink, 0);
          assert.equal(await actor.close(fd), 'OK');
          assert.equal(await actor.stat('/instance/shared'), 'ENOENT');
        },
      }),
    },
    {
      name: 'read by a handle of what guests may write gives what is there now',
      spec: three('old'),
      run: async (tree) => {
        const [one, two] = [tree.as(app), tree.as(stranger)];
        const reader = ok(await two.open('/instance/writable', O_RDONLY));
        const writer = ok(await one.open('/instance/writable', O_RDWR));
        assert.equal(await one.pwrite(writer, bytes('newer'), 0), 5);
        assert.equal(await textOf(two, reader), 'newer');
        await tree.load(three('from outside'));
        assert.equal(await textOf(two, reader), 'from outside');
        assert.equal(await textOf(one, writer), 'from outside');
      },
    },
    {
      name: 'stat and readdir follow a change outside within their second',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        assert.equal(ok(await actor.stat('/instance/id')).size, 6);
        assert.equal(await actor.stat('/instance/late'), 'ENOENT');
        await tree.load({ ...plain, content: { instance: { id: 'longer than before', late: 'x' } } });
        await eventually(async () => {
          assert.equal(ok(await actor.stat('/instance/id')).size, 18);
          assert.equal(ok(await actor.stat('/instance/late')).size, 1);
          const names = ok(await actor.readdir('/instance')).map((entry) => entry.name);
          assert.deepEqual(names.toSorted(), ['.', '..', 'id', 'late']);
        }, 3000);
      },
    },
    {
      name: 'open finds what took another kind’s place',
      spec: { content: { instance: { thing: 'file' } }, policy },
      run: async (tree) => {
        const actor = tree.as(stranger);
        assert.equal(await actor.readText('/instance/thing'), 'file');
        await tree.load({ content: { instance: { thing: { inside: 'x' } } }, policy });
        await eventually(async () => assert.equal(await actor.readText('/instance/thing/inside'), 'x'));
        await tree.load({ content: { instance: { thing: new Symlink('target'), target: 'behind a link' } }, policy });
        await eventually(async () => assert.equal(await actor.readText('/instance/thing'), 'behind a link'));
        await tree.load({ content: { instance: { thing: 'file again' } }, policy });
        await eventually(async () => assert.equal(await actor.readText('/instance/thing'), 'file again'));
      },
    },
    {
      name: 'open never answers ESTALE, though values, names and directories change all the time',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        for (let round = 0; round < 30; round++) {
          const content = {
            instance: { id: `i-${round}`, ...(round % 3 === 0 ? {} : { sub: { name: 'n'.repeat(round) } }) },
          };
          await tree.load({ content, policy });
          assert.equal(await actor.readText('/instance/id'), `i-${round}`);
          const deep = await actor.readText('/instance/sub/name');
          assert.ok(deep === 'ENOENT' || /^n*$/.test(deep), deep);
          assert.notEqual(await actor.readdir('/instance'), 'ESTALE');
          assert.notEqual(typeof (await actor.lstat('/instance')), 'string');
        }
      },
    },
    {
      name: 'write of a guest is seen by another’s open at once',
      spec: plain,
      run: async (tree) => {
        const [one, two] = [tree.as(app), tree.as(stranger)];
        for (let round = 0; round < 10; round++) {
          const value = `${round} `.repeat((round * 7) % 11);
          assert.equal(await one.writeFile('/guest/f', value), 'OK');
          assert.equal(await two.readText('/guest/f'), value);
          assert.equal((await openStat(two, '/guest/f')).size, value.length);
          assert.equal(ok(await two.stat('/guest/f')).size, value.length);
        }
      },
    },
  ],
};
