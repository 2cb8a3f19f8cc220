/** mount(2) and umount2(2), and what a process says of itself. */
import * as libc from './libc.ts';

const { result } = libc;

export const MS_RDONLY = 1;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;
export const MS_NOEXEC = 8;
/** Linux 5.10. */
export const MS_NOSYMFOLLOW = 256;
export const MNT_DETACH = 2;

export const mount = (source: string, target: string, type: string, flags: number, data: string | null): number =>
  result(libc.mount(source, target, type, flags, data));

export const unmount = (target: string, flags = 0): number => result(libc.umount2(target, flags));

const PR_SET_PDEATHSIG = 1;
const PR_SET_DUMPABLE = 4;

/** Has the kernel send `signal` to this process when the thread that started it ends. */
export const setParentDeathSignal = (signal: number): number => result(libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0));

/** Whether this process may be dumped and traced by its own uid. */
export const setDumpable = (dumpable: boolean): number =>
  result(libc.prctl(PR_SET_DUMPABLE, dumpable ? 1 : 0, 0, 0, 0));
