/**
 * What runs on this machine for VMs, and the store knows nothing of, as after a restore of a backup that is older: nobody
 * would ever speak of it again.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { isDown, type VmRuntime, type VmState } from '../qemu/index.ts';
import type { Store } from '../store/index.ts';

export interface LeftOver {
  readonly vm: string;
  readonly pids: readonly number[];
  /** In words, with what to do. */
  readonly what: string;
}

/** To be asked before VMs are taken up. StoreError. */
export const leftOvers = async (region: Store, runDirectory: string): Promise<LeftOver[]> => {
  const found: LeftOver[] = [];
  for (const [vm, processes] of runningFor(resolve(runDirectory))) {
    const pids = processes.map(({ pid }) => pid);
    if ((await region.get(`vm/${vm}`)) === undefined) {
      const what = `it runs here, and the store has no such VM: it was made after the backup that was restored, or the run directory is another state's. To end it: kill ${pids.join(' ')}`;
      found.push({ vm, pids, what });
      continue;
    }
    const machine = await region.get(`machine/${vm}`);
    const { runtime, state } =
      machine === undefined
        ? {}
        : (JSON.parse(new TextDecoder().decode(machine.value)) as { runtime?: VmRuntime; state?: VmState });
    // One that the store takes for running is looked for, and ended when it is another boot's.
    const qemus = processes.filter(({ isQemu }) => isQemu).map(({ pid }) => pid);
    if (runtime === undefined && state !== undefined && isDown(state) && qemus.length > 0)
      found.push({
        vm,
        pids: qemus,
        what: `the store says that it is ${state.status}, but its QEMU runs: it was started after the backup that was restored. A start ends that one and boots anew; to end it alone: kill ${qemus.join(' ')}`,
      });
  }
  return found;
};

interface Running {
  readonly pid: number;
  readonly isQemu: boolean;
}

/** Paths that only processes of ours are told of; a front end knows that of its socket. */
const ours = /^([a-z0-9-]+)\/(qemu\/|device\/link\.sock|watcher\.json)/;

/** By VM, of those processes that were told of a path in its part of the run directory. */
const runningFor = (runDirectory: string): Map<string, Running[]> => {
  const found = new Map<string, Running[]>();
  const below = `${join(runDirectory, 'vms')}/`;
  for (const name of readdirSync('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const words = commandLineOf(pid);
    const at = words.indexOf(below);
    if (at < 0) continue;
    const [, vm, part] = ours.exec(words.slice(at + below.length)) ?? [];
    if (vm === undefined) continue;
    const isQemu = part === 'qemu/';
    found.set(vm, [...(found.get(vm) ?? []), { pid, isQemu }]);
  }
  return found;
};

/** '' of one that has ended. */
const commandLineOf = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
};
