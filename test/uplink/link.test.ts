/** Hosts and managers over TLS on this machine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeRecord, encodeRecord, HostLiveRecord, hostLiveKey } from '../../src/records/index.ts';
import { prefixRange } from '../../src/store/index.ts';
import { TestHost } from '../cluster/host-on-authority.ts';
import { until } from '../until.ts';
import { at, openRegion, vmRecord } from './region.ts';

test('a host that has enrolled is given its VMs, and asked about them', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const uplink = await region.uplink(await region.identity('h1', server), { managers: [at(server)] });
  const host = new TestHost();
  uplink.serve(host);
  const { store } = uplink;
  const { revision, entries } = await store.range(prefixRange('vm/'));
  assert.deepEqual(entries, []);
  const watch = store.watch(prefixRange('vm/'), { from: revision + 1 });
  const first = watch.next();
  const [mine, others] = [vmRecord('web-1', 'h1'), vmRecord('web-2', 'h2')];
  await region.assign(others);
  await region.assign(mine);
  const { value: batch } = await first;
  assert.equal(batch!.events.length, 1);
  const [event] = batch!.events;
  assert(event?.type === 'put');
  assert.deepEqual(JSON.parse(Buffer.from(event.entry.value).toString()), mine);
  const status = { id: mine.id, status: 'running' };
  await store.commit({ operations: [{ type: 'put', key: 'vmstatus/web-1', value: encodeRecord(status) }] });
  assert((await region.stores.region.get('vmstatus/web-1')) !== undefined);

  const live = await until('the host to be live', () => region.stores.region.get(hostLiveKey('h1')));
  assert.equal(decodeRecord(HostLiveRecord, 'live', live.value).version, 'test');
  host.make(mine);
  const port = server.hosts;
  await until(
    'the connection for calls',
    async () => (await port.status()).warnings[0] !== 'no host is connected to this manager',
  );
  const written = await port.tree(mine).edit([{ op: 'put', path: '/secrets/a', bytes: Buffer.from('1') }], []);
  assert.equal(written.dataRevisions.get('/secrets/a'), written.revision);
  const read = await port.tree(mine).read('/secrets/a', { by: 'test' });
  assert.equal(Buffer.from(read.bytes).toString(), '1');
  await assert.rejects(port.tree(mine).stat('/none'), { code: 'HOST_NOT_FOUND' });
  await assert.rejects(port.tree(others).stat('/'), { code: 'HOST_UNAVAILABLE', message: /"h2".*not connected/ });
  assert.deepEqual(region.troubles, []);
});
