/** The first tree of a VM: from the spec that it was created with, which is kept no longer than needed. */
import type { Store } from '../store/index.ts';
import type { SpecTexts } from './spec-texts.ts';
import { checkedSpec } from './tree-port.ts';
import type { VmTree } from './vm-tree.ts';

const seedKey = (name: string): string => `seed/${name}`;

/** Resolves when it is durable. What `VmTree.load` and the store throw. */
export const loadFirstTree = async (region: Store, tree: VmTree, texts: SpecTexts): Promise<void> => {
  const seed = await region.get(seedKey(tree.vm));
  const text = seed === undefined ? 'porthole: 1' : new TextDecoder().decode(seed.value);
  await tree.load(checkedSpec(await texts.readSpec(text)).spec);
};

/**
 * Once the tree is kept: values of the spec that are removed, changed or burned later must not stay behind in it. What the
 * store throws; then it is forgotten when the tree is opened next.
 */
export const forgetFirstTree = async (region: Store, name: string): Promise<void> => {
  if ((await region.get(seedKey(name))) === undefined) return;
  await region.commit({ operations: [{ type: 'delete', key: seedKey(name) }] });
};
