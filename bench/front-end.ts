/** Group a: requests through a virtqueue from our own front end, against Debian's C virtiofsd. No guest, no kernel between. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { bindSelf, callerCpu, serverCpu } from './cpus.ts';
import { compare, type Group, type GroupOptions, percentile, type Row, type Sample, type Unit } from './measure.ts';
import { fileNames, startOurs, startVirtiofsd } from './ours.ts';
import { VirtiofsClient } from './virtiofs-client.ts';

/** Short turns, many of them: whether a CPU halts between two requests changes with what else runs, within a second. */
const TURNS_PER_ROUND = 5;
const OPERATIONS_PER_TURN = 400;
const FLOOD_PER_TURN = 100_000;
const IN_FLIGHT = 32;

function each(n: number, operation: () => void): Sample {
  const took = new Float64Array(n);
  for (let i = 0; i < n / 10; i++) operation();
  for (let i = 0; i < n; i++) {
    const start = performance.now();
    operation();
    took[i] = (performance.now() - start) * 1000;
  }
  took.sort();
  return { n, p50: percentile(took, 0.5), p99: percentile(took, 0.99) };
}

interface Case {
  readonly name: string;
  readonly unit: Unit;
  readonly target: { readonly atMost: number } | { readonly atLeast: number };
  readonly measure: (client: VirtiofsClient) => Sample;
}

const encode = (name: string): Uint8Array => new TextEncoder().encode(name);
const names = { static: encode(fileNames.static), direct: encode(fileNames.direct) };
const atMost = { atMost: 1.1 } as const;

const cases: readonly Case[] = [
  {
    name: 'GETATTR',
    unit: 'us',
    target: atMost,
    measure(client) {
      const nodeid = client.lookup(names.static);
      return each(OPERATIONS_PER_TURN, () => client.getattr(nodeid));
    },
  },
  {
    name: 'LOOKUP',
    unit: 'us',
    target: atMost,
    measure: (client) => each(OPERATIONS_PER_TURN, () => client.lookup(names.static)),
  },
  {
    name: 'OPEN+READ+RELEASE, world-readable',
    unit: 'us',
    target: atMost,
    measure(client) {
      const nodeid = client.lookup(names.static);
      return each(OPERATIONS_PER_TURN, () => client.openReadRelease(nodeid));
    },
  },
  {
    name: 'OPEN+READ+RELEASE, secret',
    unit: 'us',
    target: atMost,
    measure(client) {
      const nodeid = client.lookup(names.direct);
      return each(OPERATIONS_PER_TURN, () => client.openReadRelease(nodeid));
    },
  },
  {
    name: `GETATTR, ${IN_FLIGHT} in flight`,
    unit: 'op/s',
    target: { atLeast: 2.5 },
    measure(client) {
      const nodeid = client.lookup(names.static);
      client.flood(nodeid, FLOOD_PER_TURN / 10, IN_FLIGHT);
      return { n: FLOOD_PER_TURN, p50: client.flood(nodeid, FLOOD_PER_TURN, IN_FLIGHT) };
    },
  },
];

async function run({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const [here, there] = [path.join(scratch, 'ours.sock'), path.join(scratch, 'peer.sock')];
  const rows: Row[] = [];
  const clients: VirtiofsClient[] = [];
  try {
    await using peerServer = await startVirtiofsd(path.join(scratch, 'peer'), there, 'auto');
    await using ourServer = await (selfTest
      ? startVirtiofsd(path.join(scratch, 'second'), here, 'auto')
      : startOurs(scratch, { socket: here }));
    const peer = new VirtiofsClient(there);
    clients.push(peer);
    const ours = new VirtiofsClient(here);
    clients.push(ours);
    for (const server of [peerServer, ourServer]) server.pin(serverCpu);
    // The driver polls on one CPU, the back end has the other: nothing else is between them.
    using _ = bindSelf(callerCpu);
    for (const { name, unit, target, measure } of cases) {
      const row = await compare(
        { name, unit, target, ours: async () => measure(ours), peer: async () => measure(peer) },
        { group: 'a', peerName: 'virtiofsd, C', rounds: rounds * TURNS_PER_ROUND },
      );
      print(`${row.name}: ${row.ratio.toFixed(2)}`);
      rows.push(row);
    }
    for (const client of clients.splice(0)) client.close();
  } finally {
    for (const client of clients) client.close();
    rmSync(scratch, { recursive: true, force: true });
  }
  return rows;
}

export const frontEnd: Group = { letter: 'a', title: 'requests through a virtqueue, against virtiofsd in C', run };
