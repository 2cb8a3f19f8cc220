import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StoreError } from '../store/index.ts';
import { TreeStoreError } from './tree-store.ts';
import { VmTree } from './vm-tree.ts';

const refusedWith = async (failure: Error): Promise<unknown> => {
  const tree = new VmTree({
    vm: 'web',
    epoch: 1,
    audit: () => true,
    kept: {
      persist: async () => {
        throw failure;
      },
    },
  });
  const bytes = new TextEncoder().encode('x');
  return tree.edit([{ op: 'put', path: '/a', bytes }], []).catch((error: unknown) => error);
};

test('VmTree says of a change that could not be kept whether it was done', async () => {
  const broken = new Error('the disk is broken');
  const doubt = await refusedWith(new TreeStoreError('TREE_IN_DOUBT', 'open the tree anew', broken));
  assert.deepEqual(
    [(doubt as { code?: string }).code, (doubt as Error).message],
    ['HOST_UNAVAILABLE', 'whether it was done is not known (the disk is broken); read it before you repeat it'],
  );
  const full = await refusedWith(new StoreError('STORE_FULL', 'there is no room'));
  assert.deepEqual(
    [(full as { code?: string }).code, (full as Error).message],
    ['HOST_FULL', 'nothing was changed: there is no room'],
  );
  const taken = await refusedWith(new TreeStoreError('TREE_TAKEN', 'another process has it'));
  assert.deepEqual(
    [(taken as { code?: string }).code, (taken as Error).message],
    ['HOST_UNAVAILABLE', 'nothing was changed: another process has it'],
  );
});
