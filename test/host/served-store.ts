/** A tree in a store with its authority, and short ways to change it. */
import { digestOf } from '../../src/host/node-record.ts';
import { TreeStore } from '../../src/host/tree-store.ts';
import type { Store } from '../../src/store/index.ts';
import {
  Authority,
  type AuthorityOptions,
  type Edit,
  type Mutation,
  type Outcome,
  ways,
} from '../../src/tree/index.ts';
import { specOf } from '../tree/world.ts';

export const file = (path: string, size: number, fill: number): Edit => ({
  op: 'put',
  path,
  bytes: new Uint8Array(size).fill(fill),
});
const options = { vm: 'test', wallMs: () => 1_700_000_000_000, digest: digestOf, audit: () => true };
export const specOne = specOf({ content: { guest: {}, instance: { id: 'i-1' } } });

export const makeAuthority = (more: Partial<AuthorityOptions>): Authority => new Authority({ ...options, ...more });

/** An authority on a tree in a store. The tree is made where it is not there. */
export const serve = async (store: Store, vmId = 'i-1') => {
  const tree = await TreeStore.open(store, vmId);
  const authority = makeAuthority({ persist: tree.persist, ...(tree.restored && { restored: tree.restored }) });
  if (tree.restored === undefined) await authority.load(specOne).durable;
  return { tree, authority };
};
export const ask = (authority: Authority, mutation: Mutation, sequence?: number): Promise<Outcome> =>
  new Promise((settle) => authority.commit(mutation, ways.direct, 'holder', sequence, settle));
