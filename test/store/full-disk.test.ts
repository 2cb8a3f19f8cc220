import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { openStores, StoreError } from '../../src/store/index.ts';
import { SqliteFile, type Write } from '../../src/store/sqlite-file.ts';

const smallDisk = (t: TestContext): string => {
  const base = mkdtempSync(join(tmpdir(), 'porthole-full-'));
  const disk = join(base, 'disk');
  mkdirSync(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m,mode=0700', 'tmpfs', disk]);
  t.after(() => {
    execFileSync('umount', [disk]);
    rmSync(base, { recursive: true });
  });
  return disk;
};

const whySkipped = process.getuid?.() === 0 ? false : 'mounting a small tmpfs needs root';

test('Store fails a commit that finds no room, keeps the rest and goes on when there is room', {
  skip: whySkipped,
}, async (t) => {
  const disk = smallDisk(t);
  const options = { directory: join(disk, 'stores'), keyFile: join(disk, 'key') };
  const kept: string[] = [];
  {
    await using stores = await openStores(options);
    const { region } = stores;
    const value = new Uint8Array(200_000);
    let failure: unknown;
    for (let i = 0; failure === undefined && i < 100; i++) {
      try {
        await region.commit({ operations: [{ type: 'put', key: `k${i}`, value }] });
        kept.push(`k${i}`);
      } catch (error) {
        failure = error;
      }
    }
    assert(failure instanceof StoreError, String(failure));
    assert.equal(failure.code, 'STORE_FULL');
    assert.match(failure.message, /the disk is full/);
    assert(kept.length > 3, `${kept.length} kept`);

    const revision = await region.revision();
    assert.equal((await region.count({ start: '' })).count, kept.length);
    // Whichever way they were grouped, each is told of its own fate.
    const results = await Promise.allSettled([
      region.commit({ operations: [{ type: 'put', key: 'small/1', value: new Uint8Array(1) }] }),
      region.commit({ operations: [{ type: 'put', key: 'large', value: new Uint8Array(1_000_000) }] }),
    ]);
    assert.equal(results[1].status, 'rejected');
    assert.equal(await region.get('large'), undefined);
    assert.equal((await region.get('small/1')) !== undefined, results[0].status === 'fulfilled');
    await assert.rejects(stores.backup(join(disk, 'backup')), { code: 'STORE_FULL' });

    execFileSync('mount', ['-o', 'remount,size=16m', disk]);
    await region.commit({ operations: [{ type: 'put', key: 'after', value }] });
    kept.push('after');
    assert((await region.revision()) > revision);
    await stores.backup(join(disk, 'backup'));
  }
  await using stores = await openStores(options);
  for (const key of kept) assert.equal((await stores.region.get(key))?.value.length, 200_000, key);
});

test('SqliteFile.writeGroup fails only what finds no room when it is grouped with what does', {
  skip: whySkipped,
}, (t) => {
  const disk = smallDisk(t);
  using file = new SqliteFile({ directory: join(disk, 'stores'), keyFile: join(disk, 'key') });
  const put = (key: string, sizeBytes: number): Write => ({
    kind: 'commit',
    store: 'region',
    transaction: {
      conditions: [],
      operations: [
        { type: 'put', key: new Uint8Array(Buffer.from(key)), value: new Uint8Array(sizeBytes), leaseId: undefined },
      ],
    },
  });
  let filled = 0;
  while ('value' in file.writeGroup([put(`${filled}`, 400_000)]).results[0]! && filled < 100) filled++;
  const { results, changes } = file.writeGroup([put('small/1', 1), put('large', 1_000_000), put('small/2', 1)]);
  assert.deepEqual(
    results.map((result) => ('error' in result ? result.error.code : result.value)),
    [{ committed: true, revision: filled + 1 }, 'STORE_FULL', { committed: true, revision: filled + 2 }],
  );
  assert.deepEqual(
    changes.map(({ revision, keys }) => [revision, Buffer.from(keys[0]!).toString()]),
    [
      [filled + 1, 'small/1'],
      [filled + 2, 'small/2'],
    ],
  );
});
