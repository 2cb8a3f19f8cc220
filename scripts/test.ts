/** `npm test`: all tiers, or `npm test -- TIER... [--filter TEXT]`. */
import { parseArgs } from 'node:util';
import { runTiers, type Tier, unclaimed } from './test-runner.ts';

/**
 * What there is to run, in order, and how many tests of each tier must have run: raise the number with the tests. The limits are
 * for tests that hang: several times what a tier takes, so that a machine that is busy with other things does not meet them.
 */
const tiers: readonly Tier[] = [
  {
    name: 'unit',
    title: 'rooms, scripts and the bench, in process',
    files: ['src/**/*.test.ts', 'scripts/**/*.test.ts', 'bench/**/*.test.ts', 'test/conformance/**/*.test.ts'],
    minimumTests: 1_142,
    limitSeconds: 480,
    concurrency: 2,
  },
  {
    name: 'api',
    title: 'the API over real stores and trees, hostile clients among them',
    files: ['test/cluster/**/*.test.ts', 'test/uplink/**/*.test.ts'],
    minimumTests: 111,
    limitSeconds: 600,
    concurrency: 2,
  },
  {
    name: 'fuzz',
    title: 'malformed input kept from earlier finds, replayed',
    files: ['test/fuzz/**/*.test.ts'],
    minimumTests: 59,
    limitSeconds: 360,
    concurrency: 2,
  },
  {
    name: 'virtqueue',
    title: 'back ends through our vhost-user front end',
    files: ['test/front-end/**/*.test.ts', 'test/virtqueue/**/*.test.ts'],
    minimumTests: 3,
    limitSeconds: 360,
    concurrency: 1,
  },
  {
    name: 'store',
    title: 'stores, and trees in them, that are killed, full and busy',
    files: ['test/store/**/*.test.ts'],
    minimumTests: 9,
    limitSeconds: 600,
    concurrency: 1,
  },
  {
    name: 'etcd',
    title: 'stores in an etcd whose members die, are cut off and are replaced, and managers and hosts on one',
    files: ['test/etcd/**/*.test.ts', 'test/fleet/**/*.test.ts'],
    minimumTests: 38,
    limitSeconds: 600,
    concurrency: 2,
    withPrevious: true,
  },
  {
    name: 'regions',
    title: 'three regions as the documentation installs them, each machine in a network of its own',
    files: ['test/regions/**/*.test.ts'],
    minimumTests: 6,
    limitSeconds: 600,
    concurrency: 1,
    withPrevious: true,
  },
  {
    name: 'cli',
    title: 'the porthole command before the API, on pipes, terminals and in shells',
    files: ['test/cli/**/*.test.ts'],
    minimumTests: 28,
    limitSeconds: 840,
    concurrency: 2,
    withPrevious: true,
  },
  {
    name: 'mount',
    title: 'the kernel of this machine, through /dev/fuse',
    files: ['test/mount/**/*.test.ts'],
    minimumTests: 332,
    limitSeconds: 480,
    concurrency: 1,
  },
  {
    name: 'tools',
    title: 'tools that nobody here wrote',
    files: ['test/tools/**/*.test.ts'],
    minimumTests: 76,
    limitSeconds: 600,
    concurrency: 1,
    withPrevious: true,
  },
  {
    name: 'console',
    title: 'the web console in Chromium, before a real daemon',
    files: ['test/console/**/*.test.ts'],
    minimumTests: 10,
    limitSeconds: 600,
    concurrency: 1,
  },
  {
    name: 'guest',
    title: 'guests in QEMU, over virtiofs',
    files: ['test/guest/**/*.test.ts', 'images/**/*.test.ts'],
    minimumTests: 408,
    limitSeconds: 1200,
    concurrency: 2,
  },
  {
    name: 'hostile',
    title: 'malformed frames, rings, messages and memory that changes',
    files: ['test/hostile/**/*.test.ts'],
    minimumTests: 2_227,
    limitSeconds: 600,
    concurrency: 1,
  },
  {
    name: 'recovery',
    title: 'device processes and keepers that die and are replaced under running guests',
    files: ['test/recovery/**/*.test.ts'],
    minimumTests: 16,
    limitSeconds: 1200,
    concurrency: 1,
    withPrevious: true,
  },
  {
    name: 'consistency',
    title: 'readers that overlap a writer outside',
    files: ['test/consistency/**/*.test.ts'],
    minimumTests: 8,
    limitSeconds: 840,
    concurrency: 1,
  },
  {
    name: 'lives',
    title: 'stop, reset, rebind and remount with mutations in flight',
    files: ['test/lives/**/*.test.ts'],
    minimumTests: 10,
    limitSeconds: 600,
    concurrency: 1,
    withPrevious: true,
  },
  {
    name: 'ships',
    title: 'the one-file executable, and the disk for operators',
    files: ['test/ships/**/*.test.ts'],
    minimumTests: 21,
    limitSeconds: 1200,
    concurrency: 2,
  },
  {
    name: 'systemd',
    title: 'the executable and its units in a Debian guest with systemd',
    files: ['test/systemd/**/*.test.ts'],
    minimumTests: 6,
    limitSeconds: 1800,
    concurrency: 1,
  },
  {
    name: 'up',
    title: 'the host daemon with real guests, through its API',
    files: ['test/up/**/*.test.ts'],
    minimumTests: 47,
    limitSeconds: 1800,
    concurrency: 1,
    withPrevious: true,
  },
];

const usage = `usage: npm test -- [TIER...] [--filter TEXT]\ntiers: ${tiers.map((tier) => tier.name).join(', ')}`;

async function main(): Promise<number> {
  let selected: readonly string[];
  let filter: string | undefined;
  try {
    const { positionals, values } = parseArgs({ allowPositionals: true, options: { filter: { type: 'string' } } });
    selected = positionals;
    filter = values.filter;
  } catch (error) {
    console.error(`${(error as Error).message}\n${usage}`);
    return 2;
  }
  const unknown = selected.filter((name) => !tiers.some((tier) => tier.name === name));
  if (unknown.length > 0) {
    console.error(`no tier is named "${unknown.join('", "')}"\n${usage}`);
    return 2;
  }
  const interruption = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => interruption.abort(`the run was ended by ${signal}`));
  const { failed } = await runTiers(
    tiers.filter((tier) => selected.length === 0 || selected.includes(tier.name)),
    {
      root: process.cwd(),
      filter,
      unclaimed: selected.length === 0 ? unclaimed(tiers, process.cwd()) : [],
      print: (line) => console.log(line),
      signal: interruption.signal,
    },
  );
  return failed > 0 ? 1 : 0;
}

process.exitCode = await main();
