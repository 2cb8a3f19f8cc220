import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { createKeyFile, openStores, restoreStores, type Store } from './index.ts';

const put = (store: Store, key: string, value: string) =>
  store.commit({ operations: [{ type: 'put', key, value: Buffer.from(value) }] });

const read = async (store: Store, key: string): Promise<string | undefined> => {
  const entry = await store.get(key);
  return entry && Buffer.from(entry.value).toString();
};

/** A backup of `before` in both stores; `after` came later. */
const backedUp = async (t: TestContext) => {
  const options = temporaryStore(t);
  const backup = `${options.directory}.backup`;
  await using stores = await openStores(options);
  await put(stores.region, 'a', 'before');
  await put(stores.global, 'a', 'before');
  await stores.backup(backup);
  await put(stores.region, 'a', 'after');
  return { ...options, backup };
};

test('Stores.backup is one moment of a store that is written meanwhile, and never replaces a file', async (t) => {
  const options = temporaryStore(t);
  const backup = `${options.directory}.backup`;
  let last = 0;
  {
    await using stores = await openStores(options);
    const stop = new AbortController();
    const started = Promise.withResolvers<void>();
    const writing = (async () => {
      for (let n = 1; !stop.signal.aborted; n++) {
        const value = Buffer.from(`${n}`);
        const keys = ['a', 'b', 'c'];
        await stores.region.commit({ operations: keys.map((key) => ({ type: 'put', key, value })) });
        last = n;
        if (n === 5) started.resolve();
      }
    })();
    await started.promise;
    const atStart = last;
    await stores.backup(backup);
    stop.abort();
    await writing;
    await assert.rejects(stores.backup(backup), { code: 'STORE_EXISTS' });
    assert.equal(statSync(backup).mode & 0o777, 0o600);
    assert.equal(existsSync(`${backup}.partial`), false);
    await stores.close();
    restoreStores({ ...options, backup });
    await using restored = await openStores(options);
    const values = new Set(
      [...(await restored.region.range({ start: '' })).entries].map(({ value }) => Number(Buffer.from(value))),
    );
    assert.equal(values.size, 1);
    const [n] = values;
    assert(n! >= atStart && n! <= last, `${n} of ${atStart} to ${last}`);
  }
});

test('restoreStores puts the backup in place, raises the epoch each time and keeps what was there', async (t) => {
  const options = await backedUp(t);
  const first = restoreStores({ ...options, nowSeconds: 1_000 });
  assert.equal(first.epoch, 1_000);
  {
    await using stores = await openStores(options);
    assert.deepEqual([await read(stores.region, 'a'), await read(stores.global, 'a')], ['before', 'before']);
    assert.deepEqual([stores.epoch, stores.region.epoch, stores.global.epoch], [1_000, 1_000, 1_000]);
    assert.throws(() => restoreStores(options), { code: 'STORE_LOCKED' });
  }
  assert.equal(restoreStores({ ...options, nowSeconds: 5 }).epoch, 1_001);
  // What the first one replaced is a whole store.
  const file = join(options.directory, 'store.db');
  rmSync(file);
  renameSync(first.replaced!, file);
  if (existsSync(`${first.replaced}-wal`)) renameSync(`${first.replaced}-wal`, `${file}-wal`);
  await using stores = await openStores(options);
  assert.equal(await read(stores.region, 'a'), 'after');
});

test('restoreStores keeps the store of a process that was killed as one file', async (t) => {
  const options = await backedUp(t);
  const copy = `${options.directory}.killed`;
  mkdirSync(copy, { mode: 0o700 });
  t.after(() => rmSync(copy, { recursive: true, force: true }));
  {
    await using stores = await openStores(options);
    await put(stores.region, 'a', 'the newest');
    // As it is on the disk when nobody closes it.
    for (const suffix of ['', '-wal'])
      copyFileSync(join(options.directory, `store.db${suffix}`), join(copy, `store.db${suffix}`));
  }
  const { replaced } = restoreStores({ ...options, directory: copy });
  const kept = join(copy, 'store.db');
  rmSync(kept);
  renameSync(replaced!, kept);
  await using stores = await openStores({ ...options, directory: copy });
  assert.equal(await read(stores.region, 'a'), 'the newest');
});

test('restoreStores works when the store is damaged or gone', async (t) => {
  const options = await backedUp(t);
  const file = join(options.directory, 'store.db');
  writeFileSync(file, 'damaged'.repeat(1000));
  await assert.rejects(openStores(options), { code: 'STORE_DAMAGED' });
  restoreStores(options);
  rmSync(options.directory, { recursive: true });
  assert.equal(restoreStores(options).replaced, undefined);
  await using stores = await openStores(options);
  assert.equal(await read(stores.region, 'a'), 'before');
});

test('restoreStores leaves the store alone when the backup is damaged, foreign, of another key or not there', async (t) => {
  const options = await backedUp(t);
  const broken = `${options.backup}.broken`;
  const restore = (change: Partial<Parameters<typeof restoreStores>[0]>) => () =>
    restoreStores({ ...options, ...change });
  assert.throws(restore({ backup: broken }), { code: 'STORE_MISSING', message: /there is no backup/ });
  writeFileSync(broken, '');
  assert.throws(restore({ backup: broken }), { code: 'STORE_DAMAGED', message: /is empty; use another/ });
  writeFileSync(broken, readFileSync(options.backup).fill(0xee, 4096, 8192));
  assert.throws(restore({ backup: broken }), {
    code: 'STORE_DAMAGED',
    message: /the backup .* is damaged; use another/,
  });
  copyFileSync(options.backup, broken);
  {
    using database = new DatabaseSync(broken);
    database.exec('UPDATE global_log SET value = (SELECT value FROM region_log)');
  }
  assert.throws(restore({ backup: broken }), {
    code: 'STORE_DAMAGED',
    message: /"a" at revision 1 in the global store/,
  });
  createKeyFile(broken + '.key');
  assert.throws(restore({ keyFile: broken + '.key' }), { code: 'STORE_KEY_WRONG' });
  assert.equal(existsSync(join(options.directory, 'store.db.restoring')), false);
  await using stores = await openStores(options);
  assert.equal(await read(stores.region, 'a'), 'after');
});

test('openStores makes no empty store when a restore was interrupted', async (t) => {
  const options = await backedUp(t);
  const file = join(options.directory, 'store.db');
  // As between the two renames.
  renameSync(file, `${file}.before-epoch-7`);
  copyFileSync(options.backup, `${file}.restoring`);
  await assert.rejects(openStores(options), { code: 'STORE_MISSING', message: /was not finished; run it again/ });
  restoreStores(options);
  await using stores = await openStores(options);
  assert.equal(await read(stores.region, 'a'), 'before');
});
