import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { openStores, type Store } from '../store/index.ts';
import { claimant, StoreClaim } from './store-claim.ts';

const limit = { timeout: 60_000 };

const opened = async (t: TestContext, leaseSeconds = 30) => {
  const options = temporaryStore(t);
  const stores = await openStores(options);
  t.after(() => stores.close());
  const lost = Promise.withResolvers<string>();
  return {
    store: stores.region,
    lost: lost.promise,
    options: { idFile: join(options.directory, 'daemon-id'), onLost: lost.resolve, leaseSeconds },
  };
};

test('StoreClaim.take refuses a second daemon of the same state directory, until the first ends', limit, async (t) => {
  const { store, options } = await opened(t);
  {
    await using held = new AsyncDisposableStack();
    held.use(await StoreClaim.take(store, options));
    await assert.rejects(StoreClaim.take(store, options), /another host daemon uses ".*"; stop it/);
    assert.equal(typeof (await claimant(store)), 'string');
  }
  assert.equal(await claimant(store), undefined);
  await using next = new AsyncDisposableStack();
  next.use(await StoreClaim.take(store, options));
});

test('claimant tells of a manager by the hosts that are connected to it', limit, async (t) => {
  const { store } = await opened(t);
  const value = new Uint8Array(0);
  await store.commit({ operations: [{ type: 'put', key: 'hostlive/h1', value }] });
  assert.match((await claimant(store))!, /a manager uses this store: host "h1"/);
});

test('StoreClaim.take takes the claim of a daemon that was killed, and of no other', limit, async (t) => {
  const { store, options } = await opened(t);
  const ended = await StoreClaim.take(store, options);
  const { value } = (await store.get('host-daemon'))!;
  await ended[Symbol.asyncDispose]();
  const claim = JSON.parse(Buffer.from(value).toString()) as Record<string, string>;
  for (const name of ['id', 'machineId', 'bootId']) {
    const other = Buffer.from(JSON.stringify({ ...claim, [name]: 'other' }));
    await store.commit({ operations: [{ type: 'put', key: 'host-daemon', value: other }] });
    await assert.rejects(StoreClaim.take(store, options), /uses this store; stop it/);
  }
  await store.commit({ operations: [{ type: 'put', key: 'host-daemon', value }] });
  await using held = new AsyncDisposableStack();
  held.use(await StoreClaim.take(store, options));
});

test('StoreClaim tells that it is lost when its lease is gone, or another has its key', limit, async (t) => {
  const [first, second] = [await opened(t, 6), await opened(t, 6)];
  await using held = new AsyncDisposableStack();
  held.use(await StoreClaim.take(first.store, first.options));
  held.use(await StoreClaim.take(second.store, second.options));
  await first.store.revokeLease((await first.store.get('host-daemon'))!.leaseId!);
  const { value } = (await second.store.get('host-daemon'))!;
  await second.store.commit({ operations: [{ type: 'put', key: 'host-daemon', value }] });
  assert.match(await first.lost, /is lost: its lease has run out/);
  assert.match(await second.lost, /took it/);
});

test('StoreClaim tells that it is lost when nothing is heard of it for its time', limit, async (t) => {
  const { store, lost, options } = await opened(t, 1);
  const keepAlive: Store['keepAlive'] = (_id, { signal } = {}) =>
    new Promise((_resolve, reject) => signal?.addEventListener('abort', () => reject(signal.reason as Error)));
  const silent = new Proxy(store, {
    get: (target, name: keyof Store) => {
      const member: unknown = name === 'keepAlive' ? keepAlive : target[name];
      return typeof member === 'function' ? (member.bind(target) as unknown) : member;
    },
  });
  await using held = new AsyncDisposableStack();
  held.use(await StoreClaim.take(silent, options));
  assert.match(await lost, /nothing was heard of it for 1 s/);
});
