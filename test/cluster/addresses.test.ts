/** Addresses of VMs: several managers, which die between any two commits, never give one twice. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Manager } from '../../src/cluster/index.ts';
import { ApiError } from '../../src/cluster/problem.ts';
import type { VmWish } from '../../src/cluster/vms.ts';
import { VmRecord } from '../../src/records/index.ts';
import { keyText, type Stores } from '../../src/store/index.ts';
import { addressOf } from '../../src/wire/index.ts';
import { until } from '../until.ts';
import { inSqlite } from './connections.ts';
import { addHost } from './hosts.ts';
import { mortal } from './mortal.ts';
import { all, answer, create, managerOf, obeying, parsed, remove, wish } from './placement.ts';

/** `PORTHOLE_ADDRESS_ROUNDS` does it more often. */
const rounds = Number(process.env['PORTHOLE_ADDRESS_ROUNDS'] ?? 1);

const routed = (name: string, udpPorts = 1): VmWish => wish(name, { network: { mode: 'routed', udpPorts } });
const prefixes = {
  ipv4: ['10.20.0.0/28', '10.20.1.4/31'],
  ipv6: ['fd00:20::/64'],
  udp: { address: '192.0.2.1', first: 20_000, last: 20_015 },
  dns: ['192.0.2.53'],
};

const give = (manager: Manager, wanted = prefixes): Promise<unknown> =>
  manager.addresses.set(
    wanted,
    async (transaction) => (await manager.kit.region.commit(transaction)).committed,
    () => answer,
  );

const roomy = async ({ region }: Stores): Promise<void> => {
  for (let i = 0; i < 4; i++)
    await addHost(region, `h${i}`, { capacity: { vcpus: 500, memoryMiB: 500_000, diskBytes: 0 } });
};

/** Each address is one VM's, and is kept as what that VM says it has. Returns the VMs. */
const check = async ({ region }: Stores): Promise<VmRecord[]> => {
  // Keys first: what is given between the two looks is not among them.
  const kept = new Set((await all(region, 'address/')).map(({ key }) => keyText(key)));
  const records = (await all(region, 'vm/')).map((entry) => VmRecord.parse(parsed(entry)));
  const given = records.flatMap(({ addresses }) => [
    addresses!.ipv4!,
    addresses!.ipv6!,
    ...addresses!.udp!.ports.map(String),
  ]);
  assert.equal(new Set(given).size, given.length, 'an address was given twice');
  for (const { addresses } of records) assert.equal(addresses!.keys.length, 3);
  assert.ok(kept.size <= 16 + 16 + 500);
  return records;
};

test('a region does not give VMs the address that they share', async () => {
  await using connections = inSqlite();
  await using manager = await managerOf(await connections.connect());
  const within = { ...prefixes, udp: { ...prefixes.udp, address: '10.20.0.14' } };
  await assert.rejects(give(manager, within), /10\.20\.0\.14 is in one of 10\.20\.0\.0\/28, .* share another address/);
  // Which no VM gets.
  await give(manager, { ...prefixes, udp: { ...prefixes.udp, address: '10.20.0.15' } });
});

test('managers that die between any two commits give no address twice, and none while it rests', async (t) => {
  await using connections = inSqlite();
  const stores = await connections.connect();
  await roomy(stores);
  await using first = await managerOf(stores);
  await give(first);
  await using _ = obeying(stores);
  const refused = new Map<string, number>();
  const steps = 20 * rounds;
  let serial = 0;
  /** Of every VM that there ever was: none of them comes back within this test. */
  const ever = new Map<string, string>();
  const seen = async (): Promise<void> => {
    for (const { id, addresses } of await check(stores))
      for (const address of addresses!.keys) {
        assert.equal(ever.get(address) ?? id, id, `${address} did not rest`);
        ever.set(address, id);
      }
  };
  const life = async (): Promise<void> => {
    for (let step = 0; step < steps; ) {
      const died = Promise.withResolvers<'died'>();
      const left = 3 + Math.floor(Math.random() * 12);
      const dying = { left, before: Math.random() < 0.5, died: () => died.resolve('died') };
      const manager = await Promise.race([managerOf(mortal(stores, dying)), died.promise]);
      if (manager === 'died') continue;
      for (let isAlive = true; isAlive && step < steps; step++) {
        const name = `vm-${serial++}`;
        const work = async (): Promise<void> => {
          try {
            await create(manager, routed(name));
            if (Math.random() < 0.3) await remove(manager, name);
          } catch (error) {
            assert.ok(error instanceof ApiError, String(error));
            refused.set(error.code, (refused.get(error.code) ?? 0) + 1);
          }
        };
        isAlive = (await Promise.race([work(), died.promise])) !== 'died';
        await seen();
      }
      void manager.close();
    }
  };
  await Promise.all([life(), life(), life()]);
  assert.deepEqual([...refused.keys()], ['FULL'], 'all were given in the end');
  // 14 and 2 of IPv4; a port for each of them.
  await assert.rejects(create(first, routed('last', 0)), (error: ApiError) => {
    assert.match(
      error.message,
      /^the region "local" has no IPv4 address left: all 16 of 10\.20\.0\.0\/28, 10\.20\.1\.4\/31 /,
    );
    return error.code === 'FULL';
  });
  assert.equal((await all(stores.region, 'address/ipv4/')).length, 16);
  t.diagnostic(`${serial} creations, refused: ${JSON.stringify([...refused])}`);
});

test('the last addresses are found by many at once, and an address is free again after it has rested', async () => {
  await using connections = inSqlite();
  const stores = await connections.connect();
  await roomy(stores);
  await using one = await managerOf(stores);
  await using other = await managerOf(stores);
  await assert.rejects(create(one, routed('early')), /has no prefixes for routed networks; give it some/);
  await give(one, { ...prefixes, ipv4: ['10.30.0.0/26'] });
  const outcomes = await Promise.allSettled(
    Array.from({ length: 70 }, (_, i) => create([one, other][i % 2]!, routed(`vm-${i}`, 0))),
  );
  assert.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 62);
  const records = (await all(stores.region, 'vm/')).map((entry) => VmRecord.parse(parsed(entry)));
  const numbers = records.map(({ addresses }) => addresses!.ipv4!).toSorted();
  const wanted = Array.from({ length: 62 }, (_, i) => addressOf('ipv4', 0x0a1e_0001n + BigInt(i)));
  assert.deepEqual(numbers, wanted.toSorted());

  await using _ = obeying(stores);
  const { name, addresses } = records[0]!;
  await remove(one, name);
  const key = addresses!.keys[0]!;
  await until('the end of the VM', async () =>
    (await all(stores.region, `vm/${name}`)).every(({ key: of }) => keyText(of) !== `vm/${name}`),
  );
  const resting = (await stores.region.get(key))!;
  assert.match(new TextDecoder().decode(resting.value), /restsSinceMs/);
  await assert.rejects(create(other, routed('too-soon', 0)), /or rest for 10 minutes/);
  // The store's clock is the machine's: what ends the rest is the end of the lease.
  await stores.region.revokeLease(resting.leaseId!);
  await create(other, routed('again', 0));
  const again = VmRecord.parse(parsed((await stores.region.get('vm/again'))!));
  assert.equal(again.addresses!.ipv4, addresses!.ipv4);
});
