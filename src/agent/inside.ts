/**
 * The guest's inside, from `/proc`: load, memory, disks, and what its processes take. What would wait for the memory of a process
 * (`cmdline`) is not read: it may be waiting for this very one.
 */
import { readdirSync, readFileSync, statfsSync } from 'node:fs';
import { setImmediate as turnOfNode } from 'node:timers/promises';
import type { GuestProcess, GuestStatus } from '../records/index.ts';
import { diskPoints, mounts } from './mounts.ts';

/** `/guest/.agent/status.json`. */
export interface InsideStatus extends GuestStatus {
  readonly version: 1;
}

/** `/guest/.agent/processes.json`: those that take most first. CPU is since the last time; since its start at first. */
export interface InsideProcesses {
  readonly version: 1;
  readonly at: string;
  readonly processes: readonly GuestProcess[];
}

const MOST_PROCESSES = 1_000;
const MOST_DISKS = 64;
/** Processes that are looked at before somebody else has a turn. */
const PER_TURN = 32;
const PAGE_BYTES = 4096;
/** USER_HZ, which is the same on all machines that Linux runs on today. */
const TICKS_PER_SECOND = 100;

const textOf = (path: string): string => readFileSync(path, 'utf8');
const uptimeSeconds = (): number => Number(textOf('/proc/uptime').split(' ')[0]);
const nowText = (): string => new Date().toISOString();

export const statusOf = (agent: InsideStatus['agent']): InsideStatus => {
  const meminfo = textOf('/proc/meminfo');
  const kibibytes = (name: string): number =>
    Number(new RegExp(`^${name}: +(\\d+) kB$`, 'm').exec(meminfo)?.[1] ?? 0) * 1024;
  const [one = 0, five = 0, fifteen = 0] = textOf('/proc/loadavg').split(' ').map(Number);
  return {
    version: 1,
    at: nowText(),
    uptimeSeconds: uptimeSeconds(),
    load: [one, five, fifteen],
    memory: { totalBytes: kibibytes('MemTotal'), availableBytes: kibibytes('MemAvailable') },
    swap: { totalBytes: kibibytes('SwapTotal'), freeBytes: kibibytes('SwapFree') },
    disks: disks(),
    agent,
  };
};

const disks = (): InsideStatus['disks'] =>
  diskPoints(mounts())
    .slice(0, MOST_DISKS)
    .flatMap((mount) => {
      try {
        const { bsize, blocks, bavail } = statfsSync(mount);
        return [{ mount, totalBytes: bsize * blocks, freeBytes: bsize * bavail }];
      } catch {
        // Unmounted since.
        return [];
      }
    });

/** What a process had used when it was looked at last, and when that was since the boot. */
interface Seen {
  readonly startTicks: number;
  readonly usedTicks: number;
  readonly atSeconds: number;
}

/** Remembers how much CPU each process had used. */
export class ProcessList {
  readonly #onBusy: () => void;
  #seen = new Map<number, Seen>();

  /** `onBusy`: Node has to have a turn, and nothing wakes it for that. */
  constructor(onBusy: () => void = () => {}) {
    this.#onBusy = onBusy;
  }

  async list(): Promise<InsideProcesses> {
    let uptime = uptimeSeconds();
    const users = userNames();
    const seen = new Map<number, Seen>();
    const processes: GuestProcess[] = [];
    for (const [index, name] of readdirSync('/proc').entries()) {
      if (!/^\d+$/.test(name)) continue;
      if (index % PER_TURN === 0) {
        this.#onBusy();
        await turnOfNode();
        uptime = uptimeSeconds();
      }
      const found = this.#look(Number(name), uptime, users, seen);
      if (found !== undefined) processes.push(found);
    }
    this.#seen = seen;
    processes.sort((a, b) => b.cpuPercent - a.cpuPercent || b.memoryBytes - a.memoryBytes || a.pid - b.pid);
    return { version: 1, at: nowText(), processes: processes.slice(0, MOST_PROCESSES) };
  }

  #look(
    pid: number,
    atSeconds: number,
    users: ReadonlyMap<number, string>,
    seen: Map<number, Seen>,
  ): GuestProcess | undefined {
    let stat: string;
    let status: string;
    try {
      stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      status = readFileSync(`/proc/${pid}/status`, 'utf8');
    } catch {
      return undefined;
    }
    const close = stat.lastIndexOf(')');
    // Field 3 is the first of these (proc_pid_stat(5)).
    const fields = stat.slice(close + 2).split(' ');
    const startTicks = Number(fields[19]);
    const usedTicks = Number(fields[11]) + Number(fields[12]);
    const before = this.#seen.get(pid);
    const isSame = before?.startTicks === startTicks;
    const sinceSeconds = isSame ? before.atSeconds : startTicks / TICKS_PER_SECOND;
    const seconds = Math.max(atSeconds - sinceSeconds, 1 / TICKS_PER_SECOND);
    const ticks = Math.max(0, usedTicks - (isSame ? before.usedTicks : 0));
    seen.set(pid, { startTicks, usedTicks, atSeconds });
    const uid = Number(/^Uid:\t(\d+)/m.exec(status)?.[1]);
    return {
      pid,
      user: users.get(uid) ?? String(uid),
      uid,
      command: stat.slice(stat.indexOf('(') + 1, close),
      cpuPercent: Math.round((ticks / TICKS_PER_SECOND / seconds) * 1_000) / 10,
      memoryBytes: Number(fields[21]) * PAGE_BYTES,
      state: fields[0] ?? '',
    };
  }
}

const userNames = (): ReadonlyMap<number, string> => {
  try {
    const rows = textOf('/etc/passwd')
      .split('\n')
      .map((line) => line.split(':'));
    return new Map(rows.filter(({ length }) => length > 2).map(([name, , uid]) => [Number(uid), name!]));
  } catch {
    return new Map();
  }
};
