import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { openStores } from '../../src/store/index.ts';
import { temporaryStore } from './temporary.ts';
import { timed } from './timed.ts';

const commits = 1_000;
const value = new Uint8Array(200);

test('Store keeps each of many commits at once; how long they take beside raw SQLite', async (t) => {
  const options = temporaryStore(t);
  const raw = join(options.directory, '..', 'raw');
  mkdirSync(raw);
  {
    using database = new DatabaseSync(join(raw, 'raw.db'));
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (k TEXT PRIMARY KEY, v BLOB)');
    const put = database.prepare('INSERT INTO t VALUES (?, ?)');
    await timed(t, 'raw SQLite, 1 writer', { commits, lanes: 1 }, (_lane, n) => put.run(`${n}`, value));
  }
  await using stores = await openStores(options);
  const put = (prefix: string) => (lane: number, n: number) =>
    stores.region.commit({ operations: [{ type: 'put', key: `${prefix}/${lane}/${n}`, value }] });
  await timed(t, 'store, 1 writer', { commits, lanes: 1 }, put('one'));
  await timed(t, 'store, 50 writers', { commits, lanes: 50 }, put('many'));
  assert.equal((await stores.region.count({ start: '' })).count, 2 * commits);
});
