/**
 * A cluster of three regions, made and mended as docs/operations.md says, under whatever befalls one. `PORTHOLE_REGIONS_ROUNDS`
 * does all of it so often, with more VMs.
 */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync } from 'node:fs';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { tinyImage } from '../../images/tiny/image.ts';
import { Client, ClientError } from '../../src/cluster/index.ts';
import type { SimulatedHost } from '../fleet/simulated-host.ts';
import { until } from '../until.ts';
import { bootLimitMs, done, typeTo, untilReady } from '../up/guests.ts';
import { DiskStamps, Lives, qemuIn } from '../up/one-life.ts';
import {
  type HostName,
  hostNames,
  Installation,
  type ManagerName,
  managerNames,
  prefixOf,
  type Region,
  regionOf,
  regions,
} from './installation.ts';
import { inOwnNetwork } from './network.ts';
import { startSimulatedHost } from './simulated.ts';

const rounds = Number(process.env['PORTHOLE_REGIONS_ROUNDS'] ?? 1);
const isWhole = rounds > 1;
const simulatedHosts = isWhole ? 8 : 2;
const many = 50;

// Made where there is a network to make it of.
const { kernel, initramfs } = await tinyImage();
const skip = inOwnNetwork();

const refused = async (asked: Promise<unknown>, code: string, words: RegExp): Promise<void> =>
  assert.rejects(asked, (error) => {
    assert(error instanceof ClientError, String(error));
    assert.deepEqual([error.code, words.test(error.message)], [code, true], error.message);
    return true;
  });

/** Names and statuses of the VMs that a client sees in its region. */
const listed = async (client: Client): Promise<string[]> =>
  (await client.call('listVms', { query: { limit: 500 } })).vms.map(({ name, status }) => `${name} ${status}`);

const sorted = (counts: Readonly<Record<string, number>>): Readonly<Record<string, number>> =>
  Object.fromEntries(Object.entries(counts).toSorted());

const counted = async (client: Client): Promise<Readonly<Record<string, number>>> => {
  const { counts } = await client.call('countVms');
  return sorted(Object.fromEntries(counts.map(({ region, status, count }) => [`${region} ${status}`, count])));
};

const numbered = (name: string, count: number, status: string): string[] =>
  Array.from({ length: count }, (_, i) => `${name}-${i + 1} ${status}`).toSorted();

test('three regions', { skip }, async (t) => {
  await using installation = new Installation();
  const simulated = new Map<Region, SimulatedHost[]>();
  const troubles: string[] = [];
  const beganAtMs = performance.now();
  await installation.start();
  await Promise.all(
    regions.map(async (region) => {
      const hosts: SimulatedHost[] = [];
      simulated.set(region, hosts);
      for (let i = 0; i < simulatedHosts; i++)
        hosts.push(await startSimulatedHost(installation, region, `${region}-s${i}`, (what) => troubles.push(what)));
    }),
  );
  t.diagnostic(`installed in ${Math.round(performance.now() - beganAtMs)} ms`);
  const root = { eu: installation.root('eu-1'), us: installation.root('us-1'), ap: installation.root('ap-1') };
  /** Real hosts have VMs only while a test wants it. */
  const cordon = (host: HostName, cordoned: boolean) =>
    root[regionOf(host)].call('changeHost', { params: { host }, body: { cordoned } });
  await Promise.all(hostNames.map((host) => cordon(host, true)));
  const team = (await installation.sh('office', 'cat team.key')).trim();

  await t.test('VMs of an image are made in all of them by one command', async () => {
    copyFileSync(kernel, installation.at('office', 'etc/vmlinuz'));
    copyFileSync(initramfs, installation.at('office', 'etc/initrd.img'));
    await installation.run('Images and VMs', 'office', /image/);
    console.error(await installation.run('Images and VMs', 'office', /VMs/));
  });

  // --- what is there before anything befalls it ---

  const users = {
    eu: installation.as(team, 'eu-1'),
    us: installation.as(team, 'us-1'),
    ap: installation.as(team, 'ap-1'),
  };
  /** What every manager says of every region is what that region's own says, and the counts are those of the lists. */
  const agreed = async (): Promise<void> => {
    const own = await Promise.all(regions.map((region) => listed(users[region])));
    const counts: Record<string, number> = {};
    for (const [i, lines] of own.entries())
      for (const line of lines) {
        const of = `${regions[i]} ${line.split(' ')[1]}`;
        counts[of] = (counts[of] ?? 0) + 1;
      }
    for (const manager of managerNames)
      await until(`${manager} to agree`, async () => {
        const seen = regions.map((region) => listed(installation.as(team, manager, region)));
        assert.deepEqual(await Promise.all(seen), own, manager);
        return isDeepStrictEqual(await counted(installation.as(team, manager)), sorted(counts));
      });
  };
  const keyFor = async (name: string): Promise<{ readonly id: string; readonly text: string }> => {
    const { key, text } = await root.eu.call('createKey', { body: { name, role: 'viewer', account: 'team' } });
    return { id: key.id, text };
  };
  /** Whether a manager takes it. */
  const isValid = (key: string, manager: ManagerName): Promise<boolean> =>
    installation
      .as(key, manager)
      .call('whoAmI')
      .then(
        () => true,
        (error: unknown) => {
          assert(error instanceof ClientError && error.status === 401, String(error));
          return false;
        },
      );
  const make = async (region: Region, name: string, count: number) =>
    users[region].call('createVm', {
      body: { name, count, type: 'nano', image: { name: 'appliance' }, diskBytes: 2 ** 20 },
    });
  const guest = async (region: Region, name: string, line: string): Promise<string> =>
    (await typeTo(users[region], name, line)).trim();

  await t.test('a VM in each of two regions runs, and shows its metadata', async () => {
    for (const host of hostNames) await cordon(host, false);
    const real = { type: 'nano', image: { name: 'appliance' }, network: { mode: 'none' } } as const;
    const labels = { body: { labels: { kind: 'real' } } };
    for (const host of hostNames) await root[regionOf(host)].call('changeHost', { params: { host }, ...labels });
    const placement = { hostLabels: ['kind=real'] };
    const moving = { restartWhere: 'elsewhere', disk: 'network', diskBytes: 4 * 1024 * 1024 } as const;
    const [pet, fixed] = await Promise.all([
      users.eu.call('createVm', { body: { name: 'pet', ...real, ...moving, placement } }),
      users.us.call('createVm', { body: { name: 'fixed', ...real, placement } }),
    ]);
    await Promise.all([done(users.eu, pet), done(users.us, fixed)]);
    await Promise.all([untilReady(users.eu, 'pet'), untilReady(users.us, 'fixed')]);
    await cordon('us-h1', true);
    await guest('eu', 'pet', 'echo kept > /run/metadata/guest/note');
    await agreed();
  });

  for (let round = 1; round <= rounds; round++) {
    await t.test('a region is cut off: each half goes on, and all agree when it has healed', async () => {
      const [here, there] = await Promise.all([keyFor('revoked here'), keyFor('revoked there')]);
      await until('the keys in the other region', async () => {
        const valid = await Promise.all([here, there].map(({ text }) => isValid(text, 'us-1')));
        return valid.every(Boolean);
      });
      installation.network.cut(prefixOf('us'));

      // The others.
      await done(users.eu, await make('eu', `during-${round}`, 2));
      await done(installation.as(team, 'eu-2', 'ap'), await users.ap.call('stopVm', { params: { name: 'web-1' } }));
      await keyFor(`made meanwhile ${round}`);
      await counted(users.ap);
      await refused(
        listed(installation.as(team, 'eu-1', 'us')),
        'UNAVAILABLE',
        /no manager of the region "us" answers/,
      );

      // It by itself.
      await users.us.call('writeMetadata', { params: { name: 'fixed', path: 'a' }, body: Buffer.from(`cut-${round}`) });
      assert.equal(await guest('us', 'fixed', 'cat /run/metadata/a'), `cut-${round}`);
      await guest('us', 'fixed', `echo inside-${round} > /run/metadata/guest/note`);
      await done(users.us, await make('us', `during-${round}`, 2));
      await done(users.us, await users.us.call('stopVm', { params: { name: `during-${round}-1` } }));
      await users.us.call('revokeKey', { params: { id: there.id } });
      assert.deepEqual([await isValid(there.text, 'us-1'), await isValid(there.text, 'eu-1')], [false, true]);
      await users.eu.call('revokeKey', { params: { id: here.id } });
      assert.deepEqual([await isValid(here.text, 'us-1'), await isValid(here.text, 'eu-2')], [true, false]);

      // What is of all regions waits.
      const once = new Client({ socketPath: installation.at('us-1', 'run/api.sock') }, { patienceMs: 0 });
      await Promise.all(
        [
          once.call('createKey', { body: { name: 'none', role: 'viewer' } }),
          once.call('createAccount', { body: { name: 'none' } }),
          once.call('countVms'),
        ].map((asked) => refused(asked, 'UNAVAILABLE', /^the global store, .* gives no answer/)),
      );

      installation.network.heal(prefixOf('us'));
      for (const { text } of [here, there])
        for (const manager of managerNames)
          await until(`the end of the key at ${manager}`, async () => !(await isValid(text, manager)));
      await agreed();
      const note = await users.us.raw('readMetadata', { params: { name: 'fixed', path: 'guest/note' } });
      assert.equal(note.bytes.toString(), `inside-${round}\n`);
      assert.deepEqual(
        (await listed(users.us)).filter((line) => line.startsWith(`during-${round}-`)),
        [`during-${round}-1 stopped`, `during-${round}-2 running`],
      );
    });

    await t.test(`a manager is killed while ${many} VMs are made`, async () => {
      const name = `crowd-${round}`;
      const boots = () => simulated.get('eu')!.reduce((sum, { machine }) => sum + machine.boots, 0);
      const before = boots();
      const maker = installation.as(team, 'eu-2');
      const { operation } = await maker.call('createVm', {
        body: { name, count: many, type: 'nano', image: { name: 'appliance' }, diskBytes: 2 ** 20 },
      });
      const states: string[] = [];
      const watcher = installation.as(team, 'us-1', 'eu');
      const watched = watcher.finished(operation.id, {
        told: ({ state, step }) => void states.push(`${state} ${step}`),
      });
      await until('it to be at it', () => boots() > before);
      await installation.managers.get('eu-2')!.kill('SIGKILL');
      const last = await watched;
      assert.equal(last.state, 'succeeded', JSON.stringify(last));
      assert.equal(states.filter((state) => state.startsWith('succeeded')).length, 1);
      const made = (await listed(users.eu)).filter((line) => line.startsWith(`${name}-`));
      assert.deepEqual(made, numbered(name, many, 'running'));
      assert.equal(boots() - before, many);
      await installation.startManager('eu-2');
      await agreed();
      const action = { action: 'delete', selector: { prefix: `${name}-` } } as const;
      await done(watcher, await watcher.call('actOnVms', { body: action }));
    });

    await t.test(
      'a host is cut off, and another loses its power: its VM goes on elsewhere, and never runs twice',
      async () => {
        const stamps = new DiskStamps(users.eu, 'pet', installation.at('eu', 'srv/disks'));
        const show = () => users.eu.call('getVm', { params: { name: 'pet' } });
        const epoch = async (): Promise<number> => (await show()).epoch;
        await stamps.begin(await epoch());
        using lives = new Lives(() => hostNames.map((host) => qemuIn(installation.at(host, 'run'), 'pet')));
        const moved = async (from: string): Promise<void> => {
          const { epoch } = await until(
            `it to run elsewhere than on ${from}`,
            async () => {
              const now = await show();
              return now.host !== from && now.status === 'running' && now;
            },
            bootLimitMs,
          );
          await untilReady(users.eu, 'pet');
          assert.equal(await guest('eu', 'pet', 'cat /run/metadata/guest/note'), 'kept');
          await stamps.begin(epoch);
        };
        const first = (await show()).host as HostName;
        installation.network.cut(installation.machine(first).address);
        await moved(first);
        installation.network.heal(installation.machine(first).address);
        await until(
          'the host that is back to delete what it had',
          () => !existsSync(installation.at(first, 'state/vms/pet')),
        );
        let moves = 1;
        if (isWhole) {
          const second = (await show()).host as HostName;
          await installation.machine(second).fail();
          await moved(second);
          await installation.startHost(second);
          moves++;
        }
        const gaps = lives.check(moves);
        t.diagnostic(
          `${stamps.check()} stamps; from the last sight of a QEMU to the start of the next: ${gaps.join(', ')} ms`,
        );
      },
    );

    await t.test('a member of the global etcd is lost and replaced, as the documentation says', async () => {
      await installation.loseGlobalMember('us-1');
      await keyFor(`without a member ${round}`);
      await installation.replaceGlobalMember('us-1');
      await installation.etcdAnswers();
      await keyFor(`with another ${round}`);
      await agreed();
    });
  }
  for (const hosts of simulated.values()) for (const host of hosts) await host.kill();
});
