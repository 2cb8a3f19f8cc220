import assert from 'node:assert/strict';
import { test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { openStores } from '../store/index.ts';
import { ImageNames } from './image-names.ts';

test('ImageNames keeps bytes that are named while another name of theirs is removed, and drops those without one', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const stored = new Set<string>();
  const names = new ImageNames(stores.region, (digest) => stored.delete(digest));
  const image = (version: string) => ({ name: 'tiny', version });
  const store = (digest: string) => async () => {
    stored.add(digest);
    return { digest };
  };
  await names.add(image('1'), store('a'));
  const [found, removed] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  // The same bytes again: they are there, and are named when the other name is gone.
  const adding = names.add(image('2'), async () => {
    found.resolve();
    await removed.promise;
    return { digest: 'a' };
  });
  await found.promise;
  await names.remove(image('1'));
  removed.resolve();
  await adding;
  assert.deepEqual([...stored], ['a']);
  await names.remove(image('2'));
  await names.remove(image('2'));
  assert.deepEqual([...stored], []);
  // Nobody gave these up: the one that was added meanwhile has failed.
  await names.add(image('3'), store('b'));
  const failing = Promise.withResolvers<{ digest: string }>();
  const failed = names.add(image('4'), () => failing.promise);
  await names.remove(image('3'));
  assert.deepEqual([...stored], ['b']);
  failing.reject(new Error('refused'));
  await assert.rejects(failed, /refused/);
  assert.deepEqual([...stored], []);
});
