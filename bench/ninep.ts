/** Group i: 9P over a unix socket against diod, on the same files and with the same client. */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Guest } from '../images/tiny/guest.ts';
import { bindSelf, callerCpu, serverCpu } from './cpus.ts';
import { driverSample } from './driver.ts';
import { compare, type Group, type GroupOptions, type Row, type Sample, type Target, type Unit } from './measure.ts';
import { BenchClient } from './ninep-client.ts';
import { fileNames, startOurs, VALUE_BYTES } from './ours.ts';
import { Server } from './server.ts';

const OPERATIONS_PER_ROUND = 3_000;
const REQUESTS_PER_ROUND = 30_000;
const IN_FLIGHT = 32;

interface OfGroup {
  readonly name: string;
  readonly unit: Unit;
  readonly target?: Target;
  readonly run: (client: BenchClient) => Sample;
}

const cases: readonly OfGroup[] = [
  ...[fileNames.static, fileNames.direct].flatMap((file): OfGroup[] => [
    {
      name: `walk+getattr+clunk, ${file} file`,
      unit: 'us',
      target: { atMost: 1 },
      run: (client) => client.walkGetattr(file, OPERATIONS_PER_ROUND),
    },
    {
      name: `walk+open+read+clunk, ${file} file`,
      unit: 'us',
      target: { atMost: 1 },
      run: (client) => client.walkOpenReadClunk(file, OPERATIONS_PER_ROUND),
    },
  ]),
  ...(['getattr', 'read'] as const).map(
    (what): OfGroup => ({
      name: `${what}, ${IN_FLIGHT} in flight`,
      unit: 'op/s',
      target: { atLeast: 1.5 },
      run: (client) => client.inFlight(what, IN_FLIGHT, REQUESTS_PER_ROUND),
    }),
  ),
];

/** Debian's diod over a directory with the same content, which it makes. */
async function startDiod(name: string, directory: string, socket: string): Promise<Server> {
  mkdirSync(directory);
  for (const [file, mode] of [
    [fileNames.static, 0o444],
    [fileNames.direct, 0o400],
  ] as const) {
    writeFileSync(path.join(directory, file), 'x'.repeat(VALUE_BYTES));
    chmodSync(path.join(directory, file), mode);
  }
  const command = ['diod', '-f', '-n', '-c', '/dev/null', '-l', socket, '-e', directory, '-L', 'stderr'] as const;
  return await Server.start(name, [...command], () => existsSync(socket));
}

const KERNEL_OPERATIONS_PER_ROUND = 300;
/** Of each side before the first round: a server that runs for long is not measured while it is being compiled. */
const KERNEL_OPERATIONS_BEFORE = 1_500;

/** Through Linux's own client in a guest, over a console each: hvc1 is ours, hvc2 the peer's. */
const kernelCases = [
  { name: 'stat, by the kernel of a guest', operation: 'stat', file: fileNames.static },
  { name: 'open+read+close, by the kernel of a guest', operation: 'open', file: fileNames.static },
  { name: 'open+read+close of a secret, by the kernel of a guest', operation: 'open', file: fileNames.direct },
] as const;

const console = (nr: number, chardev: string): string[] => [
  '-chardev',
  `${chardev},id=line${nr}`,
  '-device',
  `virtconsole,bus=lines.0,nr=${nr},chardev=line${nr}`,
];

async function inGuest(
  { rounds, print }: GroupOptions,
  sockets: readonly string[],
  anames: readonly string[],
): Promise<Row[]> {
  const lines = sockets.flatMap((socket, i) => console(i + 1, `socket,path=${socket}`));
  const qemuArgs = ['-device', 'virtio-serial-pci,id=lines', ...console(0, 'null'), ...lines];
  await using guest = await Guest.start({ qemuArgs });
  for (const [i, aname] of anames.entries())
    await guest.sh(`mkdir /mnt/${i} && /sbin/mount.porthole hvc${i + 1} /mnt/${i} -o aname=${aname}`);
  const rows: Row[] = [];
  for (const { name, operation, file } of kernelCases) {
    const run = (which: number, count: number): Promise<string> =>
      guest.sh(`bench-fs ${operation} ${count} /mnt/${which}/${file}`);
    const time = async (which: number): Promise<Sample> => driverSample(await run(which, KERNEL_OPERATIONS_PER_ROUND));
    for (const which of anames.keys()) await run(which, KERNEL_OPERATIONS_BEFORE);
    const row = await compare(
      { name, unit: 'us', target: { atMost: 1 }, ours: () => time(0), peer: () => time(1) },
      { group: 'i', peerName: 'diod', rounds },
    );
    print(`${row.name}: ${row.ratio.toFixed(2)}`);
    rows.push(row);
  }
  return rows;
}

async function run(options: GroupOptions): Promise<Row[]> {
  const { rounds, selfTest, print } = options;
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  // A kernel attaches to the peer as nobody first.
  chmodSync(scratch, 0o755);
  const files = path.join(scratch, 'files');
  const [here, there] = [path.join(scratch, 'ours.sock'), path.join(scratch, 'diod.sock')];
  const rows: Row[] = [];
  try {
    await using peer = await startDiod('diod', files, there);
    const second = path.join(scratch, 'second');
    await using ours = await (selfTest
      ? startDiod('diod (second)', second, here)
      : startOurs(scratch, { ninep: here }));
    rows.push(...(await inGuest(options, [here, there], [selfTest ? second : '/', files])));
    for (const server of [peer, ours]) server.pin(serverCpu);
    using _ = bindSelf(callerCpu);
    using toUs = new BenchClient(here, selfTest ? second : '/', fileNames.static);
    using toPeer = new BenchClient(there, files, fileNames.static);
    for (const { name, unit, target, run: once } of cases) {
      const row = await compare(
        {
          name,
          unit,
          ...(target && { target }),
          ours: () => Promise.resolve(once(toUs)),
          peer: () => Promise.resolve(once(toPeer)),
        },
        { group: 'i', peerName: 'diod', rounds },
      );
      print(`${row.name}: ${row.ratio.toFixed(2)}`);
      rows.push(row);
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return rows;
}

export const overNinep: Group = { letter: 'i', title: '9P over a unix socket, against diod', run };
