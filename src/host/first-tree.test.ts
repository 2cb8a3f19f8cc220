import assert from 'node:assert/strict';
import { test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { openStores } from '../store/index.ts';
import { forgetFirstTree, loadFirstTree } from './first-tree.ts';
import { SpecTexts } from './spec-texts.ts';
import { TreeStore } from './tree-store.ts';
import { VmTree } from './vm-tree.ts';

test('forgetFirstTree leaves nothing of the spec of which the tree was made, also when the daemon ended in between', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const { region } = stores;
  const value = 'porthole: 1\nmetadata: { secrets: { db: hunter2 } }\n';
  await region.commit({ operations: [{ type: 'put', key: 'seed/web', value: Buffer.from(value) }] });
  const open = async (): Promise<VmTree> => {
    const { persist, restored } = await TreeStore.open(region, 'i-1');
    const kept = { persist, ...(restored && { restored }) };
    const tree = new VmTree({ vm: 'web', epoch: region.epoch, audit: () => true, kept });
    if (restored === undefined) await loadFirstTree(region, tree, new SpecTexts());
    return tree;
  };
  await open();
  assert.notEqual(await region.get('seed/web'), undefined);
  const tree = await open();
  await forgetFirstTree(region, 'web');
  assert.equal(await region.get('seed/web'), undefined);
  assert.equal(Buffer.from(tree.replica.snapshot.resolve('/secrets/db')!.bytes!).toString(), 'hunter2');
  const { revision } = await region.range({ start: 'seed/' });
  await forgetFirstTree(region, 'web');
  assert.equal(await region.revision(), revision);
});
