import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { ask, file, makeAuthority, serve, specOne } from '../../test/host/served-store.ts';
import { temporaryStore } from '../../test/store/temporary.ts';
import { root } from '../../test/tree/keepers.ts';
import { specOf } from '../../test/tree/world.ts';
import { keyText, openStores, prefixRange, restoreStores, StoreError, type Transaction } from '../store/index.ts';
import { ANSWERED_KEPT, APPLIED_KEPT, type Authority, type Rule } from '../tree/index.ts';
import { decodeHead, encodeHead } from './tree-records.ts';
import { removeTree, TreeStore } from './tree-store.ts';

test('TreeStore.persist fails when another has opened the tree, or removed it, and says what to do', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const first = await serve(stores.region);
  const second = await serve(stores.region);
  const refused = { code: 'NOT_KEPT', message: /tree of VM "i-1" was opened by another process.*open the tree anew/ };
  await assert.rejects(first.authority.edit([file('/a', 1, 1)]), refused);
  await assert.rejects(first.authority.edit([file('/a', 1, 1)]), refused);
  await second.authority.edit([file('/b', 1, 1)]);
  await removeTree(stores.region, 'i-1');
  await assert.rejects(second.authority.edit([file('/a', 1, 1)]), { code: 'NOT_KEPT' });
  const both = [await TreeStore.open(stores.region, 'i-1'), await TreeStore.open(stores.region, 'i-1')];
  const [one, two] = both.map(({ persist }) => makeAuthority({ persist }));
  await one!.load(specOne).durable;
  await assert.rejects(two!.load(specOne).durable, { code: 'TREE_TAKEN' });
});

test('TreeStore goes on after a full disk, and not after an answer that is lost', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  let failure: StoreError | undefined;
  const store = new Proxy(stores.region, {
    get: (region, name) => {
      const value: unknown = Reflect.get(region, name, region);
      if (name === 'commit' && failure !== undefined) return () => Promise.reject(failure);
      return typeof value === 'function' ? value.bind(region) : value;
    },
  });
  const { authority } = await serve(store);
  failure = new StoreError('STORE_FULL', 'the disk is full');
  await assert.rejects(authority.edit([file('/a', 1, 1)]), { code: 'NOT_KEPT', message: /the disk is full/ });
  failure = undefined;
  await authority.edit([file('/a', 1, 1)]);
  failure = new StoreError('STORE_FAILED', 'the disk is broken');
  await assert.rejects(authority.edit([file('/b', 1, 1)]), {
    message: /not known.*disk is broken.*open the tree anew/,
  });
  failure = undefined;
  await assert.rejects(authority.edit([file('/b', 1, 1)]), { message: /open the tree anew/ });
  await (await serve(store)).authority.edit([file('/b', 1, 1)]);
});

test('TreeStore says that it does not know when the store does not, goes on if nothing was kept, and else stops', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  let lost: 'before' | 'after' | undefined;
  const store = new Proxy(stores.region, {
    get: (region, name) => {
      const value: unknown = Reflect.get(region, name, region);
      if (name === 'commit' && lost !== undefined)
        return async (transaction: Transaction) => {
          if (lost === 'after') await region.commit(transaction);
          throw new StoreError('STORE_UNAVAILABLE', 'etcd gave no answer');
        };
      return typeof value === 'function' ? value.bind(region) : value;
    },
  });
  const { authority } = await serve(store);
  const open = { code: 'NOT_KEPT', message: /is not known.*etcd gave no answer/ };
  lost = 'before';
  await assert.rejects(authority.edit([file('/a', 1, 1)]), open);
  lost = undefined;
  await authority.edit([file('/a', 1, 1)]);
  lost = 'after';
  await assert.rejects(authority.edit([file('/b', 1, 1)]), open);
  lost = undefined;
  await assert.rejects(authority.edit([file('/c', 1, 1)]), open);
  await (await serve(store)).authority.edit([file('/c', 1, 1)]);
});

test('TreeStore remembers what took effect, with what was burned, and forgets it with its holder', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const { authority } = await serve(stores.region);
  const rules: Rule[] = [{ path: '/secrets/*', mode: 0o444, once: true }];
  const value = new Uint8Array(600_000).fill(7);
  authority.setPolicy({ ...specOne.policy, rules });
  await authority.edit([{ op: 'put', path: '/secrets/one', bytes: value }]);
  const { ino } = authority.snapshot.resolve('/secrets/one')!;
  const burn = { op: 'burn', caller: root, ino } as const;
  const { bytes } = await ask(authority, burn, 1);
  assert.deepEqual(bytes, value);
  const again = await serve(stores.region);
  assert.deepEqual(await ask(again.authority, burn, 1), {
    errno: 0,
    revision: authority.snapshot.revision,
    ino: 0,
    bytes: value,
  });
  assert.deepEqual(again.authority.replica.policy.spec.rules, rules);
  const parentIno = again.authority.snapshot.resolve('/guest')!.ino;
  const create = (name: string, sequence: number) =>
    ask(again.authority, { op: 'create', caller: root, parentIno, name, mode: 0o600, umask: 0 }, sequence);
  const burned = () => stores.region.count(prefixRange('tree/i-1/burned/'));
  assert.equal((await burned()).count, 3);
  for (let sequence = 2; sequence <= APPLIED_KEPT + 1; sequence++) await create(`f${sequence}`, sequence);
  assert.equal((await burned()).count, 0, 'the oldest goes, with its value');
  const { tree } = await serve(stores.region);
  assert.deepEqual(
    tree.restored!.applied!.map(({ sequence }) => sequence),
    Array.from({ length: APPLIED_KEPT }, (_, i) => i + 2),
  );
  const third = await serve(stores.region);
  await third.authority.forgetHolder('holder');
  assert.deepEqual((await TreeStore.open(stores.region, 'i-1')).restored!.applied, []);
});

test('TreeStore remembers the newest requests that changed the tree, with what they were answered', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const { authority } = await serve(stores.region);
  let fill = 0;
  const edit = (request: string) => authority.edit([file('/a', 1, fill++)], [], request);
  const first = await edit('first');
  await authority.edit([file('/a', 1, 0)], [], 'changes nothing');
  const answeredAs = (one: Authority, id: string) => one.answered(id)?.revision;
  assert.deepEqual(
    [answeredAs(authority, 'first'), answeredAs(authority, 'changes nothing')],
    [first.revision, undefined],
  );
  assert.equal(answeredAs((await serve(stores.region)).authority, 'first'), first.revision);

  const again = (await serve(stores.region)).authority;
  const more = ANSWERED_KEPT + 500;
  let newest = 0;
  // In batches, as they come.
  for (let i = 0; i < more; i += 500) {
    const made = Array.from({ length: 500 }, (_, at) => again.edit([file('/a', 1, fill++ % 256)], [], `${i + at}`));
    newest = (await Promise.all(made)).at(-1)!.revision;
  }
  const last = (await serve(stores.region)).authority;
  const made = Math.ceil(more / 500) * 500;
  assert.equal(answeredAs(last, `${made - 1}`), newest);
  assert.ok(answeredAs(last, `${made - ANSWERED_KEPT}`), 'as many are kept as are promised');
  assert.equal(answeredAs(last, 'first'), undefined);
  const { count } = await stores.region.count(prefixRange('tree/i-1/answered/'));
  assert.ok(count <= 2 * (ANSWERED_KEPT / 500 + 2), `${count} records are kept`);
});

test('TreeStore keeps nothing under durable: none, by hardly a transaction, and gives out no number again', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const { authority } = await serve(stores.region);
  const rules: Rule[] = [
    { path: '/guest/status', mode: 0o777 },
    { path: '/guest/status/**', durable: 'none' },
  ];
  await authority.load(specOf({ content: { guest: { status: {} } }, rules })).durable;
  const parentIno = authority.snapshot.resolve('/guest/status')!.ino;
  const made = await ask(authority, { op: 'create', caller: root, parentIno, name: 'f', mode: 0o600, umask: 0 }, 1);
  const before = await stores.region.revision();
  const write = {
    op: 'write',
    caller: root,
    ino: made.ino,
    offset: 0,
    data: new Uint8Array(9),
    append: false,
    truncate: true,
    grantedAtOpen: true,
  } as const;
  for (let sequence = 2; sequence < 500; sequence++) assert.equal((await ask(authority, write, sequence)).errno, 0);
  assert.equal(await stores.region.revision(), before, 'numbers for them were set aside with the first');
  const { revision } = authority.snapshot;
  const again = await serve(stores.region);
  assert.equal(again.authority.snapshot.resolve('/guest/status/f'), undefined);
  assert.ok(again.authority.snapshot.revision >= revision);
  const { ino } = await ask(again.authority, {
    op: 'create',
    caller: root,
    parentIno,
    name: 'f',
    mode: 0o600,
    umask: 0,
  });
  assert.ok(ino > made.ino);
});

test('TreeStore gives out higher numbers than the lost store could have after it was restored from a backup', async (t) => {
  const at = temporaryStore(t);
  const backup = join(at.directory, '..', 'backup');
  const seen: number[] = [];
  const numbers = (authority: Authority, ino: number) => {
    const { revision } = authority.snapshot;
    assert.ok(revision > Math.max(0, ...seen) && ino > Math.max(0, ...seen.slice(-1)), `${revision}, ${ino}`);
    assert.ok(Number.isSafeInteger(revision * 2) && Number.isSafeInteger(ino * 2));
    seen.push(revision);
  };
  const change = async (authority: Authority, path: string): Promise<number> => {
    await authority.edit([file(path, 1, 1)]);
    return authority.snapshot.resolve(path)!.ino;
  };
  {
    await using stores = await openStores(at);
    const { authority } = await serve(stores.region);
    await stores.backup(backup);
    for (let i = 0; i < 5; i++) await change(authority, `/lost/${i}`);
    seen.push(authority.snapshot.revision);
  }
  for (let round = 0; round < 2; round++) {
    restoreStores({ ...at, backup });
    await using stores = await openStores(at);
    const { authority } = await serve(stores.region);
    assert.equal(authority.snapshot.resolve('/lost/0'), undefined);
    assert.equal(authority.snapshot.resolve('/instance/id')!.bytes!.length, 3);
    const { revision } = authority.snapshot;
    numbers(authority, await change(authority, '/a'));
    const again = await serve(stores.region);
    assert.ok(again.authority.snapshot.revision < revision + 100, 'once for each restore');
  }
});

test('TreeStore.open says which record of which VM is damaged, and what to do', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const { region } = stores;
  const prefix = 'tree/i-1/';
  const spoil = async (key: string, spoiled: Uint8Array | undefined) => {
    const entry = (await region.get(key))!;
    const put = (value: Uint8Array) => region.commit({ operations: [{ type: 'put', key, value }] });
    await (spoiled === undefined ? region.commit({ operations: [{ type: 'delete', key }] }) : put(spoiled));
    await assert.rejects(
      TreeStore.open(region, 'i-1'),
      { code: 'TREE_DAMAGED', message: /of VM "i-1" is damaged; restore the store from a backup/ },
      key,
    );
    await put(entry.value);
    await TreeStore.open(region, 'i-1');
  };
  const { authority } = await serve(region);
  await authority.edit([file('/big', 600_000, 1)]);
  const { entries } = await region.range(prefixRange(prefix));
  const keys = entries.map(({ key }) => keyText(key));
  const node = keys.find((key) => key.startsWith(`${prefix}node/`))!;
  const values = keys.filter((key) => key.startsWith(`${prefix}value/`));
  assert.equal(values.length, 3);
  for (const key of [`${prefix}head`, node, `${prefix}policy/0000`]) await spoil(key, Uint8Array.of(1, 2, 3));
  await spoil(values[1]!, undefined);
  await spoil(values[2]!, new Uint8Array(5));
  await spoil(`${prefix}policy/0000`, undefined);
  const head = decodeHead((await region.get(`${prefix}head`))!.value);
  const future = encodeHead({ ...head, format: 2 });
  await region.commit({ operations: [{ type: 'put', key: `${prefix}head`, value: future }] });
  await assert.rejects(TreeStore.open(region, 'i-1'), { code: 'TREE_TOO_NEW', message: /later version/ });
  await assert.rejects(TreeStore.open(region, '../i-1'), TypeError);
});
