import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { until } from '../../test/until.ts';
import { vmRecord } from '../../test/uplink/region.ts';
import { encodeRecord, hostVmKey } from '../records/index.ts';
import { type Operation, openStores, prefixRange, type Store, StoreError } from '../store/index.ts';
import { HostStore } from './host-store.ts';
import { VmFeed } from './vm-feed.ts';

const bytes: Uint8Array = new Uint8Array([1]);
const put = (key: string, value = bytes): Operation => ({ type: 'put', key, value });
const mine = vmRecord('mine', 'h1');
const theirs = vmRecord('theirs', 'h2');

const assigned = (record: typeof mine): Operation[] => [
  put(`vm/${record.name}`, encodeRecord(record)),
  put(hostVmKey(record.host!, record.name), encodeRecord({ id: record.id })),
];

const opened = async (t: TestContext): Promise<{ region: Store; store: HostStore; feed: VmFeed }> => {
  const stores = await openStores(temporaryStore(t));
  const { region } = stores;
  const stop = new AbortController();
  const feed = new VmFeed({ region, onTrouble: (what) => assert.fail(what) });
  const running = feed.run(stop.signal);
  t.after(async () => {
    stop.abort();
    await running;
    await stores.close();
  });
  await region.commit({ operations: [...assigned(mine), ...assigned(theirs)] });
  return { region, store: new HostStore({ region, host: 'h1', feed }), feed };
};

const outcomeOf = async (work: Promise<unknown>): Promise<string> => {
  try {
    return (await work) === undefined ? 'absent' : 'allowed';
  } catch (error) {
    assert(error instanceof StoreError, String(error));
    return error.code;
  }
};

/** Every kind of key that a region's store has, and what a host may do with it where the VM, or the host in it, is its own. */
const table: readonly { readonly key: (of: typeof mine, host: string) => string; readonly may: string }[] = [
  { key: ({ name }) => `seed/${name}`, may: 'read delete' },
  { key: ({ name }) => `vmstatus/${name}`, may: 'read put delete' },
  { key: ({ name }) => `machine/${name}`, may: 'read put delete' },
  { key: ({ name }) => `token/${name}`, may: 'read put delete' },
  { key: ({ name }) => `domainrun/${name}`, may: 'read put delete' },
  { key: ({ name }) => `boot/${name}/0000000001`, may: 'read put delete' },
  { key: ({ id }) => `tree/${id}/head`, may: 'read put delete' },
  { key: ({ id }) => `tree/${id}/value/1/0`, may: 'read put delete' },
  { key: (_, host) => `hostimages/${host}/tiny/1`, may: '' },
  { key: ({ name }) => `diskexport/${name}`, may: 'read' },
  { key: (_, host) => `hostleft/${host}/web`, may: 'read delete' },
  { key: (_, host) => `hostmark/${host}/00`, may: 'read put' },
  { key: ({ name }) => `boot/${name}`, may: '' },
  { key: ({ name }) => `vmstatus/${name}/more`, may: '' },
  { key: ({ name }) => `indexed/${name}`, may: '' },
  { key: ({ name }, host) => hostVmKey(host, name), may: '' },
  { key: (_, host) => `host/${host}`, may: '' },
  { key: (_, host) => `hostlive/${host}`, may: '' },
  { key: (_, host) => `hostuse/${host}`, may: '' },
  { key: (_, host) => `hostuid/${host}/1`, may: '' },
  { key: () => 'uid/1', may: '' },
  { key: () => 'authority', may: '' },
  { key: () => 'hosttoken/1', may: '' },
  { key: () => 'account/default', may: '' },
  { key: () => 'slot/default/small/1', may: '' },
  { key: () => 'apart/1/h1', may: '' },
  { key: () => 'operation/1', may: '' },
  { key: () => 'idempotency/1', may: '' },
  { key: () => 'outbox/1', may: '' },
  { key: (_, host) => `hostlease/${host}`, may: '' },
  { key: (_, host) => `hostlost/${host}`, may: '' },
  { key: ({ name }, host) => `lostvm/${host}/${name}`, may: '' },
  { key: () => 'storage', may: '' },
  { key: () => 'rotation', may: '' },
  { key: () => 'batch/1', may: '' },
  { key: () => 'batchitem/1/mine', may: '' },
  { key: () => 'batchrun/1', may: '' },
  { key: ({ name }) => `idempotency/${name}`, may: '' },
  { key: () => 'image/tiny/1', may: '' },
  { key: () => 'imageuse/tiny/1/mine', may: '' },
  { key: () => 'hostimage/tiny/1', may: '' },
  { key: () => 'key/1', may: '' },
  { key: () => 'tree/', may: '' },
  { key: () => 'vm', may: '' },
];

test('HostStore lets a host do what the table says, and nothing else', async (t) => {
  const { region, store } = await opened(t);
  for (const { key, may } of table)
    for (const [record, host] of [
      [mine, 'h1'],
      [theirs, 'h2'],
    ] as const) {
      const name = key(record, host);
      // What names neither is nobody's.
      const isIts = host === 'h1' || key(mine, 'h1') === name;
      const expected = (what: string): string => (isIts && may.includes(what) ? 'allowed' : 'STORE_DENIED');
      await region.commit({ operations: [put(name, encodeRecord({ id: record.id, host: record.host }))] });
      const read = await outcomeOf(store.get(name));
      assert.equal(read, expected('read'), `get ${name}`);
      const condition = { conditions: [{ key: name, exists: true }], operations: [] };
      assert.equal(await outcomeOf(store.commit(condition)), expected('read'), `a condition on ${name}`);
      const leased: Operation = { type: 'put', key: name, value: bytes, leaseId: 1 };
      assert.equal(await outcomeOf(store.commit({ operations: [leased] })), 'STORE_DENIED', `put ${name} with a lease`);
      if (name !== hostVmKey('h1', 'mine')) {
        assert.equal(await outcomeOf(store.commit({ operations: [put(name)] })), expected('put'), `put ${name}`);
        const gone: Operation = { type: 'delete', key: name };
        assert.equal(await outcomeOf(store.commit({ operations: [gone] })), expected('delete'), `delete ${name}`);
      }
    }
});

test('HostStore shows a host its own records of VMs, and lets it change none', async (t) => {
  const { region, store } = await opened(t);
  assert.equal(await outcomeOf(store.get('vm/mine')), 'allowed');
  assert.equal(await outcomeOf(store.get('vm/theirs')), 'absent');
  for (const name of ['mine', 'theirs'])
    assert.equal(await outcomeOf(store.commit({ operations: [put(`vm/${name}`)] })), 'STORE_DENIED');
  const more = Array.from({ length: 5 }, (_, i) => vmRecord(`more-${i}`, 'h1'));
  for (const record of more) await region.commit({ operations: assigned(record) });
  const names: string[] = [];
  const range = prefixRange('vm/');
  for (let { start } = range, isMore = true; isMore; ) {
    const page = await store.range({ ...range, start }, { limit: 2 });
    names.push(...page.entries.map(({ key }) => Buffer.from(key).toString()));
    isMore = page.next !== undefined;
    if (page.next !== undefined) start = page.next;
  }
  assert.deepEqual(names, ['vm/mine', ...more.map(({ name }) => `vm/${name}`)]);
});

test('HostStore refuses ranges, watches, leases and compaction beyond what is the host’s', async (t) => {
  const { region, store } = await opened(t);
  const revision = await region.revision();
  const ranges: readonly [string | Uint8Array, string | Uint8Array | undefined, string][] = [
    [`tree/${mine.id}/`, `tree/${mine.id}0`, 'allowed'],
    [`tree/${mine.id}/node/`, `tree/${mine.id}/node0`, 'allowed'],
    ['boot/mine/', 'boot/mine0', 'allowed'],
    ['hostmark/h1/', 'hostmark/h10', 'allowed'],
    [`tree/${theirs.id}/`, `tree/${theirs.id}0`, 'STORE_DENIED'],
    [`tree/${mine.id}/`, `tree/${mine.id}1`, 'STORE_DENIED'],
    [`tree/${mine.id}/`, undefined, 'STORE_DENIED'],
    ['tree/', 'tree0', 'STORE_DENIED'],
    ['', undefined, 'STORE_DENIED'],
    ['boot/mine', 'boot/mine0', 'STORE_DENIED'],
    ['boot/mine/', 'boot/theirs0', 'STORE_DENIED'],
    ['vmstatus/', 'vmstatus0', 'STORE_DENIED'],
    ['hostmark/h1/', 'hostmark/h2/', 'STORE_DENIED'],
    ['host/', 'host0', 'STORE_DENIED'],
    ['vm/', 'vm1', 'STORE_DENIED'],
    [new Uint8Array([0x76, 0x6c, 0xff]), 'vm0', 'STORE_DENIED'],
  ];
  for (const [start, end, expected] of ranges) {
    assert.equal(await outcomeOf(store.range({ start, end })), expected, `range ${start} ${end}`);
    assert.equal(await outcomeOf(store.count({ start, end })), expected, `count ${start} ${end}`);
    const watch = store.watch({ start, end }, { from: revision });
    assert.equal(await outcomeOf(watch.next()), 'STORE_DENIED', `watch ${start} ${end}`);
  }
  for (const work of [store.grantLease(), store.keepAlive(), store.revokeLease(), store.compact()])
    assert.equal(await outcomeOf(work), 'STORE_DENIED');
});

test('HostStore refuses what a host writes of a VM that was taken from it, and of one that has its name by now', async (t) => {
  const { region, store } = await opened(t);
  const status: Operation = put('vmstatus/mine');
  const tree: Operation = put(`tree/${mine.id}/head`);
  assert.equal(await outcomeOf(store.commit({ operations: [status, tree] })), 'allowed');
  assert.equal(await outcomeOf(store.commit({ operations: [status, put('vmstatus/theirs')] })), 'STORE_DENIED');
  const anew = { ...mine, id: 'i-0123456789abcdef0' };
  await region.commit({ operations: assigned(anew) });
  assert.equal(await outcomeOf(store.commit({ operations: [tree] })), 'STORE_DENIED');
  assert.equal(await outcomeOf(store.get(`tree/${mine.id}/head`)), 'STORE_DENIED');
  assert.equal(await outcomeOf(store.commit({ operations: [put(`tree/${anew.id}/head`)] })), 'allowed');
  await region.commit({ operations: [{ type: 'delete', key: hostVmKey('h1', 'mine') }] });
  assert.equal(await outcomeOf(store.commit({ operations: [status] })), 'STORE_DENIED');
  assert.equal(await outcomeOf(store.get('vm/mine')), 'absent');
});

test('HostStore tells a host of VMs that are given to it and taken from it, and of no others', async (t) => {
  const { region, store } = await opened(t);
  const { revision } = await store.range(prefixRange('vm/'));
  const watch = store.watch(prefixRange('vm/'), { from: revision + 1 });
  const first = watch.next();
  await region.commit({ operations: assigned({ ...theirs, generation: 2 }) });
  await region.commit({ operations: assigned({ ...mine, generation: 2 }) });
  await region.commit({ operations: assigned({ ...mine, host: 'h2' }) });
  await region.commit({ operations: [{ type: 'delete', key: 'vm/mine' }] });
  await region.commit({ operations: assigned({ ...theirs, host: 'h1' }) });
  const seen: string[] = [];
  for (const { value } of [await first, await watch.next(), await watch.next()])
    for (const event of value!.events)
      seen.push(`${event.type} ${Buffer.from(event.type === 'put' ? event.entry.key : event.key).toString()}`);
  assert.deepEqual(seen, ['put vm/mine', 'delete vm/mine', 'put vm/theirs']);
});

test('VmFeed says what is compacted when a host asks for what it does not know any more', async (t) => {
  const stores = await openStores(temporaryStore(t));
  const { region } = stores;
  const stop = new AbortController();
  const feed = new VmFeed({ region, onTrouble: (what) => assert.fail(what), keeps: 2 });
  const { revision } = await region.commit({ operations: assigned(mine) });
  const running = feed.run(stop.signal);
  t.after(async () => {
    stop.abort();
    await running;
    await stores.close();
  });
  await until('the feed to know the VM', () => feed.hostOf('mine') === 'h1');
  const slow = feed.watch('h1', revision + 1, undefined);
  const first = slow.next();
  for (let generation = 2; generation < 6; generation++)
    await region.commit({ operations: assigned({ ...mine, generation }) });
  const seen = [(await first).value?.revision];
  while (seen.length < 4) seen.push((await slow.next()).value?.revision);
  assert.deepEqual(
    seen,
    [1, 2, 3, 4].map((later) => revision + later),
  );
  // One that begins now may ask for the last two only.
  assert.equal(await outcomeOf(feed.watch('h1', revision + 1, undefined).next()), 'STORE_COMPACTED');
  assert.equal((await feed.watch('h1', revision + 4, undefined).next()).value?.revision, revision + 4);
});

test('HostStore shows a host nothing of a VM that had the name of its own before', async (t) => {
  const { region, store } = await opened(t);
  const others = assigned({ ...mine, id: 'i-0123456789abcdef0', host: 'h2' });
  await region.commit({ operations: [{ type: 'delete', key: hostVmKey('h1', 'mine') }, ...others] });
  const kept = [put('seed/mine'), put('boot/mine/1')];
  const { revision } = await region.commit({ operations: kept });
  await region.commit({ operations: [{ type: 'delete', key: hostVmKey('h2', 'mine') }, ...assigned(mine)] });
  const now = await region.revision();
  const reads = (at: number): Promise<string[]> =>
    Promise.all(
      [
        store.get('vm/mine', { revision: at }),
        store.get('seed/mine', { revision: at }),
        store.range(prefixRange('boot/mine/'), { revision: at }),
        store.count(prefixRange('boot/mine/'), { revision: at }),
      ].map(outcomeOf),
    );
  assert.deepEqual(await reads(revision), ['absent', 'STORE_DENIED', 'STORE_DENIED', 'STORE_DENIED']);
  assert.deepEqual(await reads(now), ['allowed', 'allowed', 'allowed', 'allowed']);
});

test('VmFeed tells a host that is too far behind nothing out of order', async (t) => {
  const { region, feed } = await opened(t);
  const mostBehind = 1_024;
  const { revision } = await region.commit({ operations: assigned(mine) });
  const slow = feed.watch('h1', revision + 1, undefined);
  const first = slow.next();
  let last = 0;
  const change = async (count: number): Promise<void> => {
    await Promise.all(
      Array.from({ length: count }, async () => {
        last = Math.max(last, (await region.commit({ operations: assigned(mine) })).revision);
      }),
    );
  };
  await change(1);
  assert.equal((await first).value?.revision, revision + 1);
  await change(mostBehind + 10);
  // Whoever follows from here on is told when the feed has come to it.
  const { value: end } = await feed.watch('h1', last, undefined).next();
  assert.equal(end?.revision, last);
  assert.equal(await outcomeOf(slow.next()), 'STORE_COMPACTED');
});
