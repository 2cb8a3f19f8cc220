import assert from 'node:assert/strict';
import { test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { copyStores, keyText, mustBeWhole, openStores, type Store } from './index.ts';

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));

test('copyStores copies both stores, leases too, and refuses what is not empty', async (t) => {
  await using from = await openStores(temporaryStore(t));
  await using to = await openStores(temporaryStore(t));
  const { id } = await from.region.grantLease(60);
  const large = new Uint8Array(1_000_000).fill(7);
  for (let i = 0; i < 3; i++)
    await from.region.commit({ operations: [{ type: 'put', key: `large${i}`, value: large }] });
  for (let i = 0; i < 150; i++)
    await from.global.commit({ operations: [{ type: 'put', key: `k${i}`, value: bytes(`${i}`) }] });
  await from.region.commit({ operations: [{ type: 'put', key: 'leased', value: bytes('x'), leaseId: id }] });
  const told: number[] = [];
  const { keys, digest } = await copyStores(from, to, { onProgress: (done, total) => told.push(done / total) });
  assert.deepEqual([keys, told.at(-1)], [154, 1]);
  assert.match(digest, /^[\da-f]{64}$/);
  assert.equal(keyText((await to.global.get('k149'))!.value), '149');
  assert.deepEqual((await to.region.get('large2'))!.value, large);
  const { leaseId } = (await to.region.get('leased'))!;
  await to.region.revokeLease(leaseId!);
  assert.equal(await to.region.get('leased'), undefined);
  await mustBeWhole(to);
  await assert.rejects(copyStores(from, to), { code: 'STORE_EXISTS' });
});

test('mustBeWhole refuses stores when a copy into them was cut short', async (t) => {
  await using from = await openStores(temporaryStore(t));
  await using to = await openStores(temporaryStore(t));
  for (let i = 0; i < 150; i++)
    await from.region.commit({ operations: [{ type: 'put', key: `k${i}`, value: bytes(`${i}`) }] });
  const stop = new AbortController();
  const copying = copyStores(from, to, { signal: stop.signal, onProgress: () => stop.abort() });
  await assert.rejects(copying, { name: 'AbortError' });
  await assert.rejects(mustBeWhole(to), /a copy into this store was not finished/);
});

test('mustBeWhole refuses stores when a copy into them was cut short while it was read back', async (t) => {
  await using from = await openStores(temporaryStore(t));
  await using to = await openStores(temporaryStore(t));
  const cut: Store['range'] = async () => {
    throw new Error('cut off');
  };
  const region = new Proxy(to.region, {
    get: (target, name: keyof Store) => {
      const member: unknown = name === 'range' ? cut : target[name];
      return typeof member === 'function' ? (member.bind(target) as unknown) : member;
    },
  });
  await assert.rejects(copyStores(from, { ...to, region, global: to.global }), /cut off/);
  await assert.rejects(mustBeWhole(to), /a copy into this store was not finished/);
});
