/** What this machine can see of a QEMU without asking its guest. */
import { readdirSync, readFileSync } from 'node:fs';
import type { Json, JsonObject, Qmp } from './qmp.ts';

/** Counters rise from QEMU's start on. */
export interface VmStatistics {
  readonly cpu: {
    /** Time on the CPU of all threads, user and system. */
    readonly seconds: number;
    /** Of the threads that are vCPUs. */
    readonly guestSeconds: number;
  };
  readonly memory: {
    /** Resident, the guest's touched memory included. */
    readonly residentBytes: number;
    /** The most that was ever resident. */
    readonly peakBytes: number;
    /** Of the control group where QEMU has one of its own: what its limit is compared with. */
    readonly groupBytes?: number;
  };
  /** By QEMU's name of the disk: `disk0` … */
  readonly disks: Readonly<Record<string, DiskStatistics>>;
  /** Absent without a network device of its own, and for a user-mode network, which nothing counts. */
  readonly network?: NetworkStatistics;
  /** Files and sockets that QEMU has open. */
  readonly openFiles: number;
}

export interface DiskStatistics {
  readonly readBytes: number;
  readonly writtenBytes: number;
  readonly readOperations: number;
  readonly writeOperations: number;
  readonly flushes: number;
  readonly failures: number;
}

/** As the guest sees it: received is what was sent to the tap. */
export interface NetworkStatistics {
  readonly receivedBytes: number;
  readonly sentBytes: number;
  readonly receivedPackets: number;
  readonly sentPackets: number;
}

/** USER_HZ, in which the kernel tells times to programs: 100 on every architecture that Node runs on. */
const ticksPerSecond = 100;

const read = (file: string): string | undefined => {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
};

/** User and system time of a task, from its stat file; 0 when it is gone. */
function cpuSeconds(statFile: string): number {
  const stat = read(statFile);
  if (stat === undefined) return 0;
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const number = (value: Json | undefined): number => (typeof value === 'number' && value >= 0 ? value : 0);

/** Undefined when the process has ended. Without a monitor there are no disks in it. */
export async function vmStatistics(
  pid: number,
  options: { readonly qmp?: Qmp | undefined; readonly tap?: string | undefined } = {},
): Promise<VmStatistics | undefined> {
  const status = read(`/proc/${pid}/status`);
  if (status === undefined) return undefined;
  const kibibytes = (field: string): number =>
    Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1] ?? 0);
  const groupBytes = groupMemory(pid);
  const network = options.tap === undefined ? undefined : networkStatistics(options.tap);
  return {
    cpu: { seconds: cpuSeconds(`/proc/${pid}/stat`), guestSeconds: guestSeconds(pid) },
    memory: {
      residentBytes: kibibytes('VmRSS') * 1024,
      peakBytes: kibibytes('VmHWM') * 1024,
      ...(groupBytes !== undefined && { groupBytes }),
    },
    disks: options.qmp ? await diskStatistics(options.qmp) : {},
    ...(network && { network }),
    openFiles: countOf(`/proc/${pid}/fd`),
  };
}

const list = (directory: string): string[] => {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
};

const countOf = (directory: string): number => list(directory).length;

/** QEMU names its vCPU threads `CPU 0/KVM`, `CPU 1/TCG` … (`-name …,debug-threads=on`). */
const guestSeconds = (pid: number): number =>
  list(`/proc/${pid}/task`)
    .filter((task) => /^(CPU \d+|ALL CPUs)\//.test(read(`/proc/${pid}/task/${task}/comm`) ?? ''))
    .reduce((sum, task) => sum + cpuSeconds(`/proc/${pid}/task/${task}/stat`), 0);

/** Only a unit of ours is a control group for QEMU alone. */
function groupMemory(pid: number): number | undefined {
  const [, path] = /^0::(\/.*\/porthole-[^/]+\.service)$/m.exec(read(`/proc/${pid}/cgroup`) ?? '') ?? [];
  const bytes = path === undefined ? undefined : read(`/sys/fs/cgroup${path}/memory.current`);
  return bytes === undefined ? undefined : Number(bytes);
}

async function diskStatistics(qmp: Qmp): Promise<Record<string, DiskStatistics>> {
  const answer = await qmp.execute('query-blockstats').catch(() => []);
  const disks: Record<string, DiskStatistics> = {};
  for (const entry of Array.isArray(answer) ? (answer as readonly Json[]) : []) {
    if (!isObject(entry)) continue;
    const { 'node-name': name, stats } = entry;
    if (typeof name !== 'string' || !/^disk\d+$/.test(name) || !isObject(stats)) continue;
    const of = (key: string): number => number(stats[key]);
    disks[name] = {
      readBytes: of('rd_bytes'),
      writtenBytes: of('wr_bytes'),
      readOperations: of('rd_operations'),
      writeOperations: of('wr_operations'),
      flushes: of('flush_operations'),
      failures: of('failed_rd_operations') + of('failed_wr_operations') + of('failed_flush_operations'),
    };
  }
  return disks;
}

function networkStatistics(tap: string): NetworkStatistics | undefined {
  if (!/^[A-Za-z0-9_.-]{1,15}$/.test(tap) || tap.startsWith('.')) return undefined;
  const of = (name: string): number => Number(read(`/sys/class/net/${tap}/statistics/${name}`) ?? Number.NaN);
  const found = {
    receivedBytes: of('tx_bytes'),
    sentBytes: of('rx_bytes'),
    receivedPackets: of('tx_packets'),
    sentPackets: of('rx_packets'),
  };
  return Number.isNaN(found.sentBytes) ? undefined : found;
}
