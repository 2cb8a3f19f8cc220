import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Store, StoreError } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { startApi } from './api.ts';

test('keys can be rotated again after a rotation whose end found the disk full', async (t) => {
  const api = await startApi(t);
  const region = api.stores.region as { commit: Store['commit'] };
  const commit = region.commit.bind(region);
  let refused = 0;
  let isFull = true;
  region.commit = async (transaction, options) => {
    const isEnd = transaction.operations.some(({ type, key }) => type === 'delete' && key === 'rotation');
    if (!isFull || !isEnd) return commit(transaction, options);
    refused++;
    throw new StoreError('STORE_FULL', 'the disk is full');
  };
  const rotate = () => api.ask({ method: 'POST', path: '/v1/store/rotate', body: {} });
  const begun = await rotate();
  assert.equal(begun.status, 202, begun.text);
  await until('its end', () => refused > 0);
  assert.equal((await rotate()).status, 409);
  isFull = false;
  const path = String(begun.headers['location']);
  await until('the operation', async () => `${(await api.ask({ path })).json['state']}` === 'succeeded');
  assert.equal((await rotate()).status, 202);
});
