import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { temporaryStore } from '../../test/store/temporary.ts';
import { vmRecord } from '../../test/uplink/region.ts';
import { encodeRecord, type OperationRecord, type VmStatusRecord } from '../records/index.ts';
import { limits, openStores } from '../store/index.ts';
import type { Kit } from './kit.ts';
import { someOfVm } from './operations.ts';
import { Reconciler, resultOf } from './reconciler.ts';

test('Reconciler.run settles the other VMs when one cannot be settled', { timeout: 60_000 }, async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const value = new Uint8Array(0);
  for (const name of ['a', 'b', 'c'])
    await stores.region.commit({ operations: [{ type: 'put', key: `vmstatus/${name}`, value }] });
  const errors: string[] = [];
  const log = pino({}, { write: (line) => errors.push(line) });
  const parts = {} as ConstructorParameters<typeof Reconciler>[1];
  const reconciler = new Reconciler({ region: stores.region, log } as Kit, parts);
  const stop = new AbortController();
  const seen: string[] = [];
  t.mock.method(reconciler, 'settle', async (name: string) => {
    seen.push(name);
    if (seen.length === 6) stop.abort();
    if (name === 'b') throw new Error('no room');
  });
  await reconciler.run(stop.signal);
  assert.deepEqual(seen, ['a', 'b', 'c', 'a', 'b', 'c']);
  assert.match(errors[0]!, /following the status of VM \\"b\\" failed/);
});

test('Reconciler.settle leaves out a status that a host wrote and nobody understands', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const { region } = stores;
  await region.commit({
    operations: [
      { type: 'put', key: 'vm/a', value: encodeRecord(vmRecord('a', 'h1')) },
      { type: 'put', key: 'vmstatus/a', value: new TextEncoder().encode('{') },
    ],
  });
  const errors: string[] = [];
  const log = pino({}, { write: (line) => errors.push(line) });
  const parts = {} as ConstructorParameters<typeof Reconciler>[1];
  await new Reconciler({ region, log } as Kit, parts).settle('a');
  assert.match(errors[0]!, /a record of the store is left out/);
});

test('resultOf takes no more of what a host says than all operations of a VM can hold', () => {
  const vm = vmRecord('a', 'h1');
  const reason = 'a'.repeat(limits.transactionBytes);
  const operation = { target: { id: vm.id }, generation: 1, state: 'running', step: '' } as OperationRecord;
  for (const outcome of ['failed', 'underway'] as const) {
    const status = { id: vm.id, status: 'failed', reason, sinceMs: 0, generation: 1, outcome } as VmStatusRecord;
    const change = JSON.stringify(resultOf(operation, vm, status));
    assert(change.length * someOfVm < limits.transactionBytes / 2, outcome);
  }
});
