import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { openStores } from '../../src/store/index.ts';
import { ask, serve } from '../host/served-store.ts';
import { app } from '../tree/keepers.ts';
import { temporaryStore } from './temporary.ts';
import { timed } from './timed.ts';

const writes = 500;
const data = new Uint8Array(200);
const how = { offset: 0, append: false, truncate: true, grantedAtOpen: true };

test('Authority keeps many small writes of a guest in a store; how long they take beside raw SQLite', async (t) => {
  const options = temporaryStore(t);
  const raw = join(options.directory, '..', 'raw');
  mkdirSync(raw);
  using database = new DatabaseSync(join(raw, 'raw.db'));
  database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (k TEXT PRIMARY KEY, v BLOB)');
  const put = database.prepare('INSERT OR REPLACE INTO t VALUES (?, ?)');
  await using stores = await openStores(options);
  const { authority } = await serve(stores.region);
  const parentIno = authority.snapshot.resolve('/guest')!.ino;
  const inos: number[] = [];
  for (let i = 0; i < 32; i++) {
    const made = { op: 'create', caller: app, parentIno, name: `f${i}`, mode: 0o600, umask: 0 } as const;
    inos.push((await ask(authority, made)).ino);
  }
  let sequence = 0;
  const write = async (lane: number): Promise<void> => {
    const { errno } = await ask(authority, { op: 'write', caller: app, ino: inos[lane]!, data, ...how }, ++sequence);
    assert.equal(errno, 0);
  };
  const rawPut = (lane: number): unknown => put.run(`${lane}`, data);
  // They take turns, so that what else the machine does meets both.
  for (let round = 0; round < 2; round++) {
    await timed(t, 'raw SQLite, 1 writer', { commits: writes, lanes: 1 }, rawPut);
    await timed(t, 'tree, 1 write in flight', { commits: writes, lanes: 1 }, write);
    await timed(t, 'tree, 32 writes in flight', { commits: 4 * writes, lanes: 32 }, write);
  }
  const again = await serve(stores.region);
  assert.equal(again.tree.restored!.applied!.at(-1)!.sequence, sequence);
});
