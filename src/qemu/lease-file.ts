/**
 * What a host's lease says to the processes that guard its VMs: a file of one line, `ID DEADLINE`, the deadline in milliseconds of
 * the boot clock, which goes on while the machine is suspended. Whatever else the file is, there is no lease.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';

/** How a guard ends that has ended its QEMU, and its last line. */
export const leaseEnded = { status: 75, words: "this host's lease has run out" } as const;

/** CLOCK_BOOTTIME, to 10 ms: what /proc/uptime shows. */
export const bootClockMs = (): number =>
  Math.round(Number(readFileSync('/proc/uptime', 'latin1').split(' ')[0]) * 1000);

/** Replaces the file at once. */
export const writeLease = (file: string, id: string, deadlineMs: number): void => {
  writeFileSync(`${file}.new`, `${id} ${Math.floor(deadlineMs)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
};

/** How long the lease of that id still holds; 0 where it does not. Never throws. */
export const leaseLeftMs = (file: string, id: string): number => {
  try {
    const [, found, deadline] = /^(\S+) (\d+)\n$/.exec(readFileSync(file, 'latin1')) ?? [];
    const leftMs = found === id ? Number(deadline) - bootClockMs() : 0;
    return leftMs > 0 ? leftMs : 0;
  } catch {
    return 0;
  }
};
