/** Log files that others append to, kept at a bounded size. */
import { closeSync, constants, ftruncateSync, openSync, readSync, statSync, writeSync } from 'node:fs';

function tailOf(path: string, bytes: number): Buffer {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return Buffer.alloc(0);
    throw error;
  }
  try {
    const { size } = statSync(path);
    const tail = Buffer.alloc(Math.min(bytes, size));
    return tail.subarray(0, readSync(fd, tail, 0, tail.length, size - tail.length));
  } finally {
    closeSync(fd);
  }
}

/**
 * Cuts a file that others append to (O_APPEND) when it is longer than `limitBytes`, so that its last half remains. What they
 * write at that moment may be lost. Absent files are left absent.
 */
export function trimLog(path: string, limitBytes: number): void {
  let fd: number;
  try {
    if (statSync(path).size <= limitBytes) return;
    fd = openSync(path, constants.O_RDWR | constants.O_APPEND | constants.O_NOFOLLOW);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  try {
    const kept = tailOf(path, limitBytes >> 1);
    ftruncateSync(fd, 0);
    writeSync(fd, kept);
  } finally {
    closeSync(fd);
  }
}
