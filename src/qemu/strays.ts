/** Processes that nobody has a record of, because their daemon was killed between starting them and writing it down. */
import { readdirSync, readFileSync } from 'node:fs';
import * as sys from '../sys/index.ts';

const SIGKILL = 9;

/** Kills every process that has exactly this word among its arguments; returns how many there were. */
export function killStrays(argument: string): number {
  const wanted = `\0${argument}\0`;
  let count = 0;
  for (const name of readdirSync('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid || !hasArgument(pid, wanted)) continue;
    const pidfd = sys.pidfdOpen(pid);
    if (pidfd < 0) continue;
    // Looked at again: the pidfd holds the process that has the argument now.
    if (hasArgument(pid, wanted) && sys.pidfdSendSignal(pidfd, SIGKILL) === 0) {
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
