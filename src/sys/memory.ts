/** Shared memory: memfds with seals, and mappings whose views cannot outlive them. */
import { EINVAL } from '../wire/index.ts';
import * as libc from './libc.ts';

const { result } = libc;

const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
export const F_SEAL_SHRINK = 2;
export const F_SEAL_GROW = 4;
export const F_SEAL_WRITE = 8;

/** A memfd of `sizeBytes` that can be sealed. */
export function memfd(name: string, sizeBytes: number): number {
  const fd = result(libc.memfdCreate(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd < 0) return fd;
  const error = result(libc.ftruncate(fd, sizeBytes));
  if (error === 0) return fd;
  libc.close(fd);
  return error;
}

/** FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE. */
const PUNCH_HOLE = 1 | 2;

/** Gives whole pages of a memfd back: they read as zeros from then on, through mappings too. */
export const punchHole = (fd: number, offset: number, bytes: number): number =>
  result(libc.fallocate(fd, PUNCH_HOLE, offset, bytes));

/** Adds F_SEAL_* bits to a memfd; they can't be taken back. */
export const addSeals = (fd: number, seals: number): number => result(libc.fcntl(fd, F_ADD_SEALS, seals));

/** The seals of a memfd; -EINVAL for what is not one. */
export const getSeals = (fd: number): number => result(libc.fcntl(fd, F_GET_SEALS, 0));

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_NORESERVE = 0x4000;

/**
 * Memory of a file mapped into this process, as one ArrayBuffer. `unmap` detaches the buffer first, so that every typed
 * array on it has length 0 from then on: a view that somebody kept reads nothing, writes nothing and cannot crash
 * (`Atomics` on it throws).
 */
export class Mapping {
  readonly #address: number;
  readonly #mappedBytes: number;
  #buffer: ArrayBuffer | undefined;

  private constructor(address: number, mappedBytes: number, buffer: ArrayBuffer) {
    this.#address = address;
    this.#mappedBytes = mappedBytes;
    this.#buffer = buffer;
  }

  /**
   * Maps `sizeBytes` bytes at `offset` of `fd`, shared, to read and write, or returns the negative errno. The caller has
   * made sure that the file is that long and cannot shrink: touching pages beyond its end kills the process. `pageBytes` is
   * the page size of the file (`blockSize`), to which the offset is rounded down and the end up.
   */
  static map(fd: number, offset: number, sizeBytes: number, pageBytes = 4096): Mapping | number {
    if (sizeBytes <= 0 || offset < 0 || !Number.isSafeInteger(offset + sizeBytes)) return -EINVAL;
    const before = offset % pageBytes;
    const mappedBytes = Math.ceil((before + sizeBytes) / pageBytes) * pageBytes;
    const flags = MAP_SHARED | MAP_NORESERVE;
    const address = result(libc.mmap(0, mappedBytes, PROT_READ_WRITE, flags, fd, offset - before));
    if (address < 0) return address;
    return new Mapping(address, mappedBytes, libc.viewOf(address + before, sizeBytes));
  }

  /** The one buffer over the memory. Throws after `unmap`. */
  get buffer(): ArrayBuffer {
    if (this.#buffer === undefined) throw new Error('this memory is no longer mapped');
    return this.#buffer;
  }

  unmap(): void {
    const buffer = this.#buffer;
    if (buffer === undefined) return;
    this.#buffer = undefined;
    buffer.transfer();
    libc.munmap(this.#address, this.#mappedBytes);
  }
}
