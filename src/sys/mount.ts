/** mount(2) and umount2(2). */
import * as libc from './libc.ts';

const { result } = libc;

export const MS_NOSUID = 2;
export const MS_NODEV = 4;
/** Linux 5.10. */
export const MS_NOSYMFOLLOW = 256;
export const MNT_DETACH = 2;

/** mount(2): `flags` are MS_* bits, `data` the file system's options. */
export const mount = (source: string, target: string, type: string, flags: number, data: string | null): number =>
  result(libc.mount(source, target, type, flags, data));

/** umount2(2). */
export const unmount = (target: string, flags = 0): number => result(libc.umount2(target, flags));
