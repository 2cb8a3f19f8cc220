/** A region's manager, and a host of it, as processes of their own. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RegionMachine } from './region-machine.ts';

const spec = `porthole: 1
metadata:
  instance: { hostname: web-1 }
  secrets: { db: hunter2 }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`;

test('a VM runs on a host that is cut off, and goes on through the deaths of manager and host', async (t) => {
  const machine = new RegionMachine(t);
  await machine.start();
  const { client } = machine;
  await machine.tinyImage();
  await machine.done(
    await client.call('createVm', { body: { name: 'one', type: 'nano', image: { name: 'tiny' }, spec } }),
  );
  await machine.untilReady('one');
  const guest = async (line: string): Promise<string> => (await machine.type('one', line)).trim();
  assert.equal(await guest('cat /run/metadata/instance/hostname'), 'web-1');
  await client.call('writeMetadata', {
    params: { name: 'one', path: 'instance/hostname' },
    body: Buffer.from('web-2'),
  });
  assert.equal(await guest('cat /run/metadata/instance/hostname'), 'web-2');
  await guest('echo from-inside > /run/metadata/guest/note');
  const { bytes } = await client.raw('readMetadata', { params: { name: 'one', path: 'guest/note' } });
  assert.equal(bytes.toString(), 'from-inside\n');
});
