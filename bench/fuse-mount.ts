/** Group c: our mount on this machine against the least that libfuse can do, through the same kernel. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { compile } from '../test/compile.ts';
import { callerCpu, serverCpu } from './cpus.ts';
import { DRIVER, driverSample } from './driver.ts';
import { compare, type Group, type GroupOptions, type Row, type Sample } from './measure.ts';
import { fileNames, isMounted, startOurs, unmount, VALUE_BYTES } from './ours.ts';
import { output, Server } from './server.ts';

const OPERATIONS_PER_ROUND = 2_000;
const TARGET = { atMost: 1.3 } as const;

/**
 * Where the caller and the server run. On one CPU the price is the work of both; on two it is mostly the wake-up of a
 * halted CPU, which a server that waits a little before it sleeps can avoid.
 */
const placements = [
  { name: 'one CPU', caller: serverCpu },
  { name: 'two CPUs', caller: callerCpu },
] as const;

const operations = [
  { name: 'stat', operation: 'stat' },
  { name: 'open+read+close', operation: 'open' },
  { name: 'pread', operation: 'pread' },
] as const;
const files = [
  { name: fileNames.direct, note: 'never cached' },
  { name: fileNames.static, note: 'cached by the kernel' },
] as const;

function startPeer(name: string, directory: string): Promise<Server> {
  const program = compile('bench/peers/libfuse-ll.c', ['-I/usr/include/fuse3', '-lfuse3']);
  mkdirSync(directory);
  return Server.start(
    name,
    [program, directory, String(VALUE_BYTES)],
    () => isMounted(directory),
    () => unmount(directory),
  );
}

async function time(driver: string, operation: string, file: string, cpu: number): Promise<Sample> {
  return driverSample(
    await output('taskset', ['-c', String(cpu), driver, operation, String(OPERATIONS_PER_ROUND), file]),
  );
}

async function run({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const driver = compile(DRIVER);
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const here = path.join(scratch, 'ours');
  const there = path.join(scratch, 'peer');
  const rows: Row[] = [];
  try {
    await using peer = await startPeer('libfuse-ll', there);
    await using ours = await (selfTest ? startPeer('libfuse-ll (second)', here) : startOurs(scratch, { mount: here }));
    for (const server of [peer, ours]) server.pin(serverCpu);
    for (const placement of placements)
      for (const file of files)
        for (const { name, operation } of operations) {
          const row = await compare(
            {
              name: `${name}, ${file.name} file (${file.note}), ${placement.name}`,
              unit: 'us',
              target: TARGET,
              ours: () => time(driver, operation, path.join(here, file.name), placement.caller),
              peer: () => time(driver, operation, path.join(there, file.name), placement.caller),
            },
            { group: 'c', peerName: 'libfuse low-level, C', rounds },
          );
          print(`${row.name}: ${row.ratio.toFixed(2)}`);
          rows.push(row);
        }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return rows;
}

export const fuseMount: Group = { letter: 'c', title: 'a mount on this machine, against libfuse in C', run };
