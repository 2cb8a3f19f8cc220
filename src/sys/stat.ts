/** statx(2) without asking whoever serves the file system: what Node's own stat always does. */
import * as libc from './libc.ts';

const { result } = libc;

const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;
const AT_STATX_DONT_SYNC = 0x4000;
/** STATX_TYPE | STATX_MODE | STATX_UID | STATX_INO. */
const WANTED = 0x1 | 0x2 | 0x8 | 0x100;
/** `struct statx` (linux/stat.h). */
const STATX_BYTES = 256;

export interface FileStat {
  /** `major:minor`. */
  readonly device: string;
  readonly ino: bigint;
  readonly uid: number;
  /** Type and permission bits. */
  readonly mode: number;
}

/** As the kernel has it cached, where others serve it; or the negative errno. Walking the path may ask them still. */
export function statCached(path: string, followsLink: boolean): FileStat | number {
  const view = new DataView(new ArrayBuffer(STATX_BYTES));
  const flags = AT_STATX_DONT_SYNC | (followsLink ? 0 : AT_SYMLINK_NOFOLLOW);
  const error = result(libc.statx(AT_FDCWD, path, flags, WANTED, view));
  if (error < 0) return error;
  return {
    device: `${view.getUint32(136, true)}:${view.getUint32(140, true)}`,
    ino: view.getBigUint64(32, true),
    uid: view.getUint32(20, true),
    mode: view.getUint16(28, true),
  };
}
