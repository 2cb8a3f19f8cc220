/**
 * Several managers place VMs on the hosts of one region, and die between any two of their commits: no host is overcommitted, no
 * VM is lost or doubled, and no quota is passed. The tests of it that every engine passes, each manager by a connection of its own.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { Manager, type ManagerOptions } from '../../src/cluster/index.ts';
import { entriesOf } from '../../src/cluster/kit.ts';
import { ApiError } from '../../src/cluster/problem.ts';
import type { VmWish } from '../../src/cluster/vms.ts';
import type { VmRecord } from '../../src/records/index.ts';
import type { Entry, Store, Stores } from '../../src/store/index.ts';
import type { Connections } from './connections.ts';
import { TestHost } from './host-on-authority.ts';
import { addHost, anywhere } from './hosts.ts';
import { checkPlaces } from './invariants.ts';
import { mortal } from './mortal.ts';

/** `PORTHOLE_PLACEMENT_ROUNDS` does it more often. */
const rounds = Number(process.env['PORTHOLE_PLACEMENT_ROUNDS'] ?? 1);
export const log = pino({ level: 'silent' });
const types = ['nano', 'micro', 'small', 'medium'] as const;
const smallLimit = 3;

export const wish = (name: string, fields: Partial<VmWish> = {}): VmWish => ({
  name,
  kind: 'managed',
  type: 'nano',
  image: undefined,
  diskBytes: undefined,
  network: { mode: 'none' },
  labels: {},
  restart: 'never',
  start: true,
  stopGraceSeconds: 1,
  placement: anywhere,
  spec: undefined,
  ...fields,
});

export const answer = { status: 202, headers: {}, body: '' };

/** What is to be deleted is gone at once. */
export const obeying = ({ region }: Stores): AsyncDisposable => {
  const stop = new AbortController();
  const host = new TestHost().obey(region, stop.signal);
  const end = async (): Promise<void> => {
    stop.abort();
    await host;
  };
  return { [Symbol.asyncDispose]: end };
};

export const all = async (store: Store, prefix: string): Promise<readonly Entry[]> =>
  (await entriesOf(store, prefix)).entries;

export const parsed = <T>(entry: Entry): T => JSON.parse(new TextDecoder().decode(entry.value)) as T;

export const managerOf = (stores: Stores, options: Partial<ManagerOptions> = {}): Promise<Manager> =>
  Manager.open({
    region: stores.region,
    global: stores.global,
    host: new TestHost(),
    images: new TestHost(),
    log,
    ownHost: false,
    ...options,
  });

export const create = (manager: Manager, of: VmWish): Promise<unknown> =>
  manager.vms.create(
    'default',
    of,
    async (transaction) => (await manager.kit.region.commit(transaction)).committed,
    () => answer,
  );

export const remove = (manager: Manager, name: string): Promise<unknown> =>
  manager.vms.request(
    'default',
    name,
    { kind: 'vm.delete' },
    async (transaction) => (await manager.kit.region.commit(transaction)).committed,
    () => answer,
  );

/** What every moment of the region's store must keep to. */
const check = async ({ region }: Stores): Promise<readonly VmRecord[]> => {
  const { vms: records, at } = await checkPlaces(region);
  const [slots, apart, uids] = await Promise.all(['slot/', 'apart/', 'hostuid/'].map(at));
  assert.equal(slots!.length, records.length);
  assert.equal(uids!.length, records.length);
  assert.equal(apart!.length, records.filter(({ labels }) => 'apart' in labels).length);
  const groups = records
    .filter(({ labels }) => 'apart' in labels)
    .map(({ labels, host }) => `${labels['apart']} ${host}`);
  assert.equal(new Set(groups).size, groups.length, 'two VMs that stay apart are on one host');
  assert.ok(records.filter(({ type }) => type === 'small').length <= smallLimit);
  return records;
};

/** `creations`: how many each of three managers, and those that come after it, asks for; `hosts`: how many are filled. */
export const placementTests = (
  open: () => Connections,
  { creations, hosts }: { readonly creations: number; readonly hosts: number },
): void => {
  const steps = creations * rounds;

  test('managers that die between any two commits neither overcommit a host nor lose a VM', async (t) => {
    await using connections = open();
    const stores = await connections.connect();
    for (let i = 0; i < 4; i++)
      await addHost(stores.region, `h${i}`, { capacity: { vcpus: 6, memoryMiB: 4096, diskBytes: 1000 } });
    await using first = await managerOf(stores);
    const taken = async (transaction: Parameters<Store['commit']>[0]) =>
      (await stores.global.commit(transaction)).committed;
    await first.accounts.setQuotas('default', { local: { small: smallLimit } }, taken, () => answer);
    await using _ = obeying(stores);
    let opened = 1;

    const acknowledged = new Set<string>();
    const removed = new Set<string>();
    let serial = 0;
    const refusals = new Map<string, number>();
    const life = async (): Promise<void> => {
      const own = await connections.connect();
      for (let step = 0; step < steps; ) {
        const died = Promise.withResolvers<'died'>();
        const dying = {
          left: 4 + Math.floor(Math.random() * 30),
          before: Math.random() < 0.5,
          died: () => died.resolve('died'),
        };
        const manager = await Promise.race([managerOf(mortal(own, dying)), died.promise]);
        if (manager === 'died') continue;
        opened++;
        let isAlive = true;
        while (isAlive && step < steps) {
          const batch = Array.from({ length: 1 + Math.floor(Math.random() * 4) }, async () => {
            const name = `vm-${serial++}`;
            const type = types[Math.floor(Math.random() * types.length)]!;
            const isApart = Math.random() < 0.2;
            const fields: Partial<VmWish> = {
              type,
              ...(isApart && { labels: { apart: String(serial % 3) }, placement: { ...anywhere, apart: 'apart' } }),
              ...(!isApart && Math.random() < 0.3 && { placement: { ...anywhere, strategy: 'pack' as const } }),
            };
            try {
              await create(manager, wish(name, fields));
              acknowledged.add(name);
            } catch (error) {
              assert.ok(error instanceof ApiError, String(error));
              refusals.set(error.code, (refusals.get(error.code) ?? 0) + 1);
              const victim = [...acknowledged][Math.floor(Math.random() * acknowledged.size)];
              if (victim === undefined) return;
              acknowledged.delete(victim);
              removed.add(victim);
              await remove(manager, victim);
            }
          });
          step += batch.length;
          const outcome = await Promise.race([Promise.all(batch), died.promise]);
          isAlive = outcome !== 'died';
          await check(stores);
        }
        // What the dead one still waits for is never answered.
        void manager.close();
      }
    };
    await Promise.all([life(), life(), life()]);
    for (const { name, desired } of await check(stores)) if (desired !== 'deleted') acknowledged.delete(name);
    assert.deepEqual([...acknowledged], [], 'VMs were lost');
    // What nobody answers for any more: the manager that lives ends it.
    for (const name of removed) await remove(first, name).catch(() => {});
    for (let left = removed.size; left > 0; ) {
      const names = new Set((await check(stores)).map(({ name }) => name));
      left = [...removed].filter((name) => names.has(name)).length;
      await new Promise(setImmediate);
    }
    for (const code of refusals.keys()) assert.match(code, /^(NO_HOST|QUOTA_EXCEEDED|VM_NOT_FOUND)$/);
    t.diagnostic(`${serial} creations by ${opened} managers; refused: ${JSON.stringify([...refusals])}`);
  });

  test('creations at once spread over all hosts, and fill them to the last', async () => {
    await using connections = open();
    const stores = await connections.connect();
    for (let i = 0; i < hosts; i++)
      await addHost(stores.region, `h${i}`, { capacity: { vcpus: 10, memoryMiB: 2560, diskBytes: 0 } });
    await using one = await managerOf(stores);
    await using other = await managerOf(await connections.connect());
    const managers = [one, other];
    const count = hosts * 10 * rounds;
    await Promise.all(
      managers.flatMap((manager, m) =>
        Array.from({ length: hosts * 2 }, (_, i) => create(manager, wish(`vm-${m}-${i}`))),
      ),
    );
    const perHost = Map.groupBy(await check(stores), ({ host }) => host);
    assert.equal(perHost.size, hosts);
    const outcomes = await Promise.allSettled(
      managers.flatMap((manager, m) =>
        Array.from({ length: count }, (_, i) => create(manager, wish(`more-${m}-${i}`))),
      ),
    );
    assert.equal((await check(stores)).length, hosts * 10);
    for (const outcome of outcomes)
      if (outcome.status === 'rejected')
        assert.match(
          String(outcome.reason),
          /NO_HOST|no host fits "more-\d-\d+": \d hosts have less than 256 MiB of memory free/,
        );
  });
};
