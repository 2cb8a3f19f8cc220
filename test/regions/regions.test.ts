/**
 * A cluster of three regions, made and mended as docs/operations.md says, under whatever befalls one. `PORTHOLE_REGIONS_ROUNDS`
 * does all of it so often, with more VMs.
 */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync } from 'node:fs';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { tinyImage } from '../../images/tiny/image.ts';
import { type Client, ClientError } from '../../src/cluster/index.ts';
import type { SimulatedHost } from '../fleet/simulated-host.ts';
import { until } from '../until.ts';
import { bootLimitMs, done, typeTo, untilReady } from '../up/guests.ts';
import { DiskStamps, Lives, qemuIn } from '../up/one-life.ts';
import { type HostName, hostNames, Installation, prefixOf, type Region, regionOf, regions } from './installation.ts';
import { inOwnNetwork } from './network.ts';
import { startSimulatedHost } from './simulated.ts';

const rounds = Number(process.env['PORTHOLE_REGIONS_ROUNDS'] ?? 1);
const simulatedHosts = rounds > 1 ? 8 : 2;
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

const counted = async (client: Client): Promise<Readonly<Record<string, number>>> => {
  const { counts } = await client.call('countVms');
  return Object.fromEntries(counts.map(({ region, status, count }) => [`${region} ${status}`, count]).toSorted());
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
  for (const hosts of simulated.values()) for (const host of hosts) await host.kill();
});
