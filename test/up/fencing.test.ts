/** Hosts that are cut off, stopped and killed: a VM that may start elsewhere does, and never runs twice. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { bootClockMs } from '../../src/qemu/index.ts';
import { until } from '../until.ts';
import { type FleetHost, FleetMachine, type Qemu, qemuAt } from './fleet-machine.ts';
import { bootLimitMs } from './machine.ts';

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
const lookEveryMs = 5;
const findEveryMs = 100;

/** Has the guest say on its disk, a block each time, by which epoch it runs, behind what was said there before. */
const stamp = async (machine: FleetMachine, epoch: number): Promise<void> => {
  const write = `printf '${epoch} %d\\n' $n | dd of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2> /dev/null`;
  await machine.type(vm, `n=$(tr -d '\\000' < /dev/vda | wc -l)`);
  await machine.type(vm, `(while :; do ${write}; n=$((n+1)); sleep 0.1; done) > /dev/null 2>&1 &`);
  await until('the guest to say so', () => stampsOf(machine).some((stamped) => stamped.epoch === epoch));
};

const stampsOf = ({ disks }: FleetMachine): { readonly epoch: number; readonly count: number }[] => {
  const id = readdirSync(disks).find((name) => name.startsWith('i-'));
  const bytes = readFileSync(path.join(disks, id!, 'disk.raw'), 'latin1');
  return [...bytes.matchAll(/(\d+) (\d+)\n/g)].map(([, epoch, count]) => ({
    epoch: Number(epoch),
    count: Number(count),
  }));
};

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
  await stamp(machine, 1);

  // When each QEMU was seen last: those that are known are looked at often, others are looked for.
  const seen = new Map<number, { beganAtMs: number; seenAtMs: number }>();
  const see = (qemu: Qemu | undefined): void => {
    if (qemu !== undefined) seen.set(qemu.pid, { beganAtMs: qemu.beganAtMs, seenAtMs: bootClockMs() });
  };
  const find = (): void => {
    for (const host of hosts) see(host.qemuOf(vm));
  };
  const timers = [
    setInterval(find, findEveryMs),
    setInterval(() => {
      for (const pid of seen.keys()) see(qemuAt(pid));
    }, lookEveryMs),
  ];
  t.after(() => {
    for (const timer of timers) clearInterval(timer);
  });

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
    await stamp(machine, after.epoch);
    await machine.startHost(from);
    await until(
      'the host that is back to delete what it had',
      () =>
        !existsSync(path.join(from.directory, 'state/vms', vm)) &&
        !existsSync(path.join(from.directory, 'run/vms', vm)),
    );
  }
  find();
  // None of an epoch wrote again once a higher one had.
  const stamps = stampsOf(machine);
  assert.deepEqual(
    stamps.map(({ count }) => count),
    stamps.map((_, i) => i),
  );
  assert.deepEqual(
    stamps.map(({ epoch }) => epoch),
    stamps.map(({ epoch }) => epoch).toSorted((a, b) => a - b),
  );
  const lives = [...seen.values()].toSorted((a, b) => a.beganAtMs - b.beganAtMs);
  assert.ok(lives.length > rounds);
  const gaps = lives.slice(1).map(({ beganAtMs }, i) => beganAtMs - lives[i]!.seenAtMs);
  t.diagnostic(`from the last sight of a QEMU to the start of the next: ${gaps.join(', ')} ms`);
  for (const gapMs of gaps) assert.ok(gapMs > 0, `a QEMU began ${-gapMs} ms before the last sight of the one before`);
});
