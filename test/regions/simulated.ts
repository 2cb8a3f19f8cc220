/** Hosts without machines behind them, which connect to the managers of an installation over its network. */
import { join } from 'node:path';
import { enrol } from '../../src/uplink/index.ts';
import { Machine, SimulatedHost } from '../fleet/simulated-host.ts';
import { type Installation, managersOf, type Region } from './installation.ts';

const capacity = { vcpus: 1_000, memoryMiB: 1_000_000, diskBytes: 2 ** 50 };
const withinMs = 120_000;

/** A host that is enrolled, and starts as often as it is asked to. */
export const enrolSimulatedHost = async (
  installation: Installation,
  region: Region,
  name: string,
): Promise<() => Promise<SimulatedHost>> => {
  const { text: joinKey } = await installation.root(`${region}-1`).call('createJoinKey', { body: { host: name } });
  const managers = managersOf(region).map((address) => ({ host: address, port: 4665 }));
  const directory = join(installation.directory, name);
  const facts = { version: 'simulated', capacity };
  const identity = await enrol({ managers, region, host: name, joinKey, facts, directory });
  const options = { machine: new Machine(), managers, identity, capacity, directory, onTrouble: () => {} };
  return () => SimulatedHost.start(options, AbortSignal.timeout(withinMs));
};
