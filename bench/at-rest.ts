/** Group d: what a back end with 1,000 known nodes costs while nobody asks anything, against Debian's C virtiofsd. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { compare, type Group, type GroupOptions, type Row, type Sample } from './measure.ts';
import { startOurs, startVirtiofsd } from './ours.ts';
import { cpuMs, privateKiB } from './process-costs.ts';
import { family, type Server } from './server.ts';
import { VirtiofsClient } from './virtiofs-client.ts';

const NODES = 1_000;
const REST_SECONDS = 10;
const encoder = new TextEncoder();

/** The process of a server that serves the rings: the one that has the guest's memory mapped. */
function backEnd(server: Server): number {
  const pid = family(server.pid).find((member) =>
    readFileSync(`/proc/${member}/maps`, 'utf8').includes('/memfd:guest'),
  );
  if (pid === undefined) throw new Error('no process of the server has mapped the memory of the guest');
  return pid;
}

const sizeOf = (pid: number): Sample => ({ n: 1, p50: privateKiB(pid) });

async function restMs(pid: number): Promise<Sample> {
  const before = cpuMs(pid);
  await delay(REST_SECONDS * 1000);
  return { n: 1, p50: cpuMs(pid) - before };
}

/** Makes the back end know every node, as a guest does that has listed them. */
function visit(client: VirtiofsClient): void {
  const directory = client.lookup(encoder.encode('many'));
  for (let i = 0; i < NODES; i++) client.getattr(client.lookup(encoder.encode(`f${i}`), directory));
}

async function run({ selfTest, print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const [here, there] = [path.join(scratch, 'ours.sock'), path.join(scratch, 'peer.sock')];
  const rows: Row[] = [];
  const clients: VirtiofsClient[] = [];
  try {
    await using peerServer = await startVirtiofsd(path.join(scratch, 'peer'), there, 'auto', NODES);
    await using ourServer = await (selfTest
      ? startVirtiofsd(path.join(scratch, 'second'), here, 'auto', NODES)
      : startOurs(scratch, { socket: here }, NODES));
    for (const socket of [there, here]) clients.push(new VirtiofsClient(socket));
    for (const client of clients) visit(client);
    const [peer, ours] = [backEnd(peerServer), backEnd(ourServer)];
    for (const comparison of [
      { name: `CPU over ${REST_SECONDS} s`, unit: 'ms CPU', ours: () => restMs(ours), peer: () => restMs(peer) },
      { name: 'private memory', unit: 'KiB', ours: async () => sizeOf(ours), peer: async () => sizeOf(peer) },
    ] as const) {
      const row = await compare(comparison, { group: 'd', peerName: 'virtiofsd, C', rounds: 1 });
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

export const atRest: Group = { letter: 'd', title: `a back end at rest with ${NODES} nodes`, run };
