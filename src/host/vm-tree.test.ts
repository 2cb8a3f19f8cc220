import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TreeCommit } from '../records/index.ts';
import { type Mutation, type Outcome, ways } from '../tree/index.ts';
import { checkedSpec, VmTreePort } from './tree-port.ts';
import { VmTree } from './vm-tree.ts';

const holder = '11111111-1111-4111-8111-111111111111';
const caller = { uid: 1000, gid: 1000, pid: 1 };

/** A tree that is kept when `keep` is called, or at once. */
const makeTree = async () => {
  const waiting: (() => void)[] = [];
  let isHeld = false;
  const persist = (): Promise<void> =>
    isHeld ? new Promise((resolve) => void waiting.push(resolve)) : Promise.resolve();
  const tree = new VmTree({ vm: 'web', epoch: 1, audit: () => true, kept: { persist } });
  await tree.load(checkedSpec('porthole: 1').spec);
  return {
    tree,
    port: new VmTreePort(() => tree),
    hold: () => {
      isHeld = true;
    },
    keep: () => {
      isHeld = false;
      for (const resolve of waiting.splice(0)) resolve();
    },
  };
};

const put = (path: string, text: string) => ({ op: 'put', path, bytes: new TextEncoder().encode(text) }) as const;

const take = async (commits: AsyncIterable<TreeCommit>, count: number): Promise<number[]> => {
  const revisions: number[] = [];
  for await (const { revision } of commits) {
    revisions.push(revision);
    if (revisions.length === count) break;
  }
  return revisions;
};

test('VmTreePort.watch names the revision before what it tells when it begins in the past', async () => {
  const { tree, port } = await makeTree();
  const { revision: before } = await port.stat('/');
  for (const text of ['1', '2', '3']) await tree.edit([put('/a', text)], []);
  const { revision, commits } = await port.watch('/', { from: before + 2 });
  assert.equal(revision, before + 1);
  assert.deepEqual(await take(commits, 2), [before + 2, before + 3]);
});

test('VmTreePort.watch begins at what was read when a guest has closed an unlinked file', async () => {
  const { tree, port } = await makeTree();
  tree.authority.holdersAre([holder]);
  tree.authority.subscribe(holder, () => {});
  let sequence = 1;
  const mutate = (mutation: Mutation): Promise<Outcome> =>
    new Promise((resolve) => tree.authority.commit(mutation, ways.virtiofs, holder, sequence++, resolve));
  const parentIno = tree.replica.snapshot.resolve('/guest')!.ino;
  const made = await mutate({ op: 'create', caller, parentIno, name: 'x', mode: 0o100600, umask: 0 });
  assert.equal(made.errno, 0);
  await mutate({ op: 'unlink', caller, parentIno, name: 'x' });
  await mutate({ op: 'drop', caller, ino: made.ino });
  await tree.authority.settled();
  const { revision: read } = await port.stat('/');
  const { commits } = await port.watch('/', { from: read + 1 });
  await tree.edit([put('/a', '1')], []);
  assert.deepEqual(await take(commits, 1), [read + 1]);
});

test('VmTreePort answers each change with revisions of its own when several are kept together', async () => {
  const { port, hold, keep } = await makeTree();
  hold();
  const first = port.setPolicy('policy: [{ path: /a, mode: "0400" }]');
  const second = port.setPolicy('policy: [{ path: /b, mode: "0400" }]');
  const again = port.setPolicy('policy: [{ path: /b, mode: "0400" }]');
  const one = port.edit([put('/a', '1')], []);
  const same = port.edit([put('/a', '1')], []);
  const other = port.edit([put('/a', '2')], []);
  keep();
  assert.equal((await first).policyRevision, (await first).revision);
  assert.equal((await second).policyRevision, (await second).revision);
  assert.equal((await again).policyRevision, (await second).revision);
  assert.equal((await same).changes, 0);
  assert.equal((await same).dataRevisions.get('/a'), (await one).revision);
  assert.equal((await other).dataRevisions.get('/a'), (await other).revision);
});
