import assert from 'node:assert/strict';
import { test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import type { TreeCommit } from '../records/index.ts';
import { openStores, StoreError } from '../store/index.ts';
import { type Mutation, type Outcome, ways } from '../tree/index.ts';
import { parseSpec } from './spec-file.ts';
import { TreeHistory } from './tree-history.ts';
import { checkedSpec, VmTreePort } from './tree-port.ts';
import { TreeStore, TreeStoreError } from './tree-store.ts';
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
  await tree.load(checkedSpec(parseSpec('porthole: 1', 'spec')).spec);
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

test('VmTree.applied names an agent that has not taken a commit in time', async () => {
  const { tree } = await makeTree();
  assert.deepEqual(await tree.applied(7, 1), []);
  tree.metadataServedBy(async (revision) => revision < 7);
  assert.deepEqual([await tree.applied(6, 1), await tree.applied(7, 1)], [[], ['agent']]);
});

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

test('VmTree.load under a condition meets changes of what a spec can say, and no others', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const open = async () => {
    const { persist, restored } = await TreeStore.open(stores.region, 'i-1');
    const tree = new VmTree({
      vm: 'web',
      epoch: 1,
      audit: () => true,
      kept: { persist, ...(restored && { restored }) },
    });
    if (restored === undefined) await tree.load(checkedSpec(parseSpec('porthole: 1', 'spec')).spec);
    tree.authority.holdersAre([holder]);
    tree.authority.subscribe(holder, () => {});
    return tree;
  };
  let tree = await open();
  const spec = (text: string) =>
    checkedSpec(parseSpec(`porthole: 1\nmetadata: { a: "${text}", b: "1" }\n`, 'spec')).spec;
  const status = () => tree.edit([put('/instance/status/cpu', `${tree.replica.snapshot.revision}`)], []);
  const create = (name: string): Promise<Outcome> => {
    const parentIno = tree.replica.snapshot.resolve('/guest')!.ino;
    const made = { op: 'create', caller, parentIno, name, mode: 0o100600, umask: 0 } as const;
    return new Promise((resolve) => tree.authority.commit(made, ways.virtiofs, holder, undefined, resolve));
  };
  // Makes the directories above it, once.
  await status();
  await tree.load(spec('1'));
  let read = tree.replica.snapshot.revision;
  await status();
  assert.equal((await create('x')).errno, 0);
  await status();
  assert.ok(tree.replica.snapshot.revision > read);
  await tree.load(spec('2'), read);
  await assert.rejects(tree.load(spec('3'), read), { code: 'HOST_CONDITION_UNMET' });
  for (const change of [
    () => tree.edit([put('/a', 'other')], []),
    () => tree.edit([{ op: 'remove', path: '/b', recursive: false }], []),
    () => tree.edit([{ op: 'directory', path: '/d' }], []),
    () => tree.setPolicy({ ...tree.replica.policy.spec, rules: [{ path: '/a', mode: 0o400 }] }),
  ]) {
    read = tree.replica.snapshot.revision;
    await change();
    await status();
    await assert.rejects(tree.load(spec('3'), read), { code: 'HOST_CONDITION_UNMET' });
  }
  await assert.rejects(tree.load(spec('3'), tree.replica.snapshot.revision + 1), { code: 'HOST_CONDITION_UNMET' });
  await tree.edit([put('/a', 'newest')], []);
  const before = tree.replica.snapshot.revision;
  await status();
  tree = await open();
  await assert.rejects(tree.load(spec('4'), before - 1), { code: 'HOST_CONDITION_UNMET' });
  await tree.load(spec('4'), before);
});

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

test('VmTreePort.watch goes on over a restart of the daemon where nothing is lost, and says so where something may be', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const open = async () => {
    const kept = await TreeStore.open(stores.region, 'i-1');
    const { persist, restored, history } = kept;
    const keepHistory = kept.keepHistory.bind(kept);
    const tree = new VmTree({
      vm: 'web',
      epoch: 1,
      audit: () => true,
      kept: { persist, ...(restored && { restored }), history, keepHistory },
    });
    return { tree, port: new VmTreePort(() => tree) };
  };
  const edit = async (tree: VmTree, path: string) => (await tree.edit([put(path, crypto.randomUUID())], [])).revision;
  const told = async (port: VmTreePort, from: number, count: number, path = '/') =>
    take((await port.watch(path, { from })).commits, count);
  const compacted = { code: 'HOST_COMPACTED', message: /read the tree again and watch from its revision/ };

  const first = await open();
  await first.tree.load(checkedSpec(parseSpec('porthole: 1', 'spec')).spec);
  const begun = first.tree.replica.snapshot.revision;
  const revisions = [await edit(first.tree, '/a/1'), await edit(first.tree, '/b/1'), await edit(first.tree, '/a/2')];
  await first.tree.leaveHistory();

  // An orderly end: all that it knew, then what comes.
  const second = await open();
  assert.equal(second.tree.replica.snapshot.revision, revisions[2]);
  const later = await edit(second.tree, '/a/3');
  assert.deepEqual(await told(second.port, begun + 1, 4), [...revisions, later]);
  assert.deepEqual(await told(second.port, begun + 2, 2, '/a'), [revisions[2], later]);
  await assert.rejects(told(second.port, 0, 1), compacted, 'what came before it knew anything');

  // A kill: who was up to date goes on; who was not reads anew, although the tree has an older history.
  const third = await open();
  await assert.rejects(told(third.port, later, 1), compacted);
  const watching = told(third.port, later + 1, 1);
  const newest = await edit(third.tree, '/a/4');
  assert.deepEqual(await watching, [newest]);

  // What a rule says is not kept is gone with the daemon: nobody goes on as if it were not.
  const volatile = { path: '/guest/**', durable: 'none' } as const;
  await third.tree.setPolicy({ ...third.tree.replica.policy.spec, rules: [volatile] });
  const { authority } = third.tree;
  const parentIno = authority.snapshot.resolve('/guest')!.ino;
  const made = await new Promise<Outcome>((settle) => {
    const create = { op: 'create', caller, parentIno, name: 'f', mode: 0o600, umask: 0 } as const;
    authority.commit(create, ways.virtiofs, holder, 1, settle);
  });
  assert.equal(made.errno, 0);
  const last = await edit(third.tree, '/a/5');
  await third.tree.leaveHistory();
  const fourth = await open();
  assert.equal(fourth.tree.replica.snapshot.resolve('/guest/f'), undefined);
  await assert.rejects(told(fourth.port, last + 1, 1), compacted);
});

test('VmTree leaves the newest of a long history', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const left: Uint8Array[] = [];
  const { persist } = await TreeStore.open(stores.region, 'i-1');
  const keepHistory = async (history: Uint8Array): Promise<void> => void left.push(history);
  const tree = new VmTree({ vm: 'web', epoch: 1, audit: () => true, kept: { persist, keepHistory } });
  await tree.load(checkedSpec(parseSpec('porthole: 1', 'spec')).spec);
  const long = 'x'.repeat(200);
  let revision = 0;
  for (let i = 0; i < 40; i++)
    ({ revision } = await tree.edit(
      Array.from({ length: 50 }, (_, at) => put(`/${long}/${long}/${at}`, `${i}`)),
      [],
    ));
  await tree.leaveHistory();
  assert.ok(left[0]!.length < 512 * 1024, `${left[0]!.length} bytes`);
  const next = new TreeHistory(1, revision, left[0]);
  const known = await take(next.watch('/', revision - 4, undefined), 5);
  assert.deepEqual(known, [revision - 4, revision - 3, revision - 2, revision - 1, revision]);
  assert.throws(() => next.watch('/', revision - 38, undefined), { code: 'HOST_COMPACTED' });
  assert.throws(() => new TreeHistory(1, revision + 1, left[0]).watch('/', revision, undefined), {
    code: 'HOST_COMPACTED',
  });
});
