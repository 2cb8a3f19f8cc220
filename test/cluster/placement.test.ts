/** Where VMs go, on SQLite, and what there was before there were hosts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Manager } from '../../src/cluster/index.ts';
import { encodeRecord, VmRecord } from '../../src/records/index.ts';
import { keyText, type Stores } from '../../src/store/index.ts';
import { inSqlite } from './connections.ts';
import { TestHost } from './host-on-authority.ts';
import { addHost } from './hosts.ts';
import { mortal } from './mortal.ts';
import { all, answer, create, log, managerOf, obeying, parsed, placementTests, remove, wish } from './placement.ts';

placementTests(inSqlite, { creations: 60, hosts: 8 });

test('a slot stays within a limit that is lowered below its use', async () => {
  await using connections = inSqlite();
  const stores = await connections.connect();
  await addHost(stores.region, 'h', { capacity: { vcpus: 1000, memoryMiB: 1_000_000, diskBytes: 0 } });
  await using manager = await managerOf(stores);
  await using _ = obeying(stores);
  const limit = async (n: number): Promise<unknown> =>
    manager.accounts.setQuotas(
      'default',
      { local: { nano: n } },
      async (transaction) => (await stores.global.commit(transaction)).committed,
      () => answer,
    );
  await create(manager, wish('before'));
  await limit(6);
  const made = (names: readonly string[]) => Promise.allSettled(names.map((name) => create(manager, wish(name))));
  const named = (letter: string) => Array.from({ length: 12 }, (_, i) => `${letter}${i}`);
  const count = async (): Promise<number> => (await all(stores.region, 'vm/')).length;
  const outcomes = await made(named('a'));
  assert.equal(await count(), 6);
  const refused = outcomes.find((outcome) => outcome.status === 'rejected')!;
  assert.equal(
    (refused.reason as Error).message,
    'the account "default" may have 6 VMs of type "nano" in the region "local" and has 6; delete one, or have the quota raised',
  );
  await limit(3);
  await made(named('b'));
  assert.equal(await count(), 6);
  const names = (await all(stores.region, 'vm/')).map(({ key }) => keyText(key).slice('vm/'.length));
  for (const name of names.slice(0, 4)) await remove(manager, name);
  while ((await count()) > 2) await new Promise(setImmediate);
  await made(named('c'));
  assert.equal(await count(), 3);
});

test('VMs of before there were hosts come along, whenever the manager dies that takes them', async () => {
  await using connections = inSqlite();
  const stores = await connections.connect();
  const own = (of: Stores): Promise<Manager> =>
    Manager.open({
      region: of.region,
      global: of.global,
      host: new TestHost(),
      images: new TestHost(),
      log,
      uids: { first: 700_000, count: 9 },
    });
  const names = Array.from({ length: 5 }, (_, i) => `old-${i}`);
  {
    await using manager = await own(stores);
    for (const name of names) await create(manager, wish(name));
  }
  // As the version before kept them.
  for (const entry of await all(stores.region, 'vm/')) {
    const { host: _, takes: __, holds, ...before } = VmRecord.parse(parsed(entry));
    await stores.region.commit({
      operations: [
        { type: 'put', key: entry.key, value: encodeRecord(before) },
        ...holds!.map((key) => ({ type: 'delete', key }) as const),
        { type: 'delete', key: `hostvm/local/${before.name}` },
      ],
    });
  }
  await stores.region.commit({
    operations: ['host/local', 'hostuse/local', 'account/default'].map((key) => ({ type: 'delete', key })),
  });
  for (let left = 1; left < 12; left++) {
    const died = Promise.withResolvers<'died'>();
    const doomed = own(mortal(stores, { left, before: left % 2 === 0, died: () => died.resolve('died') }));
    const manager = await Promise.race([doomed, died.promise]);
    if (manager !== 'died') void manager.close();
  }
  await using manager = await own(stores);
  await using _ = obeying(stores);
  const { use } = await manager.hosts.get('local');
  assert.deepEqual(use, { vcpus: 5, memoryMiB: 5 * 256, diskBytes: 0, vms: 5 });
  assert.deepEqual(await manager.hosts.vmsOf('local', 10), names);
  assert.equal((await all(stores.region, 'slot/')).length, 5);
  for (const name of names) await remove(manager, name);
  while ((await all(stores.region, 'vm/')).length > 0) await new Promise(setImmediate);
  assert.equal((await manager.hosts.get('local')).use.vms, 0);
  assert.deepEqual([...(await all(stores.region, 'uid/')), ...(await all(stores.region, 'slot/'))], []);
});
