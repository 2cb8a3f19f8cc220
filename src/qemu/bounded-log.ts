/** Log files of bounded size. */
import { closeSync, constants, ftruncateSync, openSync, readSync, renameSync, statSync, writeSync } from 'node:fs';

const flags = constants.O_CREAT | constants.O_NOFOLLOW;

/**
 * A file and the one before it, `FILE.1`: when `FILE` would grow beyond the limit it takes that one's place. One writer at a
 * time. At most twice `limitBytes` is kept, and at least the last `limitBytes` that were written.
 */
export class RotatingFile {
  readonly #path: string;
  readonly #limitBytes: number;
  #fd: number;
  #size: number;

  /** Goes on where an earlier writer ended. Throws what open(2) fails with. */
  constructor(path: string, limitBytes: number) {
    this.#path = path;
    this.#limitBytes = limitBytes;
    this.#fd = openSync(path, flags | constants.O_WRONLY | constants.O_APPEND, 0o600);
    this.#size = statSync(path).size;
  }

  /** Appends all of it. What the file system has no room for is lost: a console is no reason to stop a machine. */
  append(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      if (this.#size >= this.#limitBytes) this.#rotate();
      const piece = bytes.subarray(at, at + this.#limitBytes - this.#size);
      try {
        this.#size += writeSync(this.#fd, piece);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC' && (error as NodeJS.ErrnoException).code !== 'EDQUOT')
          throw error;
      }
      at += piece.length;
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  #rotate(): void {
    closeSync(this.#fd);
    renameSync(this.#path, `${this.#path}.1`);
    this.#fd = openSync(this.#path, flags | constants.O_WRONLY | constants.O_APPEND, 0o600);
    this.#size = 0;
  }
}

/** The last `bytes` bytes that a `RotatingFile` wrote, oldest first. Absent files are empty. */
export function readTail(path: string, bytes: number): Buffer {
  const now = tailOf(path, bytes);
  return now.length >= bytes ? now : Buffer.concat([tailOf(`${path}.1`, bytes - now.length), now]);
}

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
