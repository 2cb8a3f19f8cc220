/** Hosts that are emptied, as managers do it, with hosts that do what records ask. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  encodeRecord,
  HostRecord,
  HostUseRecord,
  hostKey,
  hostUseKey,
  OperationRecord,
  VmRecord,
  VmStatusRecord,
} from '../../src/records/index.ts';
import { openStores } from '../../src/store/index.ts';
import { temporaryStore } from '../store/temporary.ts';
import { until } from '../until.ts';
import { addHost } from './hosts.ts';
import { all, answer, create, managerOf, parsed, wish } from './placement.ts';

test('a host that is drained has its VMs stopped and started on others, and keeps those with disks there', async (t) => {
  const stores = await openStores(temporaryStore(t));
  t.after(() => stores.close());
  const { region } = stores;
  await using manager = await managerOf(stores);
  await using _ = await managerOf(stores);
  for (const name of ['h1', 'h2']) await addHost(region, name);
  const change = async (name: string, fields: Partial<HostRecord>): Promise<void> => {
    const host = HostRecord.parse(parsed((await region.get(hostKey(name)))!));
    await region.commit({
      operations: [{ type: 'put', key: hostKey(name), value: encodeRecord({ ...host, ...fields }) }],
    });
  };
  const vm = async (name: string): Promise<VmRecord> => VmRecord.parse(parsed((await region.get(`vm/${name}`))!));
  const statusOf = async (name: string): Promise<VmStatusRecord | undefined> => {
    const entry = await region.get(`vmstatus/${name}`);
    return entry && VmStatusRecord.parse(parsed(entry));
  };
  const told: string[] = [];
  const tell = async (
    { name, id, generation, host }: VmRecord,
    status: 'running' | 'stopped' | 'failed',
  ): Promise<void> => {
    const outcome = status === 'failed' ? 'failed' : 'done';
    const record: VmStatusRecord = {
      ...{ id, status, generation, reason: '', sinceMs: 1, outcome, bootNumber: 1, addresses: [] },
    };
    await region.commit({ operations: [{ type: 'put', key: `vmstatus/${name}`, value: encodeRecord(record) }] });
    told.push(`${name} ${status} on ${host}`);
  };
  let isDeaf = false;
  const failing = new Set<string>();
  /** Every host does what it is asked for, but for what has failed. */
  const obey = async (): Promise<void> => {
    for (const entry of isDeaf ? [] : await all(region, 'vm/')) {
      const record = VmRecord.parse(parsed(entry));
      if ((await statusOf(record.name))?.generation !== record.generation)
        await tell(record, failing.has(record.name) ? 'failed' : record.desired === 'running' ? 'running' : 'stopped');
    }
  };
  const drain = async (host: string): Promise<string> => {
    let id = '';
    await manager.drains.begin(
      'default',
      host,
      async (transaction) => (await region.commit(transaction)).committed,
      (operation) => {
        ({ id } = operation);
        return answer;
      },
    );
    return `operation/${id}`;
  };
  const ended = (key: string): Promise<OperationRecord> =>
    until('the operation to end', async () => {
      await obey();
      const operation = OperationRecord.parse(parsed((await region.get(key))!));
      return operation.state !== 'pending' && operation.state !== 'running' && operation;
    });

  await change('h2', { cordoned: true });
  await create(manager, wish('web', { stateless: true }));
  await create(manager, wish('off', { stateless: true }));
  await create(manager, wish('db'));
  for (const name of ['web', 'db']) await tell(await vm(name), 'running');
  await tell(await vm('off'), 'stopped');

  const nowhere = await ended(await drain('h1'));
  assert.equal(nowhere.state, 'failed');
  assert.match(nowhere.error!.detail, /^2 of its VMs can go nowhere, and run on: no host fits .* is cordoned/);
  assert.match(nowhere.step, /these stay, as their disks are there: db$/);
  assert.equal((await vm('web')).generation, 1, 'it was not stopped for nothing');

  await change('h2', { cordoned: false });
  told.length = 0;
  const done = await ended(await drain('h1'));
  assert.deepEqual([done.state, done.done, done.total], ['succeeded', 2, 2]);
  assert.match(done.step, /: db$/);
  await obey();
  assert.deepEqual(
    told.filter((words) => words.startsWith('web')),
    ['web stopped on h1', 'web running on h2'],
  );
  assert.deepEqual([(await vm('web')).epoch, (await vm('db')).host], [2, 'h1']);
  // Its guest had powered off: it is on the other host, and still off.
  const off = await vm('off');
  assert.deepEqual([off.host, off.desired, (await statusOf('off'))?.status], ['h2', 'running', 'stopped']);
  assert.equal((await statusOf('off'))?.generation, off.generation);
  assert.equal(HostUseRecord.parse(parsed((await region.get(hostUseKey('h1')))!)).vms, 1);

  // One that has failed, and that nothing can stop any more, goes as well.
  await change('h1', { cordoned: false, draining: false });
  failing.add('web');
  await tell(await vm('web'), 'failed');
  assert.equal((await ended(await drain('h2'))).state, 'succeeded');
  assert.deepEqual([(await vm('web')).host, (await vm('web')).desired], ['h1', 'running']);
  failing.clear();
  await change('h2', { cordoned: false, draining: false });
  await obey();
  assert.equal((await ended(await drain('h1'))).state, 'succeeded');

  // Called off while one is being stopped: it goes on where it is.
  await change('h1', { cordoned: false, draining: false });
  isDeaf = true;
  const calledOff = await drain('h2');
  await until('it to be asked to stop', async () => (await vm('web')).desired === 'stopped');
  await change('h2', { cordoned: false, draining: false });
  assert.equal((await ended(calledOff)).state, 'cancelled');
  const back = await vm('web');
  assert.deepEqual([back.host, back.desired, back.moving], ['h2', 'running', undefined]);
  assert.deepEqual(await all(region, 'drain/'), []);
});
