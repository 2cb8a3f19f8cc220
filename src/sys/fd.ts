/** File descriptors as they are: every function returns a result that is not negative, or the negative errno. */
import { EINVAL } from '../wire/index.ts';
import * as libc from './libc.ts';

const { result } = libc;

/** fcntl(2) commands and flags. */
const F_GETFL = 3;
const F_SETFL = 4;
const F_DUPFD_CLOEXEC = 1030;
const O_NONBLOCK = 0o4000;

/** Reads into the first `bytes` bytes of `buffer` (all of it by default). 0 is the end. Never allocates. */
export const read = (fd: number, buffer: Uint8Array, bytes = buffer.byteLength): number =>
  bytes > buffer.byteLength ? -EINVAL : result(libc.read(fd, buffer, bytes));

/** Writes the first `bytes` bytes of `buffer`. Never allocates. */
export const write = (fd: number, buffer: Uint8Array, bytes = buffer.byteLength): number =>
  bytes > buffer.byteLength ? -EINVAL : result(libc.write(fd, buffer, bytes));

/** Payloads up to this size are cheaper to copy behind their head than to hand over as a second vector (0.7 µs). */
const COPY_UP_TO_BYTES = 8192;
const joined = new Uint8Array(new ArrayBuffer(COPY_UP_TO_BYTES));
const vectors: libc.IoVectors = { base0: joined, length0: 0, base1: joined, length1: 0 };

/** Writes the first `headBytes` bytes of `head` and then `payload` in one system call, as `/dev/fuse` wants its replies. */
export function writeParts(fd: number, head: Uint8Array, headBytes: number, payload?: Uint8Array): number {
  if (payload === undefined || payload.byteLength === 0) return write(fd, head, headBytes);
  if (headBytes > head.byteLength) return -EINVAL;
  const total = headBytes + payload.byteLength;
  if (total <= COPY_UP_TO_BYTES) {
    if (headBytes <= 256) for (let i = 0; i < headBytes; i++) joined[i] = head[i]!;
    else joined.set(head.subarray(0, headBytes));
    joined.set(payload, headBytes);
    return result(libc.write(fd, joined, total));
  }
  vectors.base0 = head;
  vectors.length0 = headBytes;
  vectors.base1 = payload;
  vectors.length1 = payload.byteLength;
  const written = result(libc.writev(fd, vectors, 2));
  vectors.base0 = joined;
  vectors.base1 = joined;
  return written;
}

export const close = (fd: number): number => result(libc.close(fd));

/** A second descriptor of the same open file, closed on exec. */
export const duplicate = (fd: number): number => result(libc.fcntl(fd, F_DUPFD_CLOEXEC, 0));

/** Sets or clears O_NONBLOCK, for everybody who has this open file. */
export function setNonBlocking(fd: number, nonBlocking: boolean): number {
  const flags = result(libc.fcntl(fd, F_GETFL, 0));
  if (flags < 0) return flags;
  return result(libc.fcntl(fd, F_SETFL, nonBlocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

/** flock(2): with others that want no more, or for one process alone, until the descriptor is closed; or at once -EAGAIN. */
export const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_NB = 4;

/** Waits for the lock, blocking the thread, unless told otherwise. 0, or a negative errno. */
export const flock = (fd: number, operation: number): number => result(libc.flock(fd, operation));

/** `struct stat` on x86-64 and arm64: st_size at 48, st_blksize at 56 on both. */
const stat = new DataView(new ArrayBuffer(256));
const ST_SIZE = 48;
const ST_BLKSIZE = 56;

/** The size in bytes of the file behind `fd`. */
export function fileSize(fd: number): number {
  const error = result(libc.fstat(fd, stat));
  if (error < 0) return error;
  return stat.getUint32(ST_SIZE, true) + stat.getUint32(ST_SIZE + 4, true) * 2 ** 32;
}

/** The block size of the file behind `fd`: the page size of its memory for memfds and hugetlbfs. */
export function blockSize(fd: number): number {
  const error = result(libc.fstat(fd, stat));
  return error < 0 ? error : stat.getUint32(ST_BLKSIZE, true);
}

/** ftruncate(2). */
export const truncate = (fd: number, sizeBytes: number): number => result(libc.ftruncate(fd, sizeBytes));

export const POLLIN = 1;
export const POLLOUT = 4;
/** Shown whether it was asked for or not. Of a stream socket: neither end will send any more. */
export const POLLHUP = 0x10;

const one = new DataView(new ArrayBuffer(8));
/** Waits until `fd` shows one of `events` (POLLIN …); returns the events shown, or 0 when `timeoutMs` has passed. */
export function pollOne(fd: number, events: number, timeoutMs: number): number {
  one.setInt32(0, fd, true);
  one.setInt16(4, events, true);
  one.setInt16(6, 0, true);
  const count = result(libc.poll(one, 1, timeoutMs));
  return count <= 0 ? count : one.getInt16(6, true);
}
