/** Hosts that are cut off, stopped and killed: a VM that may start elsewhere does, and never runs twice. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { until } from '../until.ts';
import { type FleetHost, FleetMachine } from './fleet-machine.ts';
import { bootLimitMs } from './machine.ts';
import { DiskStamps, Lives } from './one-life.ts';

/** How often its host is taken from it. */
const rounds = Number(process.env['PORTHOLE_FENCING_ROUNDS'] ?? 1);

/** Each way in which a host is not heard of any more. */
const ways: readonly { readonly name: string; readonly lose: (host: FleetHost) => unknown }[] = [
  { name: 'its daemon is stopped', lose: ({ daemon }) => daemon!.child.kill('SIGSTOP') },
  { name: 'it is cut off', lose: ({ proxy }) => proxy.set('silent') },
  { name: 'its daemon is killed', lose: ({ daemon }) => daemon!.kill('SIGKILL') },
];

const vm = 'one';
const diskBytes = 4 * 1024 * 1024;

test('a VM that may start elsewhere never runs twice, whatever becomes of its host', async (t) => {
  const machine = new FleetMachine(t, ['h1', 'h2']);
  await machine.start();
  const { client, hosts } = machine;
  await machine.tinyImage();
  await machine.done(
    await client.call('createVm', {
      body: {
        name: vm,
        type: 'nano',
        image: { name: 'tiny' },
        network: { mode: 'none' },
        restartWhere: 'elsewhere',
        disk: 'network',
        diskBytes,
      },
    }),
  );
  await machine.untilReady(vm);
  await machine.type(vm, 'echo kept > /run/metadata/guest/note');
  const stamps = new DiskStamps(client, vm, machine.disks);
  await stamps.begin(1);

  const lives = new Lives(() => hosts.map((host) => host.qemuOf(vm)));
  t.after(() => lives[Symbol.dispose]());

  // On a machine that is very busy a host may lose its lease by itself: then it moves more often.
  for (let round = 0; round < rounds; round++) {
    const { name: way, lose } = ways[round % ways.length]!;
    const before = await client.call('getVm', { params: { name: vm } });
    const from = hosts.find(({ name }) => name === before.host)!;
    await lose(from);
    const after = await until(
      `it to run on the other host when ${way}`,
      async () => {
        const now = await client.call('getVm', { params: { name: vm } });
        return now.host !== before.host && now.status === 'running' && now;
      },
      bootLimitMs,
    );
    assert.ok(after.epoch > before.epoch);
    await machine.untilReady(vm);
    assert.equal((await machine.type(vm, 'cat /run/metadata/guest/note')).trim(), 'kept');
    await stamps.begin(after.epoch);
    await machine.startHost(from);
    await until(
      'the host that is back to delete what it had',
      () =>
        !existsSync(path.join(from.directory, 'state/vms', vm)) &&
        !existsSync(path.join(from.directory, 'run/vms', vm)),
    );
  }
  stamps.check();
  t.diagnostic(`from the last sight of a QEMU to the start of the next: ${lives.check(rounds).join(', ')} ms`);
});
