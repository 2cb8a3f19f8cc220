import assert from 'node:assert/strict';
import { O_RDONLY, O_WRONLY } from '../../../src/wire/index.ts';
import type { Actor, Errno, Fd, Identity } from '../driver.ts';
import { by9p, byV9fs } from '../ninep-ways.ts';
import { app, eventually, ok, plain, policy, postgres, root, stranger, visitor } from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

interface Line {
  readonly revision: number;
  readonly heartbeat?: boolean;
  readonly changes?: readonly { readonly path: string; readonly change: string }[];
}

const linesOf = (bytes: Uint8Array): Line[] =>
  new TextDecoder()
    .decode(bytes)
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));

/** The next line that is no heartbeat. */
async function next(actor: Actor, fd: Fd): Promise<Line> {
  for (;;) {
    const lines = linesOf(ok(await actor.read(fd, 65_536)));
    assert.ok(lines.length > 0, 'a read without a whole line');
    const line = lines.find((one) => one.heartbeat === undefined);
    if (line !== undefined) return line;
  }
}

const pathsOf = (line: Line): string[] =>
  (line.changes ?? []).map((change) => `${change.change} ${change.path}`).toSorted();

/** A read that may wait, and whether it has been answered. */
function started(read: Promise<Uint8Array | Errno>): {
  readonly answer: Promise<Uint8Array | Errno>;
  settled: boolean;
} {
  const watched = { answer: read, settled: false };
  watched.answer = (async () => {
    try {
      return await read;
    } finally {
      watched.settled = true;
    }
  })();
  return watched;
}

/** Signals until the read is answered: the first may come before it waits. */
async function interrupted(actor: Actor, read: ReturnType<typeof started>): Promise<Uint8Array | Errno> {
  await eventually(async () => {
    actor.interrupt();
    await Promise.resolve();
    assert.ok(read.settled);
  });
  return await read.answer;
}

const watch = async (actor: Actor): Promise<Fd> => ok(await actor.open('/.changes', O_RDONLY));
const withId = (id: string) => ({ ...plain, content: { ...plain.content, instance: { id, hostname: 'web-1' } } });

const noWakeUp: Cannot = {
  because: 'no wake-up can reach a guest’s poll(2), so it calls every file readable',
  instead: async (tree) => {
    const actor = tree.as(stranger);
    assert.equal(await actor.readable(await watch(actor)), true);
  },
};

export const changes: Topic = {
  name: '/.changes',
  cases: [
    {
      name: 'read of /.changes waits for a commit, and gives one JSON line for it',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const fd = await watch(actor);
        const line = next(actor, fd);
        await tree.load(withId('i-2'));
        const first = await line;
        assert.deepEqual(pathsOf(first), ['changed /instance/id']);
        assert.equal(await tree.as(app).writeFile('/guest/f', 'x'), 'OK');
        const created = await next(actor, fd);
        assert.deepEqual(pathsOf(created), ['created /guest/f']);
        assert.ok(created.revision > first.revision);
      },
    },
    {
      name: 'read of /.changes gives a line a commit to a reader that comes late',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const fd = await watch(actor);
        for (const id of ['i-2', 'i-3', 'i-4']) await tree.load(withId(id));
        const lines: Line[] = [];
        while (lines.length < 3) {
          const part = linesOf(ok(await actor.read(fd, 65_536)));
          lines.push(...part.filter((line) => line.heartbeat === undefined));
        }
        assert.deepEqual(lines.map(pathsOf), [
          ['changed /instance/id'],
          ['changed /instance/id'],
          ['changed /instance/id'],
        ]);
        const revisions = lines.map((line) => line.revision);
        assert.deepEqual(
          revisions,
          revisions.toSorted((a, b) => a - b),
        );
        assert.equal(new Set(revisions).size, 3);
      },
    },
    {
      name: 'read of /.changes tells nothing of what the caller may not see',
      spec: {
        content: { instance: { id: '1', ghost: 'a' }, other: { thing: 'a' }, secrets: { key: 'a', open: 'a' } },
        policy,
        rules: [
          { path: '/instance/ghost', owner: app.uid, mode: 0o400, hidden: true },
          { path: '/secrets/open', mode: 0o444 },
        ],
      },
      run: async (tree) => {
        const open = async (who: Identity) => {
          const actor = tree.as(who);
          return { actor, fd: await watch(actor) };
        };
        const readers = { stranger: await open(stranger), app: await open(app), root: await open(root) };
        await tree.load({
          content: { instance: { id: '2', ghost: 'b' }, other: { thing: 'b' }, secrets: { key: 'b', open: 'b' } },
          policy,
          rules: [
            { path: '/instance/ghost', owner: app.uid, mode: 0o400, hidden: true },
            { path: '/secrets/open', mode: 0o444 },
          ],
        });
        const seen = async ({ actor, fd }: { actor: Actor; fd: Fd }) => pathsOf(await next(actor, fd));
        assert.deepEqual(await seen(readers.stranger), ['changed /instance/id', 'changed /secrets/open']);
        assert.deepEqual(await seen(readers.app), [
          'changed /instance/ghost',
          'changed /instance/id',
          'changed /secrets/open',
        ]);
        assert.equal((await seen(readers.root)).length, 5);
      },
    },
    {
      name: 'read of /.changes tells of removals, of renames as both, and of attributes',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.writeFile('/guest/a', 'x'), 'OK');
        const fd = await watch(actor);
        assert.equal(await actor.rename('/guest/a', '/guest/b'), 'OK');
        assert.deepEqual(pathsOf(await next(actor, fd)), ['created /guest/b', 'removed /guest/a']);
        assert.equal(await actor.chmod('/guest/b', 0o600), 'OK');
        assert.deepEqual(pathsOf(await next(actor, fd)), ['attributes /guest/b']);
        assert.equal(await actor.unlink('/guest/b'), 'OK');
        assert.deepEqual(pathsOf(await next(actor, fd)), ['removed /guest/b']);
      },
    },
    {
      name: 'read of /.changes in pieces gives a line whole',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const fd = await watch(actor);
        await tree.load(withId('i-2'));
        let text = '';
        while (!text.endsWith('\n')) text += new TextDecoder().decode(ok(await actor.read(fd, 7)));
        const line = JSON.parse(text);
        assert.deepEqual(line.changes, [{ path: '/instance/id', change: 'changed' }]);
      },
    },
    {
      name: 'read of /.changes gets a heartbeat when nothing happens',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const fd = await watch(actor);
        const read = started(actor.read(fd, 4096));
        assert.ok(!read.settled);
        // Again, if the clock moved before the read had begun to wait.
        await eventually(async () => {
          await tree.pass(tree.heartbeatMs + 100);
          assert.ok(read.settled);
        });
        const [line] = linesOf(ok(await read.answer));
        assert.equal(line?.heartbeat, true);
        assert.ok(line.revision > 0);
      },
    },
    {
      name: 'read of /.changes ends with EINTR when a signal comes, and the next read goes on',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const fd = await watch(actor);
        assert.equal(await interrupted(actor, started(actor.read(fd, 4096))), 'EINTR');
        await tree.load(withId('i-2'));
        assert.deepEqual(pathsOf(await next(actor, fd)), ['changed /instance/id']);
      },
      cannot: {
        virtiofs: {
          because: 'virtiofs tells nothing of signals; the heartbeat ends the read',
          instead: async (tree) => {
            const actor = tree.as(stranger);
            const answer = await interrupted(actor, started(actor.read(await watch(actor), 4096)));
            assert.ok(answer === 'EINTR' || linesOf(ok(answer))[0]?.heartbeat === true);
          },
        },
        ...byV9fs({
          because: 'Linux’s 9P client waits through every signal that does not kill',
          instead: async (tree) => {
            const actor = tree.as(stranger);
            const read = started(actor.read(await watch(actor), 4096));
            read.answer.catch(() => {});
            actor.interrupt();
            assert.equal(await tree.as(app).readText('/instance/id'), 'i-0001');
            assert.ok(!read.settled);
            // It is killed at the end, and nothing is left of it.
          },
        }),
      },
    },
    {
      name: 'read of /.changes answers EBUSY to the fifth waiting reader of a uid and the seventeenth of all',
      spec: plain,
      run: async (tree) => {
        const waiting = async (who: Identity): Promise<Uint8Array | Errno> => {
          const actor = tree.as(who);
          const fd = await watch(actor);
          for (;;) {
            const answer = await actor.read(fd, 4096);
            if (typeof answer === 'string' || linesOf(answer).some((line) => line.heartbeat === undefined))
              return answer;
          }
        };
        const readers: Promise<Uint8Array | Errno>[] = [];
        for (const who of [app, postgres, stranger, visitor]) {
          const five = Array.from({ length: 5 }, () => waiting(who));
          // Whichever comes last finds the four others waiting.
          assert.equal(await Promise.race(five), 'EBUSY');
          readers.push(...five);
        }
        assert.equal(await waiting(root), 'EBUSY');
        await tree.load(withId('i-2'));
        const answers = await Promise.all(readers);
        assert.equal(answers.filter((answer) => answer === 'EBUSY').length, 4);
        for (const answer of answers) if (answer !== 'EBUSY') assert.ok(linesOf(ok(answer)).length > 0);
        assert.equal(await tree.as(app).readText('/instance/id'), 'i-2');
      },
    },
    {
      name: 'pread of /.changes is ESPIPE, and nobody may write it',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(await actor.pread(await watch(actor), 10, 0), 'ESPIPE');
        assert.equal(await actor.open('/.changes', O_WRONLY), 'EACCES');
        assert.equal(await tree.as(root).open('/.changes', O_WRONLY), 'EACCES');
        assert.equal(await tree.as(root).unlink('/.changes'), 'EPERM');
      },
      cannot: {
        ...by9p({
          because: '9P can’t call a file not seekable: a read is the stream’s next bytes, whatever its offset',
          instead: async (tree) => {
            const actor = tree.as(app);
            const fd = await watch(actor);
            await tree.load(withId('i-2'));
            assert.deepEqual(linesOf(ok(await actor.pread(fd, 4096, 10)))[0]?.changes, [
              { path: '/instance/id', change: 'changed' },
            ]);
            for (const who of [app, root]) assert.equal(await tree.as(who).open('/.changes', O_WRONLY), 'EACCES');
            assert.equal(await tree.as(root).unlink('/.changes'), 'EPERM');
          },
        }),
      },
    },
    {
      name: 'poll of /.changes tells whether a read would wait',
      spec: plain,
      run: async (tree) => {
        const actor = tree.as(stranger);
        const fd = await watch(actor);
        assert.equal(await actor.readable(fd), false);
        await tree.load(withId('i-2'));
        await eventually(async () => assert.equal(await actor.readable(fd), true));
        assert.deepEqual(pathsOf(await next(actor, fd)), ['changed /instance/id']);
        assert.equal(await actor.readable(fd), false);
      },
      cannot: { ...by9p(noWakeUp), virtiofs: noWakeUp },
    },
  ],
};
