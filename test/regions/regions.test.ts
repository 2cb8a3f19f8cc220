/**
 * A cluster of three regions, made and mended as docs/operations.md says, under whatever befalls one. `PORTHOLE_REGIONS_ROUNDS`
 * does all of it so often, with real hosts and guests, and with every command of that chapter.
 */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync } from 'node:fs';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { tinyImage } from '../../images/tiny/image.ts';
import { Client, ClientError, type Input } from '../../src/cluster/index.ts';
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
  withEtcd,
} from './installation.ts';
import { inOwnNetwork } from './network.ts';
import { enrolSimulatedHost } from './simulated.ts';

const rounds = Number(process.env['PORTHOLE_REGIONS_ROUNDS'] ?? 1);
const isWhole = process.env['PORTHOLE_REGIONS_ROUNDS'] !== undefined;
const simulatedHosts = isWhole ? 6 : 1;
const realHosts = isWhole ? hostNames : [];
const many = 50;

// Made where there is a network to make it of.
const { kernel, initramfs } = await tinyImage();
const skip = inOwnNetwork();

type Wish = Partial<Exclude<NonNullable<Input<'createVm'>['body']>, string | Uint8Array>>;

const spec = 'porthole: 1\nmetadata: { instance: { place: "{{region}}" } }\n';
/** On hosts without machines. */
const small = {
  type: 'nano',
  image: { name: 'appliance' },
  diskBytes: 2 ** 20,
  placement: { hostLabels: ['kind=simulated'] },
} satisfies Wish;

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

const withPrefix = async (client: Client, prefix: string): Promise<string[]> =>
  (await listed(client)).filter((line) => line.startsWith(prefix));

const counted = async (client: Client): Promise<Readonly<Record<string, number>>> => {
  const { counts } = await client.call('countVms');
  return sorted(Object.fromEntries(counts.map(({ region, status, count }) => [`${region} ${status}`, count])));
};

const numbered = (name: string, count: number, status: string): string[] =>
  Array.from({ length: count }, (_, i) => `${name}-${i + 1} ${status}`).toSorted();

test('three regions', { skip }, async (t) => {
  await using installation = new Installation();
  const simulated = new Map<Region, SimulatedHost[]>();
  const starters = new Map<Region, (() => Promise<SimulatedHost>)[]>();
  const startSimulated = async (region: Region): Promise<void> => {
    simulated.set(region, await Promise.all(starters.get(region)!.map((start) => start())));
  };
  const endSimulated = async (region: Region): Promise<void> => {
    for (const host of simulated.get(region) ?? []) await host.kill();
    simulated.delete(region);
  };
  const beganAtMs = performance.now();
  await installation.start(realHosts);
  await Promise.all(
    regions.map(async (region) => {
      const names = Array.from({ length: simulatedHosts }, (_, i) => `${region}-s${i}`);
      starters.set(region, await Promise.all(names.map((name) => enrolSimulatedHost(installation, region, name))));
      await startSimulated(region);
    }),
  );
  t.diagnostic(`installed in ${Math.round(performance.now() - beganAtMs)} ms`);
  const root = { eu: installation.root('eu-1'), us: installation.root('us-1'), ap: installation.root('ap-1') };
  const setHost = (name: string, body: { readonly cordoned?: boolean; readonly labels?: Record<string, string> }) =>
    root[regionOf(name)].call('changeHost', { params: { host: name }, body });
  for (const { name } of [...simulated.values()].flat()) await setHost(name, { labels: { kind: 'simulated' } });
  for (const name of realHosts) await setHost(name, { labels: { kind: 'real' }, cordoned: true });
  const team = (await installation.sh('office', 'cat team.key')).trim();

  // --- what is there before anything befalls it ---

  const users = {
    eu: installation.as(team, 'eu-1'),
    us: installation.as(team, 'us-1'),
    ap: installation.as(team, 'ap-1'),
  };
  /** What every manager says of every region is what that region's own says, and the counts are those of the lists. */
  const agreed = async (among: readonly Region[] = regions): Promise<void> => {
    for (const manager of managerNames.filter((name) => among.includes(regionOf(name))))
      await until(`${manager} to agree`, async () => {
        const own = await Promise.all(among.map((region) => listed(users[region])));
        const counts: Record<string, number> = {};
        for (const [i, lines] of own.entries())
          for (const line of lines) {
            const of = `${among[i]} ${line.split(' ')[1]}`;
            counts[of] = (counts[of] ?? 0) + 1;
          }
        const seen = await Promise.all(among.map((region) => listed(installation.as(team, manager, region))));
        return isDeepStrictEqual([seen, await counted(installation.as(team, manager))], [own, sorted(counts)]);
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
    users[region].call('createVm', { body: { ...small, name, count } });
  const guest = async (region: Region, name: string, line: string): Promise<string> =>
    (await typeTo(users[region], name, line)).trim();

  await t.test('VMs of an image are made in all of them', async () => {
    copyFileSync(kernel, installation.at('office', 'etc/vmlinuz'));
    copyFileSync(initramfs, installation.at('office', 'etc/initrd.img'));
    await installation.run('Images and VMs', 'office', /image/);
    if (isWhole) await installation.run('Images and VMs', 'office', /VMs/);
    else
      await Promise.all(
        regions.map(async (region) => {
          const client = installation.as(team, 'ap-1', region);
          await done(client, await client.call('createVm', { body: { ...small, name: 'web', count: 4, spec } }));
        }),
      );
    const place = { params: { name: 'web-3', path: 'instance/place' } };
    for (const region of regions)
      assert.equal((await users[region].raw('readMetadata', place)).bytes.toString(), region);
    await agreed();
  });

  await t.test('a VM in each of two regions runs', async () => {
    const fixed = { name: 'fixed', spec: spec.replace('{{region}}', 'us') };
    if (!isWhole) return done(users.us, await users.us.call('createVm', { body: { ...small, ...fixed } }));
    for (const name of realHosts) await setHost(name, { cordoned: false });
    const real = {
      type: 'nano',
      image: { name: 'appliance' },
      network: { mode: 'none' },
      placement: { hostLabels: ['kind=real'] },
    } satisfies Wish;
    const moving = { restartWhere: 'elsewhere', disk: 'network', diskBytes: 4 * 1024 * 1024 } as const;
    const made = await Promise.all([
      users.eu.call('createVm', { body: { name: 'pet', ...real, ...moving } }),
      users.us.call('createVm', { body: { ...fixed, ...real } }),
    ]);
    await Promise.all([done(users.eu, made[0]), done(users.us, made[1])]);
    await Promise.all([untilReady(users.eu, 'pet'), untilReady(users.us, 'fixed')]);
    assert.equal(await guest('us', 'fixed', 'cat /run/metadata/instance/place'), 'us');
    return void (await guest('eu', 'pet', 'echo kept > /run/metadata/guest/note'));
  });

  for (let round = 1; round <= rounds; round++) {
    await t.test('a region is cut off: each half goes on, and all agree when it has healed', async () => {
      const [here, there] = await Promise.all([keyFor('revoked here'), keyFor('revoked there')]);
      await until('the keys in the other region', async () => {
        const valid = await Promise.all([here, there].map(({ text }) => isValid(text, 'us-1')));
        return valid.every(Boolean);
      });
      const impatient = {
        eu: new Client({ socketPath: installation.at('eu-1', 'run/api.sock') }, { patienceMs: 0, region: 'us' }),
        us: new Client({ socketPath: installation.at('us-1', 'run/api.sock') }, { patienceMs: 0 }),
      };
      installation.network.cut(prefixOf('us'));

      const others = async (): Promise<void> => {
        await done(users.eu, await make('eu', `during-${round}`, 2));
        await done(installation.as(team, 'eu-2', 'ap'), await users.ap.call('stopVm', { params: { name: 'web-1' } }));
        await keyFor(`made meanwhile ${round}`);
        await counted(users.ap);
        await refused(listed(impatient.eu), 'UNAVAILABLE', /no manager of the region "us" answers/);
      };
      const itself = async (): Promise<void> => {
        await users.us.call('writeMetadata', {
          params: { name: 'fixed', path: 'a' },
          body: Buffer.from(`cut-${round}`),
        });
        if (isWhole) {
          assert.equal(await guest('us', 'fixed', 'cat /run/metadata/a'), `cut-${round}`);
          await guest('us', 'fixed', `echo inside-${round} > /run/metadata/guest/note`);
        }
        await done(users.us, await make('us', `during-${round}`, 2));
        await done(users.us, await users.us.call('stopVm', { params: { name: `during-${round}-1` } }));
      };
      const waits = async (): Promise<void> => {
        await Promise.all(
          [
            impatient.us.call('createKey', { body: { name: 'none', role: 'viewer' } }),
            impatient.us.call('createAccount', { body: { name: 'none' } }),
            impatient.us.call('countVms'),
          ].map((asked) => refused(asked, 'UNAVAILABLE', /^the global store, .* gives no answer/)),
        );
      };
      await Promise.all([others(), itself(), waits()]);
      await users.us.call('revokeKey', { params: { id: there.id } });
      assert.deepEqual([await isValid(there.text, 'us-1'), await isValid(there.text, 'eu-1')], [false, true]);
      await users.eu.call('revokeKey', { params: { id: here.id } });
      assert.deepEqual([await isValid(here.text, 'us-1'), await isValid(here.text, 'eu-2')], [true, false]);

      installation.network.heal(prefixOf('us'));
      for (const { text } of [here, there])
        for (const manager of managerNames)
          await until(`the end of the key at ${manager}`, async () => !(await isValid(text, manager)));
      await agreed();
      const read = async (path: string): Promise<string> =>
        (await users.us.raw('readMetadata', { params: { name: 'fixed', path } })).bytes.toString();
      assert.equal(await read('a'), `cut-${round}`);
      if (isWhole) assert.equal(await read('guest/note'), `inside-${round}\n`);
      assert.deepEqual(await withPrefix(users.us, `during-${round}-`), [
        `during-${round}-1 stopped`,
        `during-${round}-2 running`,
      ]);
    });

    await t.test(`a manager is killed while ${many} VMs are made`, async () => {
      const name = `crowd-${round}`;
      const boots = () => simulated.get('eu')!.reduce((sum, { machine }) => sum + machine.boots, 0);
      const before = boots();
      const [other, killed] = [installation.managers.get('eu-1')!, installation.managers.get('eu-2')!];
      // So that it is not the other that sees to it.
      other.child.kill('SIGSTOP');
      const maker = installation.as(team, 'eu-2');
      const { operation } = await maker.call('createVm', { body: { ...small, name, count: many } });
      const states: string[] = [];
      const watcher = installation.as(team, 'us-1', 'eu');
      const watched = watcher.finished(operation.id, {
        told: ({ state, done: made }) => void states.push(`${state} ${made}`),
      });
      await until('it to be at it', () =>
        maker.call('getVm', { params: { name: `${name}-1` } }).then(
          () => true,
          () => false,
        ),
      );
      await killed.kill('SIGKILL');
      other.child.kill('SIGCONT');
      const begun = (await withPrefix(users.eu, `${name}-`)).length;
      const last = await watched;
      assert.equal(last.state, 'succeeded', JSON.stringify(last));
      assert.equal(states.filter((state) => state.startsWith('succeeded')).length, 1);
      t.diagnostic(`killed when ${begun} of ${many} were made; the watcher was told ${states.length} times`);
      assert.deepEqual(await withPrefix(users.eu, `${name}-`), numbered(name, many, 'running'));
      assert.equal(boots() - before, many);
      await installation.startManager('eu-2');
      await agreed();
      const action = { action: 'delete', selector: { prefix: `${name}-` } } as const;
      await done(watcher, await watcher.call('actOnVms', { body: action }));
    });

    // test/up/fencing.test.ts does it always.
    if (isWhole)
      await t.test('hosts are cut off and lose power: their VM goes on elsewhere, and never runs twice', async () => {
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
        const second = (await show()).host as HostName;
        await installation.machine(second).fail();
        await moved(second);
        await installation.startHost(second);
        const gaps = lives.check(2);
        t.diagnostic(
          `${stamps.check()} stamps; from the last sight of a QEMU to the start of the next: ${gaps.join(', ')} ms`,
        );
      });

    await t.test('a member of the global etcd is lost and replaced, as the documentation says', async () => {
      await installation.loseGlobalMember('us-1');
      await keyFor(`without a member ${round}`);
      await installation.replaceGlobalMember('us-1');
      await installation.etcdAnswers();
      await keyFor(`with another ${round}`);
      await agreed();
    });
  }
  if (isWhole) {
    const title = 'Backup and restore of each store';
    await t.test('the store of a region is restored, as the documentation says', async () => {
      await installation.run(title, 'ap-1', /^the region's store/);
      await installation.run(title, 'eu-1', /^the region's store/);
      await installation.run(title, 'eu-1', /^the global store/);
      await done(users.ap, await make('ap', 'after', 30));
      await done(users.eu, await make('eu', 'after', 30));
      await agreed();
      await endSimulated('ap');
      await installation.managers.get('ap-1')!.kill('SIGTERM');
      await installation.endService('region etcd of ap-1');
      await installation.run(title, 'ap-1', /^its managers/);
      installation.startEtcd('ap-1', 'region');
      await installation.etcdAnswers();
      await until('what the snapshot has of hosts to end', () =>
        installation.run(title, 'ap-1', /^once/).then(
          () => true,
          (error: Error) => {
            assert.match(error.message, /is connected to it/);
            return false;
          },
        ),
      );
      await installation.startManager('ap-1');
      await startSimulated('ap');
      await agreed();
      assert.deepEqual(await withPrefix(users.ap, 'after-'), []);
    });

    await t.test('the global store is restored, as the documentation says', async () => {
      for (const name of managerNames) await installation.managers.get(name)!.kill('SIGTERM');
      for (const name of withEtcd) {
        await installation.endService(`global etcd of ${name}`);
        if (name !== 'eu-1')
          copyFileSync(installation.at('eu-1', 'etcd/global.db'), installation.at(name, 'etcd/global.db'));
        await installation.run(title, name, /^a member/);
        installation.startEtcd(name, 'global');
      }
      await installation.etcdAnswers();
      await installation.run(title, 'eu-1', /^once/);
      for (const name of managerNames) await installation.startManager(name);
      await agreed();
      assert.deepEqual(await withPrefix(users.eu, 'after-'), numbered('after', 30, 'running'));
    });

    await t.test('a region is removed, and another is lost for ever', async () => {
      await installation.run('Loss of a host', 'us-1');
      await installation.run('Removing a region', 'office');
      await endSimulated('ap');
      await installation.managers.get('ap-1')!.kill('SIGTERM');
      await installation.run('Removing a region', 'eu-1');
      await endSimulated('us');
      for (const name of ['us-h1', 'us-1']) await installation.machine(name).fail();
      await installation.run('Loss of a region', 'eu-1');
      await agreed(['eu']);
      const { regions: left } = await root.eu.call('listRegions');
      assert.deepEqual(
        left.map(({ name }) => name),
        ['eu'],
      );
    });
  }
  for (const region of regions) await endSimulated(region);
});
