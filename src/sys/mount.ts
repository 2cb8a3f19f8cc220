/** mount(2) and umount2(2). */
import * as libc from './libc.ts';

const { result } = libc;

export const MS_NOSUID = 2;
export const MS_NODEV = 4;
/** Linux 5.10. */
export const MS_NOSYMFOLLOW = 256;
export const MNT_FORCE = 1;
export const MNT_DETACH = 2;

/** mount(2): `flags` are MS_* bits, `data` the file system's options. */
export const mount = (source: string, target: string, type: string, flags: number, data: string | null): number =>
  result(libc.mount(source, target, type, flags, data));

/** umount2(2). */
export const unmount = (target: string, flags = 0): number => result(libc.umount2(target, flags));

/**
 * Unmounts whoever uses it. FUSE requests that nobody answers fail at once: else they would wait for the last descriptor of
 * the connection to be closed, which a process may have that waits for one of them itself.
 */
export const tearDown = (target: string): number => unmount(target, MNT_FORCE | MNT_DETACH);
