import assert from 'node:assert/strict';
import { O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_WRONLY } from '../../../src/wire/index.ts';
import type { Driver } from '../driver.ts';
import { byV9fs } from '../ninep-ways.ts';
import { app, bytes, ok, plain, postgres, stranger, visitor, workshop } from '../people.ts';
import type { Topic } from '../suite.ts';

const four = [app, postgres, stranger, visitor];

/** Waits for all, and then fails with the first that failed: nothing goes on into the next case. */
async function together(tasks: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(tasks)) if (result.status === 'rejected') throw result.reason;
}

/** Readers overlap renames over what they read. `mayBeStale`: whom two of them meet is told so. */
async function readsOneOrOther(tree: Driver, mayBeStale: boolean): Promise<void> {
  const directory = await workshop(tree.as(app));
  const writer = tree.as(app);
  const value = (round: number) => `${round}:`.repeat(500 + 37 * round);
  assert.equal(await writer.writeFile(`${directory}/f`, value(0)), 'OK');
  const writes = { going: true };
  const write = async () => {
    try {
      for (let round = 1; round <= 12; round++) {
        assert.equal(await writer.writeFile(`${directory}/f.new`, value(round)), 'OK');
        assert.equal(await writer.rename(`${directory}/f.new`, `${directory}/f`), 'OK');
      }
    } finally {
      writes.going = false;
    }
  };
  const read = async (who: typeof app) => {
    const reader = tree.as(who);
    let reads = 0;
    let last = 0;
    while (writes.going || reads === 0) {
      const text = await reader.readText(`${directory}/f`);
      if (mayBeStale && text === 'ESTALE') continue;
      const round = Number(text.slice(0, text.indexOf(':')));
      assert.equal(text, value(round));
      assert.ok(round >= last, `${round} after ${last}`);
      last = round;
      reads++;
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  await together([write(), read(stranger), read(visitor)]);
  assert.equal(await tree.as(postgres).readText(`${directory}/f`), value(12));
}

/** Readers overlap a writer outside: each read from open to close is of one version. */
async function readsWhole(tree: Driver, tellsSize: boolean): Promise<void> {
  const value = (round: number) => `${round}:`.repeat(1000 + 531 * (round % 5));
  const spec = (round: number) => ({ ...plain, content: { instance: { id: value(round) } } });
  await tree.load(spec(0));
  const changes = { going: true, completed: 0 };
  const change = async () => {
    for (let round = 1; round <= 25; round++) {
      await tree.load(spec(round));
      changes.completed = round;
      await new Promise((resolve) => setImmediate(resolve));
    }
    changes.going = false;
  };
  const read = async (who: typeof app, bytesAtOnce: number) => {
    const actor = tree.as(who);
    for (let reads = 0; changes.going || reads === 0; reads++) {
      const before = changes.completed;
      const fd = ok(await actor.open('/instance/id', O_RDONLY));
      const { size } = ok(await actor.fstat(fd));
      const parts: Uint8Array[] = [];
      for (;;) {
        const part = ok(await actor.read(fd, bytesAtOnce));
        if (part.length === 0) break;
        parts.push(part);
      }
      await actor.close(fd);
      const text = Buffer.concat(parts).toString();
      const round = Number(text.slice(0, text.indexOf(':')));
      assert.equal(text, value(round));
      if (tellsSize) assert.equal(size, text.length);
      assert.ok(round >= before, `read ${round} when ${before} was complete`);
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  await together([change(), read(app, 1000), read(stranger, 65_536), read(visitor, 4096)]);
}

export const concurrency: Topic = {
  name: 'several at once',
  cases: [
    {
      name: 'write with O_APPEND of four at once loses nothing and mixes nothing',
      spec: plain,
      run: async (tree) => {
        const directory = await workshop(tree.as(app));
        const creator = tree.as(app);
        await creator.umask(0);
        await creator.close(ok(await creator.open(`${directory}/log`, O_WRONLY | O_CREAT, 0o666)));
        await Promise.all(
          four.map(async (who) => {
            const actor = tree.as(who);
            const fd = ok(await actor.open(`${directory}/log`, O_WRONLY | O_APPEND));
            for (let line = 0; line < 15; line++)
              assert.equal(await actor.write(fd, bytes(`${who.uid} ${line}\n`)), `${who.uid} ${line}\n`.length);
          }),
        );
        const lines = (await tree.as(app).readText(`${directory}/log`)).split('\n').slice(0, -1);
        const wanted = four.flatMap(({ uid }) => Array.from({ length: 15 }, (_, line) => `${uid} ${line}`));
        assert.deepEqual(lines.toSorted(), wanted.toSorted());
        for (const { uid } of four) {
          const own = lines.filter((line) => line.startsWith(`${uid} `));
          assert.deepEqual(
            own,
            wanted.filter((line) => line.startsWith(`${uid} `)),
          );
        }
      },
    },
    {
      name: 'create with O_EXCL of four at once is won by one',
      spec: plain,
      run: async (tree) => {
        const directory = await workshop(tree.as(app));
        const actors = four.map((who) => tree.as(who));
        for (let round = 0; round < 8; round++) {
          const path = `${directory}/lock-${round}`;
          const results = await Promise.all(actors.map((actor) => actor.open(path, O_WRONLY | O_CREAT | O_EXCL)));
          assert.equal(results.filter((result) => typeof result === 'number').length, 1);
          assert.equal(results.filter((result) => result === 'EEXIST').length, 3);
        }
      },
    },
    {
      name: 'rename over a file shows readers one or the other, whole, and never none',
      spec: plain,
      run: (tree) => readsOneOrOther(tree, false),
      cannot: byV9fs({
        because: 'Linux tries a name twice: a reader whom two renames in a row meet is told ESTALE',
        instead: (tree) => readsOneOrOther(tree, true),
      }),
    },
    {
      name: 'read while the outside changes the value gives one version whole',
      spec: plain,
      run: (tree) => readsWhole(tree, true),
      cannot: byV9fs({
        because: 'Linux’s 9P client asks for attributes by name: they are those of now',
        instead: (tree) => readsWhole(tree, false),
      }),
    },
  ],
};
