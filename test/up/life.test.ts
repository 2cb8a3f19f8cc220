/** The life of VMs of ours through the API, as an operator has it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../until.ts';
import { bootLimitMs, UpMachine } from './machine.ts';

const spec = `porthole: 1
metadata:
  instance: { hostname: web-1 }
  secrets: { db: hunter2 }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`;

test('a VM is made, starts, reads its metadata, is changed from outside, stops, and is deleted', async (t) => {
  const machine = new UpMachine(t);
  await machine.start();
  const { client } = machine;
  await machine.tinyImage();
  const made = await client.call('createVm', {
    body: { name: 'one', type: 'nano', image: { name: 'tiny' }, ninep: true, vsock: true, spec },
  });
  await machine.done(made);
  await machine.untilReady('one');
  const two = await client.call('createVm', { body: { name: 'two', type: 'nano', image: { name: 'tiny' } } });
  await client.call('cancelOperation', { params: { id: two.operation.id } });
  assert.equal((await machine.type('one', 'cat /run/metadata/instance/hostname')).trim(), 'web-1');
  await client.call('writeMetadata', {
    params: { name: 'one', path: 'instance/hostname' },
    body: Buffer.from('web-2'),
  });
  assert.equal((await machine.type('one', 'cat /run/metadata/instance/hostname')).trim(), 'web-2');
  await machine.type('one', 'echo from-inside > /run/metadata/guest/note');
  const { bytes } = await client.raw('readMetadata', { params: { name: 'one', path: 'guest/note' } });
  assert.equal(bytes.toString(), 'from-inside\n');
  // The console that speaks 9P shows the same tree, and so does vsock.
  const mounted = await machine.type(
    'one',
    'mkdir -p /run/9p && /sbin/mount.porthole -v hvc1 /run/9p && cat /run/9p/guest/note /run/9p/secrets/db',
  );
  assert.match(mounted, /^from-inside\r?\nhunter2/m);
  const byVsock = await machine.type(
    'one',
    'umount /run/9p; modprobe vmw_vsock_virtio_transport; /sbin/mount.porthole vsock:564 /run/9p && cat /run/9p/guest/note',
  );
  assert.match(byVsock, /^from-inside/m);
  // Who is shown a secret outside is on record as well.
  await client.raw('readMetadata', { params: { name: 'one', path: 'secrets/db' } });
  const { events } = await client.call('queryAudit', { query: { path: '/secrets/db', order: 'newest', limit: 1 } });
  assert.deepEqual(
    [events[0]?.way, events[0]?.by, events[0]?.verdict],
    ['api', `uid ${process.getuid?.()}`, 'allowed'],
  );
  const cancelled = await client.finished(two.operation.id, { signal: AbortSignal.timeout(bootLimitMs) });
  assert.equal(cancelled.state, 'cancelled');
  const names = async (): Promise<string[]> => (await client.call('listVms', {})).vms.map(({ name }) => name);
  await until('the VM that was cancelled to be gone', async () => (await names()).join() === 'one', 60_000);
  await machine.done(await client.call('stopVm', { params: { name: 'one' } }));
  assert.equal((await client.call('getVm', { params: { name: 'one' } })).status, 'stopped');
});
