import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { openStores, type Store } from '../store/index.ts';
import type { DomainFollower } from './domain-watch.ts';
import { FollowedDomain } from './followed-domain.ts';

const uuid = '11111111-2222-3333-4444-555555555555';
const life = { uuid, id: 3, cpuNs: 1_000 };

const openStore = async (t: TestContext): Promise<Store> => {
  const stores = await openStores(temporaryStore(t));
  t.after(() => stores[Symbol.asyncDispose]());
  return stores.region;
};

/** One that is told by the test, what boots it made, and how it ends. */
const follow = async (store: Store, id = 'i-1') => {
  const boots: string[] = [];
  const troubles: string[] = [];
  const looks: string[] = [];
  const destroyed: number[] = [];
  let told: DomainFollower | undefined;
  let failure: Error | undefined;
  const followed = await FollowedDomain.open({
    vm: { name: 'web-1', id },
    domain: 'web',
    watch: {
      follow: (follower) => {
        told = follower;
        return () => {
          told = undefined;
        };
      },
      look: () => looks.push('look'),
      destroy: async ({ id: number }) => void destroyed.push(number),
    },
    store,
    boot: async (reason, operations) => {
      if (failure !== undefined) throw failure;
      if (operations.length > 0) await store.commit({ operations });
      boots.push(reason);
    },
    onTrouble: (what) => troubles.push(what),
  });
  return {
    boots,
    troubles,
    looks,
    destroyed,
    followed,
    told: told!,
    failWith: (error: Error | undefined) => {
      failure = error;
    },
    end: () => followed.close(),
  };
};

const started = 'started, as libvirt tells';
const rebooted = 'rebooted, as libvirt tells';

test('FollowedDomain makes a boot of each life that it is shown, and of each reboot', async (t) => {
  const domain = await follow(await openStore(t));
  domain.told.onLook('off');
  domain.told.onLook(life);
  domain.told.onLook({ ...life, cpuNs: 2_000 });
  domain.told.onReboot();
  domain.told.onLook({ ...life, id: 4, cpuNs: 10 });
  // libvirt's daemon counts anew, and the number is the same again.
  domain.told.onLook({ ...life, id: 4, cpuNs: 5 });
  await domain.end();
  assert.deepEqual(domain.boots, [started, rebooted, started, started]);
  assert.deepEqual(domain.troubles, []);
});

test('FollowedDomain knows the life again that an earlier daemon saw, for the same VM', async (t) => {
  const store = await openStore(t);
  const first = await follow(store);
  first.told.onLook(life);
  await first.end();
  assert.deepEqual(first.boots, [started]);
  const second = await follow(store);
  second.told.onLook({ ...life, cpuNs: 2_000 });
  await second.end();
  assert.deepEqual(second.boots, []);
  const other = await follow(store, 'i-2');
  other.told.onLook({ ...life, cpuNs: 2_000 });
  await other.end();
  assert.deepEqual(other.boots, [started]);
});

test('FollowedDomain makes up for boots that could not be kept', async (t) => {
  const domain = await follow(await openStore(t));
  domain.failWith(new Error('the disk is full'));
  domain.told.onLook(life);
  await domain.end();
  assert.deepEqual(domain.troubles, ['what libvirt told of "web" was not kept: the disk is full']);
  domain.failWith(undefined);
  domain.told.onLook(life);
  await domain.end();
  domain.failWith(new Error('the disk is full'));
  domain.told.onReboot();
  await domain.end();
  domain.failWith(undefined);
  domain.told.onLook(life);
  domain.told.onLook(life);
  await domain.end();
  assert.deepEqual(domain.boots, [started, rebooted]);
});

test('FollowedDomain says once that libvirt has no such domain', async (t) => {
  const domain = await follow(await openStore(t));
  for (const found of ['unknown', 'unknown', 'off', 'unknown'] as const) domain.told.onLook(found);
  await domain.end();
  const what = 'libvirt has no domain "web" yet; its boots count from when there is one';
  assert.deepEqual(domain.troubles, [what, what]);
});

test('FollowedDomain has the life destroyed that it saw last, until it is gone, and no other', async (t) => {
  const domain = await follow(await openStore(t));
  domain.told.onLook(life);
  await domain.end();
  domain.followed.destroy();
  assert.deepEqual(domain.looks, ['look']);
  domain.told.onLook(life);
  domain.told.onLook(life);
  domain.told.onLook('off');
  domain.told.onLook({ ...life, id: 4 });
  await domain.end();
  domain.followed.destroy();
  // Nobody has seen that one: it is another boot.
  domain.told.onLook({ ...life, id: 5 });
  domain.told.onLook({ ...life, id: 5 });
  await domain.end();
  domain.followed.destroy();
  domain.told.onReboot();
  domain.told.onLook({ ...life, id: 5 });
  await domain.end();
  assert.deepEqual(domain.destroyed, [3, 3]);
  assert.deepEqual(domain.boots, [started, started, started, rebooted]);
});
