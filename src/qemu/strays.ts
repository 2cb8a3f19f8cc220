/** Processes that nobody has a record of, because their daemon was killed between starting them and writing it down. */
import { readdirSync, readFileSync } from 'node:fs';
import * as sys from '../sys/index.ts';

const SIGKILL = 9;
const mostRounds = 16;

/** Kills every process that has exactly this word among its arguments; returns how many there were. */
export function killStrays(argument: string): number {
  const wanted = `\0${argument}\0`;
  return killThose((pid) => hasArgument(pid, wanted));
}

/** Kills every process of a user that is one VM's alone; returns how many there were. Never our own user, nor root. */
export function killAllOf(uid: number): number {
  if (uid === 0 || uid === process.getuid?.()) return 0;
  let count = 0;
  // One that forks while it is looked for is found in the next round.
  for (let round = 0; round < mostRounds; round++) {
    const found = killThose((pid) => isOf(pid, uid));
    if (found === 0) break;
    count += found;
  }
  return count;
}

/** Whether a process runs as one of `count` users from `first` on. */
export const runsAsOneOf = ({ first, count }: { readonly first: number; readonly count: number }): boolean =>
  readdirSync('/proc').some(
    (name) => /^\d+$/.test(name) && uidsOf(Number(name)).some((uid) => uid >= first && uid < first + count),
  );

function killThose(is: (pid: number) => boolean): number {
  let count = 0;
  for (const name of readdirSync('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid || !is(pid)) continue;
    const pidfd = sys.pidfdOpen(pid);
    if (pidfd < 0) continue;
    // Looked at again: the pidfd holds the process that has this number now.
    if (is(pid) && sys.pidfdSendSignal(pidfd, SIGKILL) === 0) {
      count++;
      sys.pollOne(pidfd, sys.POLLIN, 5_000);
    }
    sys.close(pidfd);
  }
  return count;
}

function hasArgument(pid: number, wanted: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(wanted);
  } catch {
    return false;
  }
}

const isOf = (pid: number, uid: number): boolean => uidsOf(pid).includes(uid);

/** All its user ids: real, effective, saved, file system. None of one that has ended. */
function uidsOf(pid: number): number[] {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    if (/^State:\s+Z/m.test(status)) return [];
    return (/^Uid:(.*)$/m.exec(status)?.[1] ?? '').trim().split(/\s+/).map(Number);
  } catch {
    return [];
  }
}
