import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { temporaryStore } from '../../test/store/temporary.ts';
import { vmRecord } from '../../test/uplink/region.ts';
import { encodeRecord } from '../records/index.ts';
import { openStores } from '../store/index.ts';
import type { Kit } from './kit.ts';
import { Reconciler } from './reconciler.ts';

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
