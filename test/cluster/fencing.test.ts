/** Hosts that are cut off, lost and back, as the managers of a region see it: by their leases in its store. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ApiError } from '../../src/cluster/problem.ts';
import type { VmWish } from '../../src/cluster/vms.ts';
import {
  encodeRecord,
  HostLeaseRecord,
  HostLeftRecord,
  HostRecord,
  HostUseRecord,
  hostKey,
  hostLeaseKey,
  hostLeftKey,
  hostLiveKey,
  hostLostKey,
  hostUseKey,
  hostVmKey,
  VmRecord,
  type VmStatus,
  type VmStatusRecord,
} from '../../src/records/index.ts';
import { keyText, openStores, type Store } from '../../src/store/index.ts';
import { grantHostLease } from '../../src/uplink/host-lease.ts';
import { temporaryStore } from '../store/temporary.ts';
import { until } from '../until.ts';
import { addHost } from './hosts.ts';
import { all, create, managerOf, parsed, wish } from './placement.ts';

const leaseSeconds = 3600;
const marginMs = 200;

const record = async <T>(region: Store, schema: { parse(value: unknown): T }, key: string): Promise<T | undefined> => {
  const entry = await region.get(key);
  return entry && schema.parse(parsed(entry));
};

const grant = async (region: Store, name: string): Promise<{ readonly id: string }> => {
  const host = (await record(region, HostRecord, hostKey(name)))!;
  await region.commit({
    operations: [
      { type: 'put', key: hostLiveKey(name), value: encodeRecord({ id: host.id, manager: 'm', sinceMs: 0 }) },
    ],
  });
  return grantHostLease(region, host, {
    machine: `machine-${name}`,
    seconds: leaseSeconds,
    signal: new AbortController().signal,
  });
};

/** As when its time is over. */
const lapse = async (region: Store, name: string): Promise<void> => {
  const lease = await record(region, HostLeaseRecord, hostLeaseKey(name));
  await region.revokeLease(lease!.leaseId);
  await region.commit({ operations: [{ type: 'delete', key: hostLiveKey(name) }] });
};

const change = async (region: Store, name: string, fields: Partial<HostRecord>): Promise<void> => {
  const host = (await record(region, HostRecord, hostKey(name)))!;
  await region.commit({
    operations: [{ type: 'put', key: hostKey(name), value: encodeRecord({ ...host, ...fields }) }],
  });
};

const tell = async (region: Store, { id, name, generation }: VmRecord, status: VmStatus): Promise<void> => {
  const told: VmStatusRecord = {
    id,
    status: status as VmStatusRecord['status'],
    reason: '',
    sinceMs: 1,
    generation,
    outcome: 'done',
    bootNumber: 1,
    addresses: [],
  };
  await region.commit({ operations: [{ type: 'put', key: `vmstatus/${name}`, value: encodeRecord(told) }] });
};

test('VMs that may start elsewhere leave a host whose lease has run out, and the others are lost until it is back', async (t) => {
  const stores = await openStores(temporaryStore(t));
  t.after(() => stores.close());
  const { region } = stores;
  // Two managers, which see to the same.
  await using manager = await managerOf(stores, { fencingMarginMs: marginMs });
  await using _ = await managerOf(stores, { fencingMarginMs: marginMs });
  const capacity = { vcpus: 4, memoryMiB: 1024, diskBytes: 0 };
  for (const name of ['h1', 'h2']) await addHost(region, name, { capacity });
  const make = async (name: string, fields: Partial<VmWish>): Promise<VmRecord> => {
    await create(manager, wish(name, fields));
    return vm(name);
  };
  const vm = async (name: string): Promise<VmRecord> => (await record(region, VmRecord, `vm/${name}`))!;
  const status = async (name: string): Promise<VmStatus> => (await counted()).get(name)!;
  const counted = async (): Promise<Map<string, VmStatus>> => {
    const found = await all(stores.global, 'index/vm/');
    return new Map(
      found.map((entry) => [parsed<{ name: string }>(entry).name, keyText(entry.key).split('/')[5] as VmStatus]),
    );
  };
  const elsewhere: Partial<VmWish> = { restartWhere: 'elsewhere', stateless: true, labels: { app: 'a' } };

  // None has a lease yet.
  await assert.rejects(
    make('early', elsewhere),
    (error) => error instanceof ApiError && error.code === 'NO_HOST' && /have no lease/.test(error.message),
  );
  const first = await grant(region, 'h1');
  assert.equal((await grant(region, 'h1')).id, first.id, 'a lease that goes on is the same');
  await grant(region, 'h2');
  await change(region, 'h2', { cordoned: true });
  const moves = await make('moves', { ...elsewhere, placement: { ...wish('').placement, apart: 'app' } });
  const stays = await make('stays', {});
  const down = await make('down', { start: false });
  assert.equal(moves.host, 'h1');
  await tell(region, moves, 'running');
  await tell(region, stays, 'running');
  await tell(region, down, 'stopped');
  await until('them to be counted', async () => (await status('stays')) === 'running');
  await change(region, 'h2', { cordoned: false });

  await lapse(region, 'h1');
  await until('the one to be given to another host', async () => (await vm('moves')).host === 'h2');
  await until('the other to be lost', async () => (await status('stays')) === 'lost');
  const moved = await vm('moves');
  assert.equal(moved.epoch, 2);
  assert.deepEqual(
    moved.stays?.map(({ host, fromMs }) => ({ host, fromMs })),
    [{ host: 'h1', fromMs: moves.createdAtMs }],
  );
  assert.equal(moved.generation, moves.generation);
  assert.notEqual(moved.uid, undefined);
  const one = { vcpus: 1, memoryMiB: 256, diskBytes: 0 };
  assert.deepEqual(await record(region, HostUseRecord, hostUseKey('h2')), { ...one, vms: 1 });
  assert.deepEqual(await record(region, HostUseRecord, hostUseKey('h1')), {
    ...{ vcpus: 2, memoryMiB: 512, diskBytes: 0 },
    vms: 2,
  });
  assert.equal(await region.get(hostVmKey('h1', 'moves')), undefined);
  assert.equal((await record(region, HostLeftRecord, hostLeftKey('h1', 'moves')))?.epoch, 1);
  assert.deepEqual(
    (await all(region, 'apart/')).map(({ key }) => keyText(key).split('/').at(-1)),
    ['h2'],
  );
  assert.equal(await status('down'), 'stopped');
  assert.match((await vm('stays')).lost?.reason ?? '', /"h1" is not heard of/);

  // It is back, by another lease: what its own is runs there as before.
  assert.notEqual((await grant(region, 'h1')).id, first.id);
  assert.equal(await region.get(hostLostKey('h1')), undefined);
  await until('what is its own to be found', async () => (await status('stays')) === 'running');
  assert.equal((await vm('stays')).lost, undefined);

  // No room elsewhere: it is lost, with the reason, until there is.
  await change(region, 'h1', { cordoned: true });
  await tell(region, moved, 'running');
  await lapse(region, 'h2');
  await until('it to be lost', async () => (await status('moves')) === 'lost');
  assert.match((await vm('moves')).lost?.reason ?? '', /no host fits "moves"/);
  await change(region, 'h1', { cordoned: false });
  await until('it to go back to the first', async () => (await vm('moves')).host === 'h1');
  assert.equal((await vm('moves')).epoch, 3);
  assert.equal((await vm('moves')).lost, undefined);
});
