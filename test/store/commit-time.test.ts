import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { openStores } from '../../src/store/index.ts';
import { temporaryStore } from './temporary.ts';

const commits = 1_000;
const value = new Uint8Array(200);

const describe = (what: string, timesMs: readonly number[], elapsedMs: number): string => {
  const sorted = timesMs.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor(sorted.length * share)]!.toFixed(3);
  return `${what}: p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, ${Math.round((timesMs.length * 1000) / elapsedMs)}/s`;
};

const timed = async (t: TestContext, what: string, lanes: number, commit: (key: string) => unknown): Promise<void> => {
  const timesMs: number[] = [];
  const startMs = performance.now();
  const lane = async (name: number): Promise<void> => {
    for (let i = 0; i < commits / lanes; i++) {
      const beforeMs = performance.now();
      await commit(`${name}/${i}`);
      timesMs.push(performance.now() - beforeMs);
    }
  };
  await Promise.all(Array.from({ length: lanes }, (_, name) => lane(name)));
  t.diagnostic(describe(what, timesMs, performance.now() - startMs));
};

test('Store keeps each of many commits at once; how long they take beside raw SQLite', async (t) => {
  const options = temporaryStore(t);
  const raw = join(options.directory, '..', 'raw');
  mkdirSync(raw);
  {
    using database = new DatabaseSync(join(raw, 'raw.db'));
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (k TEXT PRIMARY KEY, v BLOB)');
    const put = database.prepare('INSERT INTO t VALUES (?, ?)');
    await timed(t, 'raw SQLite, 1 writer', 1, (key) => put.run(key, value));
  }
  await using stores = await openStores(options);
  const put = (prefix: string) => (key: string) =>
    stores.region.commit({ operations: [{ type: 'put', key: prefix + key, value }] });
  await timed(t, 'store, 1 writer', 1, put('one/'));
  await timed(t, 'store, 50 writers', 50, put('many/'));
  assert.equal((await stores.region.count({ start: '' })).count, 2 * commits);
});
