/** A region's manager, and a host of it, as processes of their own. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { until } from '../until.ts';
import { bootLimitMs } from './machine.ts';
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
  const note = async (): Promise<string> =>
    (await client.raw('readMetadata', { params: { name: 'one', path: 'guest/note' } })).bytes.toString().trim();
  const status = async () => (await client.call('getVm', { params: { name: 'one' } })).status;
  const { qemu, device } = { qemu: machine.qemuPid('one'), device: machine.devicePid('one') };
  const why = 'getfattr -n system.porthole.why --only-values';
  const script = [
    'cd /run/metadata',
    `until ${why} instance/hostname 2> /dev/null | grep -q "cut off"; do sleep 0.2; done`,
    'cat instance/hostname > /tmp/read',
    'while echo lost > guest/note; do :; done 2> /tmp/refused',
    // The console's log has this line too, as it was typed: with the quotes.
    `echo "refused"-in-the-guest > /dev/console`,
    `while ${why} instance/hostname 2> /dev/null | grep -q "cut off"; do sleep 0.2; done`,
    'until echo healed > guest/note; do sleep 0.2; done 2> /dev/null',
  ];
  await guest(`(${script.join('; ')}) > /dev/null 2>&1 &`);
  // The manager dies; the console's log tells what the guest meets meanwhile, for nobody can be asked.
  await machine.manager!.kill('SIGKILL');
  await machine.host!.told('cut off');
  const log = path.join(machine.directory, 'state/vms/one/console.log.0000000000000000');
  await until(
    'the guest to be refused',
    () => readFileSync(log, 'latin1').includes('refused-in-the-guest'),
    bootLimitMs,
  );
  await machine.startManager();
  await until('the guest to write again', async () => (await note().catch(() => '')) === 'healed', bootLimitMs);
  assert.equal(await guest('cat /tmp/read'), 'web-2');
  assert.match(await guest('cat /tmp/refused'), /Input\/output error/);
  assert.equal(await status(), 'running');
  assert.deepEqual({ qemu: machine.qemuPid('one'), device: machine.devicePid('one') }, { qemu, device });

  // The host's daemon dies, and is started again: what runs goes on with it.
  await machine.host!.kill('SIGKILL');
  await machine.startHost();
  await client.call('writeMetadata', {
    params: { name: 'one', path: 'instance/hostname' },
    body: Buffer.from('web-3'),
  });
  assert.equal(await guest('cat /run/metadata/instance/hostname /run/metadata/guest/note'), 'web-3healed');
  assert.deepEqual({ qemu: machine.qemuPid('one'), device: machine.devicePid('one') }, { qemu, device });
});
