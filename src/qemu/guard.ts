/** Has a QEMU run under a guard, for as long as its host's lease holds: `guard-main.ts`. */
import { readFileSync } from 'node:fs';
import { commandOf, partEnvironment } from '../parts/index.ts';
import { type LaunchSpec, sessionCommand } from './units.ts';

export interface GuardingLease {
  /** See `lease-file.ts`. */
  readonly file: string;
  /** The lease by which it is started: by no other does it go on. */
  readonly id: string;
}

/** What the guard itself takes. */
const guardBytes = 128 * 1024 * 1024;
const guardThreads = 16;

/** Limits of address space and of the user are QEMU's own, and set behind the guard. */
export const guarded = (spec: LaunchSpec, { file, id }: GuardingLease): LaunchSpec => {
  const { uid: _uid, gid: _gid, groups: _groups, limits = {}, ...rest } = spec;
  const { memoryBytes, processes, openFiles } = limits;
  return {
    ...rest,
    command: [...commandOf('guard'), file, id, ...sessionCommand(spec, ['--pdeathsig=KILL'])],
    environment: partEnvironment(),
    limits: {
      ...(memoryBytes !== undefined && { memoryBytes: memoryBytes + guardBytes }),
      ...(processes !== undefined && { processes: processes + guardThreads }),
      ...(openFiles !== undefined && { openFiles }),
    },
  };
};

/** The QEMU of a guard; the guard itself where it has none. */
export const guardedPid = (guard: number): number => {
  try {
    return Number(readFileSync(`/proc/${guard}/task/${guard}/children`, 'latin1').split(' ')[0]) || guard;
  } catch {
    return guard;
  }
};
