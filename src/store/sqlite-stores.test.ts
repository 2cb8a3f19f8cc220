import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { ManualClock } from '../../test/store/manual-clock.ts';
import { temporaryStore } from '../../test/store/temporary.ts';
import { createKeyFile, keyText, openStores, type Store, StoreError, type StoreErrorCode } from './index.ts';

const put = (store: Store, key: string, value: string, leaseId?: number) =>
  store.commit({ operations: [{ type: 'put', key, value: Buffer.from(value), leaseId }] });

const read = async (store: Store, key: string): Promise<string | undefined> => {
  const entry = await store.get(key);
  return entry && keyText(entry.value);
};

const rejectsWith = (promise: Promise<unknown>, code: StoreErrorCode, message = /./): Promise<void> =>
  assert.rejects(promise, (error) => {
    assert(error instanceof StoreError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });

const edit = (directory: string, sql: string): void => {
  using database = new DatabaseSync(join(directory, 'store.db'));
  database.exec(sql);
};

test('openStores gives back both stores, apart, when they are opened again', async (t) => {
  const options = temporaryStore(t);
  {
    await using stores = await openStores(options);
    await put(stores.region, 'a', 'of the region');
    await put(stores.region, 'a', 'of the region, too');
    await put(stores.global, 'a', 'of all');
    await stores.region.compact(1);
  }
  await using stores = await openStores(options);
  assert.equal(await read(stores.region, 'a'), 'of the region, too');
  assert.equal(await read(stores.global, 'a'), 'of all');
  assert.deepEqual([await stores.region.revision(), await stores.global.revision()], [2, 1]);
  await rejectsWith(stores.region.watch({ start: '' }, { from: 1 }).next(), 'STORE_COMPACTED');
  assert.equal(stores.epoch, 1);
});

test('openStores gives leases their whole time again when they are opened again', async (t) => {
  const options = temporaryStore(t);
  let leaseId: number;
  {
    const clock = new ManualClock();
    await using stores = await openStores({ ...options, clock });
    leaseId = (await stores.region.grantLease(10)).id;
    await put(stores.region, 'a', '', leaseId);
    await clock.advance(9_000);
  }
  const clock = new ManualClock();
  await using stores = await openStores({ ...options, clock });
  await clock.advance(9_000);
  assert.equal(await read(stores.region, 'a'), '');
  const deleted = stores.region.watch({ start: 'a' }, { from: 2 }).next();
  await clock.advance(2_000);
  assert.equal((await deleted).value.revision, 2);
});

test('openStores makes files for their owner only and locks them when it opens', async (t) => {
  const options = temporaryStore(t);
  await using stores = await openStores(options);
  await put(stores.region, 'a', 'b');
  assert.equal(statSync(options.directory).mode & 0o777, 0o700);
  for (const file of readdirSync(options.directory))
    assert.equal(statSync(join(options.directory, file)).mode & 0o777, 0o600, file);
  assert.equal(statSync(options.keyFile).mode & 0o777, 0o600);
  await rejectsWith(openStores(options), 'STORE_LOCKED', /another process uses the state directory.*stop it/);
  // Nor does the attempt, in this very process, end the lock for others.
  const program = `import { openStores } from '${new URL('./index.ts', import.meta.url).href}';
    await openStores(${JSON.stringify(options)}).then(() => console.log('opened'), (error) => console.log(error.code));
    process.exit();`;
  const file = `${options.directory}.other.mjs`;
  writeFileSync(file, program);
  const other = spawnSync(process.execPath, [file], { encoding: 'utf8' });
  assert.equal(other.stdout, 'STORE_LOCKED\n', other.stderr);
});

test('openStores refuses what is no regular file when it finds one in its place', async (t) => {
  const options = temporaryStore(t);
  await (await openStores(options)).close();
  const file = join(options.directory, 'store.db');
  renameSync(file, `${file}.real`);
  symlinkSync(`${file}.real`, file);
  await rejectsWith(openStores(options), 'STORE_FOREIGN', /not a regular file/);
});

test('Store keeps no value in clear on the disk when it is committed, overwritten or backed up', async (t) => {
  const options = temporaryStore(t);
  const backup = `${options.directory}.backup`;
  {
    await using stores = await openStores(options);
    await put(stores.region, 'name', 'correct horse battery staple');
    await put(stores.region, 'name', 'correct horse battery staple, changed');
    await stores.backup(backup);
    assert(existsSync(join(options.directory, 'store.db-wal')));
    for (const file of [backup, ...readdirSync(options.directory).map((name) => join(options.directory, name))])
      assert.equal(readFileSync(file).includes('correct horse'), false, file);
  }
  const bytes = readFileSync(join(options.directory, 'store.db'));
  assert.equal(bytes.includes('correct horse'), false);
  assert.equal(bytes.includes('name'), true);
});

test('Store says that a value was exchanged when values are swapped in the file', async (t) => {
  const options = temporaryStore(t);
  {
    await using stores = await openStores(options);
    await put(stores.region, 'user', 'mallory');
    await put(stores.region, 'admin', 'alice');
  }
  const swap = `UPDATE region_log SET value = (SELECT value FROM region_log WHERE key = x'${Buffer.from('user').toString('hex')}')
     WHERE key = x'${Buffer.from('admin').toString('hex')}'`;
  await using stores = await openStores(options);
  edit(options.directory, swap);
  assert.equal(await read(stores.region, 'user'), 'mallory');
  await rejectsWith(
    read(stores.region, 'admin'),
    'STORE_DAMAGED',
    /"admin" at revision 2.*put in the place of another/,
  );
  await put(stores.region, 'admin', 'alice');
  assert.equal(await read(stores.region, 'admin'), 'alice');
  await stores.close();
  await rejectsWith(openStores(options), 'STORE_DAMAGED', /"admin" at revision 2/);
});

test('openStores says which key is needed when the key file is wrong, missing or open to others', async (t) => {
  const options = temporaryStore(t);
  await (await openStores(options)).close();
  chmodSync(options.keyFile, 0o644);
  await rejectsWith(openStores(options), 'STORE_KEY_EXPOSED', /chmod 600/);
  const other = `${options.keyFile}.other`;
  createKeyFile(other);
  await rejectsWith(
    openStores({ ...options, keyFile: other }),
    'STORE_KEY_WRONG',
    /is key [0-9a-f]{16}.*lost for good/,
  );
  rmSync(options.keyFile);
  await rejectsWith(openStores(options), 'STORE_KEY_MISSING', /put it back/);
  assert.equal(existsSync(options.keyFile), false, 'a key was made for a store that has one');
});

test('openStores refuses the file when it is damaged, foreign or too new', async (t) => {
  const options = temporaryStore(t);
  const file = join(options.directory, 'store.db');
  {
    await using stores = await openStores(options);
    for (let i = 0; i < 40; i++) await put(stores.region, `key ${i}`, 'x'.repeat(2000));
  }
  const bytes = readFileSync(file);
  const damagedBytes = Buffer.from(bytes).fill(0xee, 4096, 16 * 4096);
  writeFileSync(file, damagedBytes);
  await rejectsWith(openStores(options), 'STORE_DAMAGED', /is damaged; restore it from a backup/);
  writeFileSync(file, 'no database at all, but long enough to be looked at as one. '.repeat(100));
  await rejectsWith(openStores(options), 'STORE_DAMAGED');
  writeFileSync(file, bytes);
  edit(options.directory, 'PRAGMA user_version = 99');
  await rejectsWith(openStores(options), 'STORE_TOO_NEW', /format 99, known here 2/);
  edit(options.directory, 'PRAGMA user_version = 1; PRAGMA application_id = 7');
  await rejectsWith(openStores(options), 'STORE_FOREIGN');
});

/** Takes back what version 2 of the tables changed. */
const asVersion1 = ['region', 'global']
  .map(
    (name) => `
    CREATE UNIQUE INDEX ${name}_log_key ON ${name}_log (key, revision);
    CREATE INDEX ${name}_log_revision ON ${name}_log (revision);
    ALTER TABLE ${name}_log DROP COLUMN previous;
    UPDATE stores SET revision = (SELECT coalesce(max(revision), 0) FROM ${name}_log) WHERE name = '${name}';
    PRAGMA user_version = 1;`,
  )
  .join('');

test('openStores reads what version 1 of the tables has, at every revision, and compacts it', async (t) => {
  const options = temporaryStore(t);
  {
    await using stores = await openStores(options);
    const { region } = stores;
    await put(region, 'a', '1');
    await put(region, 'b', '2');
    await region.commit({ operations: [{ type: 'delete', key: 'b' }] });
    await put(region, 'a', '4');
    await put(region, 'b', '5');
    await put(region, 'c', '6');
  }
  edit(options.directory, asVersion1);
  await using stores = await openStores(options);
  const { region } = stores;
  const at = async (revision: number): Promise<string> => {
    const { entries } = await region.range({ start: '' }, { revision });
    assert.equal((await region.count({ start: '' }, { revision })).count, entries.length);
    return entries.map(({ key, value }) => keyText(key) + keyText(value)).join(' ');
  };
  assert.equal(await region.revision(), 6);
  const seen: string[] = [];
  for (let revision = 0; revision <= 6; revision++) seen.push(await at(revision));
  assert.deepEqual(seen, ['', 'a1', 'a1 b2', 'a1', 'a4', 'a4 b5', 'a4 b5 c6']);
  await put(region, 'b', '7');
  await region.compact(4);
  assert.deepEqual([await at(4), await at(6), await at(7)], ['a4', 'a4 b5 c6', 'a4 b7 c6']);
  await region.compact(7);
  await stores.close();
  using database = new DatabaseSync(join(options.directory, 'store.db'));
  assert.equal(database.prepare('SELECT count(*) AS rows FROM region_log').get()!['rows'], 3);
  assert.equal(
    database.prepare("SELECT count(*) AS n FROM sqlite_schema WHERE name LIKE '%\\_log\\_%' ESCAPE '\\'").get()!['n'],
    0,
  );
});

const dataKeys = (directory: string): number[] => {
  using database = new DatabaseSync(join(directory, 'store.db'), { readOnly: true });
  return database
    .prepare('SELECT id FROM data_keys ORDER BY id')
    .all()
    .map((row) => row['id'] as number);
};

test('Stores.rotateDataKey seals all anew, forgets the old key and changes nothing else', async (t) => {
  const options = temporaryStore(t);
  await using stores = await openStores(options);
  // More than one step of resealing.
  for (let i = 0; i < 12; i++) {
    const operations = Array.from({ length: 50 }, (_, k) => ({
      type: 'put' as const,
      key: `${i}/${k}`,
      value: Buffer.from(`${i} ${k}`),
    }));
    await stores.region.commit({ operations });
  }
  await put(stores.global, 'a', 'b');
  const before = await stores.region.range({ start: '' });
  const [resealed] = await Promise.all([stores.rotateDataKey(), put(stores.region, 'meanwhile', 'written')]);
  assert(resealed === 601 || resealed === 602, `${resealed}`);
  assert.deepEqual(dataKeys(options.directory), [2]);
  assert.deepEqual((await stores.region.range({ start: '' }, { revision: before.revision })).entries, before.entries);
  assert.deepEqual([await read(stores.region, 'meanwhile'), await read(stores.global, 'a')], ['written', 'b']);
  assert.equal(await stores.region.revision(), before.revision + 1);
});

test('Stores.rotateDataKey does what is left when an earlier one was interrupted', async (t) => {
  const options = temporaryStore(t);
  {
    await using stores = await openStores(options);
    await put(stores.region, 'a', '1');
    const stop = new AbortController();
    const rotation = stores.rotateDataKey({ signal: stop.signal });
    stop.abort();
    await assert.rejects(rotation, { name: 'AbortError' });
    await put(stores.region, 'b', '2');
    assert.equal(await read(stores.region, 'b'), '2');
    assert.deepEqual(dataKeys(options.directory), [1, 2]);
  }
  await using stores = await openStores(options);
  assert.equal(await read(stores.region, 'a'), '1');
  assert.equal(await stores.rotateDataKey(), 2);
  assert.deepEqual(dataKeys(options.directory), [3]);
  assert.deepEqual([await read(stores.region, 'a'), await read(stores.region, 'b')], ['1', '2']);
});

test('Stores.rotateDataKey loses nothing when rotations overlap and when data keys wear out meanwhile', async (t) => {
  const options = temporaryStore(t);
  const keys = Array.from({ length: 60 }, (_, i) => `${i}`);
  {
    await using stores = await openStores({ ...options, sealsPerDataKey: 40 });
    for (const key of keys) await put(stores.region, key, key);
    await Promise.all([
      stores.rotateDataKey(),
      stores.rotateDataKey(),
      ...keys.map((key) => put(stores.global, key, key)),
      stores.rotateDataKey(),
    ]);
  }
  await using stores = await openStores(options);
  for (const key of keys)
    assert.deepEqual([await read(stores.region, key), await read(stores.global, key)], [key, key]);
});

test('Store seals by another data key when one has sealed its share', async (t) => {
  const options = temporaryStore(t);
  for (const round of [1, 2]) {
    await using stores = await openStores({ ...options, sealsPerDataKey: 4 });
    for (let i = 0; i < 5; i++) await put(stores.region, `${round}/${i}`, `${i}`);
    for (let i = 0; i < 5; i++) assert.equal(await read(stores.region, `1/${i}`), `${i}`);
  }
  assert.equal(dataKeys(options.directory).length, 3);
});

test('Stores.changeKeyFile lets only the new key open the store', async (t) => {
  const options = temporaryStore(t);
  const keyFile = `${options.keyFile}.new`;
  {
    await using stores = await openStores(options);
    await put(stores.region, 'a', '1');
    await rejectsWith(stores.changeKeyFile(keyFile), 'STORE_KEY_MISSING');
    createKeyFile(keyFile);
    await stores.changeKeyFile(keyFile);
    await stores.rotateDataKey();
    assert.equal(await read(stores.region, 'a'), '1');
  }
  await rejectsWith(openStores(options), 'STORE_KEY_WRONG');
  await using stores = await openStores({ ...options, keyFile });
  assert.equal(await read(stores.region, 'a'), '1');
});

test('Store forgets old history by itself and keeps what it was told to keep', async (t) => {
  await using stores = await openStores({ ...temporaryStore(t), retainRevisions: 20 });
  const { region } = stores;
  await put(region, 'kept', 'x');
  for (let i = 2; i <= 100; i++) await put(region, 'a', `${i}`);
  await assert.rejects(region.watch({ start: '' }, { from: 40 }).next(), { code: 'STORE_COMPACTED' });
  assert.equal((await region.watch({ start: '' }, { from: 81 }).next()).value.revision, 81);
  assert.equal(await read(region, 'kept'), 'x');
});

test('Store forgets old history when its values are large, also what was put before it was opened', async (t) => {
  const options = { ...temporaryStore(t), retainBytes: 100_000 };
  const large = 'x'.repeat(5_000);
  {
    await using stores = await openStores(options);
    await put(stores.region, 'kept', large);
    for (let i = 2; i <= 30; i++) await put(stores.region, 'a', large);
  }
  await using stores = await openStores(options);
  const { region } = stores;
  for (let i = 31; i <= 200; i++) await put(region, 'a', large);
  await rejectsWith(region.watch({ start: '' }, { from: 150 }).next(), 'STORE_COMPACTED');
  assert.equal((await region.watch({ start: '' }, { from: 182 }).next()).value.revision, 182);
  assert.equal(await read(region, 'kept'), large);
  await stores.close();
  using database = new DatabaseSync(join(options.directory, 'store.db'));
  const { bytes } = database.prepare('SELECT sum(length(value)) AS bytes FROM region_log').get()!;
  assert.ok((bytes as number) < 250_000, `${String(bytes)} bytes are left of 1,000,000`);
});

test('Store ends what waits and refuses what comes when it is closed', async (t) => {
  const stores = await openStores(temporaryStore(t));
  await put(stores.region, 'a', '1');
  const watching = rejectsWith(stores.region.watch({ start: 'b' }, { from: 2 }).next(), 'STORE_CLOSED', /is closed/);
  const written = put(stores.region, 'a', '2');
  await stores.close();
  await watching;
  await written;
  await rejectsWith(put(stores.region, 'a', '3'), 'STORE_CLOSED');
  await rejectsWith(stores.region.keepAlive(1), 'STORE_CLOSED');
  await stores.close();
});
