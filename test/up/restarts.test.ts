/** A VM whose QEMU is killed under load, and one whose machine was restarted: it comes back by itself with all that was acknowledged. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import type { ResultOf } from '../../src/cluster/client/index.ts';
import { Boots } from '../../src/host/boots.ts';
import { openStores } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { bootLimitMs, UpMachine } from './machine.ts';

/** Says on the console what write(2) has returned for. */
const load = String.raw`i=$(tail -n 1 /run/metadata/guest/log 2>/dev/null || echo 0)
while :; do i=$((i+1)); echo $i >>/run/metadata/guest/log && echo "acked $i."; cat /run/metadata/secrets/db >/dev/null || echo READ FAILED; done
`;

const spec = `porthole: 1
metadata: { secrets: { db: hunter2 }, app: { load: ${JSON.stringify(load)} } }
policy: [{ path: /secrets/db, owner: 0, mode: "0400" }]
`;

type Vm = ResultOf<'getVm'>;

class Loaded {
  readonly machine: UpMachine;
  readonly #boots: string[] = [];

  constructor(machine: UpMachine) {
    this.machine = machine;
  }

  vm(): Promise<Vm> {
    return this.machine.client.call('getVm', { params: { name: 'one' } });
  }

  async lines(): Promise<number[]> {
    const { bytes } = await this.machine.client.raw('readMetadata', { params: { name: 'one', path: 'guest/log' } });
    return bytes.toString().trim().split('\n').map(Number);
  }

  /** The last that the guest says to be written; it says so after write(2) has returned. */
  async acknowledged(): Promise<number> {
    const said = [...(await this.machine.console('one')).matchAll(/acked (\d+)\./g)];
    return Number(said.at(-1)?.[1] ?? 0);
  }

  /** Runs the load, until it has written so many lines more. */
  async busy(count: number): Promise<void> {
    const before = await this.acknowledged();
    const typed = Buffer.from('sh /run/metadata/app/load\n');
    await this.machine.client.call('writeConsole', { params: { name: 'one' }, body: typed });
    await until('the guest to write', async () => (await this.acknowledged()) >= before + count, 60_000);
  }

  /** Waits for the next boot, and checks that it has all that was acknowledged before it, each once and in order. */
  async cameBack(number: number): Promise<Vm> {
    const acknowledged = await this.acknowledged();
    const again = await until(
      'another boot',
      async () => {
        const vm = await this.vm();
        return vm.status === 'running' && vm.bootNumber === number ? vm : undefined;
      },
      bootLimitMs,
    ).catch(async (error: unknown) => {
      const seen = JSON.stringify([await this.vm(), this.machine.events]);
      assert.fail(`boot ${number}: ${(error as Error).message}: ${seen} ${this.machine.said}`);
    });
    assert.ok(!this.#boots.includes(again.bootId!), 'a new boot id');
    this.#boots.push(again.bootId!);
    const isReady = async (): Promise<boolean> => {
      const boots = (await this.machine.console('one')).split('tiny: ready');
      return boots.length > number && boots.at(-1)!.includes('# ');
    };
    await until('the guest', isReady, bootLimitMs);
    const lines = await this.lines();
    assert.ok(lines.length >= acknowledged, `${acknowledged} were acknowledged, ${lines.length} are there`);
    assert.deepEqual(
      lines,
      Array.from({ length: lines.length }, (_, index) => index + 1),
    );
    assert.equal((await this.machine.type('one', 'cat /run/metadata/guest/log | wc -l')).trim(), String(lines.length));
    assert.doesNotMatch(await this.machine.console('one'), /FAILED/);
    return again;
  }
}

/** It may have ended by itself meanwhile. */
const kill = (pid: number): void => {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'ESRCH');
  }
};

const kills = Number(process.env['PORTHOLE_KILLS'] ?? 1);

test('a VM whose QEMU is killed, and one whose machine restarts, starts again and has what was acknowledged', async (t) => {
  const machine = new UpMachine(t);
  await machine.spawn();
  await machine.tinyImage();
  const body = { name: 'one', type: 'nano' as const, image: { name: 'tiny' }, spec };
  await machine.done(await machine.client.call('createVm', { body }));
  await machine.untilReady('one');
  const loaded = new Loaded(machine);
  let boots = 1;

  for (let killed = 0; killed < kills; killed++) {
    const device = machine.devicePid('one');
    await loaded.busy(20);
    process.kill(machine.qemuPid('one')!, 'SIGKILL');
    await loaded.cameBack(++boots);
    assert.equal(machine.devicePid('one'), device, 'the same process serves the new boot');
  }

  // Nothing of what ran outlives a restart of the machine, nor does the run directory.
  await loaded.busy(20);
  await machine.kill('SIGKILL');
  await until('nothing to run', () => {
    const pids = machine.pidsWith('');
    for (const pid of pids) kill(pid);
    return pids.length === 0;
  });
  const run = path.join(machine.directory, 'run');
  for (const name of readdirSync(run)) rmSync(path.join(run, name), { recursive: true });
  const state = path.join(machine.directory, 'state');
  const stores = await openStores({ directory: path.join(state, 'store'), keyFile: path.join(state, 'key') });
  // A status that lasts for a second may not be seen; what is kept of the boot after it is.
  for (const { number, reason } of await new Boots(stores.region, 'one', 0).all())
    assert.match(reason, number === 1 ? /^started$/ : /^QEMU was killed by SIGKILL .*; it starts again in \d+ s$/);
  const kept = JSON.parse(new TextDecoder().decode((await stores.region.get('machine/one'))!.value));
  assert.equal(kept.runtime.qemu.machineBootId, readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim());
  kept.runtime.qemu.machineBootId = '00000000-0000-4000-8000-000000000000';
  const value = new TextEncoder().encode(JSON.stringify(kept));
  await stores.region.commit({ operations: [{ type: 'put', key: 'machine/one', value }] });
  await stores.close();
  await machine.spawn();
  await loaded.cameBack(++boots);
});
