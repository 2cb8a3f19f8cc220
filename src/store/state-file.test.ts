import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { StoreError } from './error.ts';
import { StateFile } from './state-file.ts';

const temporary = (t: TestContext): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-store-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
};

const failure = (run: () => unknown): StoreError => {
  try {
    run();
  } catch (error) {
    assert(error instanceof StoreError, String(error));
    return error;
  }
  throw new assert.AssertionError({ message: 'it did not fail' });
};

const key = fc.string({ unit: 'grapheme', maxLength: 6 }).filter((text) => text.isWellFormed() && !text.includes('\0'));

test('StateFile gives back what was committed when it is opened again', (t) => {
  const changes = fc.array(
    fc.array(fc.record({ key, value: fc.option(fc.uint8Array({ maxLength: 20 }), { nil: undefined }) }), {
      maxLength: 5,
    }),
    { maxLength: 5 },
  );
  fc.assert(
    fc.property(changes, key, (commits, prefix) => {
      const directory = join(temporary(t), 'state');
      const model = new Map<string, Uint8Array>();
      {
        using store = new StateFile({ directory });
        for (const commit of commits) {
          store.commit(commit);
          for (const { key, value } of commit) {
            if (value === undefined) model.delete(key);
            else model.set(key, value);
          }
        }
      }
      using store = new StateFile({ directory });
      const expected = [...model]
        .filter(([key]) => key.startsWith(prefix))
        .toSorted(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
        .map(([key, value]) => ({ key, value: Uint8Array.from(value) }));
      assert.deepEqual(
        store.scan(prefix).map(({ key, value }) => ({ key, value: Uint8Array.from(value) })),
        expected,
      );
      for (const { key, value } of expected) assert.deepEqual(Uint8Array.from(store.get(key) ?? []), value);
    }),
    { numRuns: 15 },
  );
});

test('StateFile makes files for its owner only when it makes them', (t) => {
  const directory = join(temporary(t), 'a', 'state');
  using store = new StateFile({ directory });
  store.commit([{ key: 'a', value: Uint8Array.of(1) }]);
  assert.equal(statSync(directory).mode & 0o777, 0o700);
  const files = readdirSync(directory);
  assert.ok(files.includes('porthole.db-wal'));
  for (const file of files) assert.equal(statSync(join(directory, file)).mode & 0o777, 0o600, file);
});

test('StateFile keeps nothing of a commit when a change of it fails', (t) => {
  using store = new StateFile({ directory: join(temporary(t), 'state') });
  store.commit([{ key: 'a', value: Uint8Array.of(1) }]);
  const broken = { key: 'b', value: 'text' as unknown as Uint8Array };
  assert.equal(failure(() => store.commit([{ key: 'a', value: undefined }, broken])).code, 'STORE_FAILED');
  assert.deepEqual(
    store.scan('').map((entry) => entry.key),
    ['a'],
  );
  store.commit([{ key: 'c', value: Uint8Array.of(1) }]);
  assert.deepEqual(
    store.scan('').map((entry) => entry.key),
    ['a', 'c'],
  );
});

test('StateFile refuses a directory when another store has it open for writing', (t) => {
  const directory = join(temporary(t), 'state');
  {
    using store = new StateFile({ directory });
    store.commit([{ key: 'a', value: Uint8Array.of(1) }]);
    const error = failure(() => new StateFile({ directory }));
    assert.equal(error.code, 'STORE_LOCKED');
    assert.match(error.message, /another process uses the state directory ".*"; stop it/);
    using reader = new StateFile({ directory, readOnly: true });
    assert.deepEqual(
      reader.scan('').map((entry) => entry.key),
      ['a'],
    );
    assert.equal(failure(() => reader.commit([])).code, 'STORE_FAILED');
  }
  new StateFile({ directory }).close();
});

test('StateFile says what is wrong when its directory or file is not as it must be', (t) => {
  const base = temporary(t);
  chmodSync(base, 0o755);
  assert.match(
    failure(() => new StateFile({ directory: base })).message,
    /has mode 0755, but holds secrets; run: chmod 700 '/,
  );
  const directory = join(base, 'state');
  assert.equal(failure(() => new StateFile({ directory, readOnly: true })).code, 'STORE_MISSING');
  new StateFile({ directory }).close();
  const file = join(directory, 'porthole.db');

  const other = new DatabaseSync(file);
  other.exec('PRAGMA user_version = 99');
  assert.match(
    failure(() => new StateFile({ directory })).message,
    /newer version of Porthole \(format 99, known here 1\)/,
  );
  other.exec('PRAGMA user_version = 1; PRAGMA application_id = 7');
  assert.equal(failure(() => new StateFile({ directory })).code, 'STORE_FOREIGN');
  other.close();

  writeFileSync(file, 'no database at all, but long enough to be looked at as one. '.repeat(100));
  assert.equal(failure(() => new StateFile({ directory })).code, 'STORE_DAMAGED');
});

test('StateFile reports damage when pages of its file are overwritten', (t) => {
  const directory = join(temporary(t), 'state');
  {
    using store = new StateFile({ directory });
    store.commit(Array.from({ length: 500 }, (_, i) => ({ key: `key ${i}`, value: new Uint8Array(200).fill(i) })));
  }
  const file = join(directory, 'porthole.db');
  const bytes = readFileSync(file);
  assert.ok(bytes.length > 20 * 4096, `${bytes.length}`);
  bytes.fill(0xee, 4096, 16 * 4096);
  writeFileSync(file, bytes);
  assert.equal(failure(() => new StateFile({ directory })).code, 'STORE_DAMAGED');
});
