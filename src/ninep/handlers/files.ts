/** Tlopen, Tlcreate, Tread, Twrite, Tfsync: what happens to an open file. */
import { type Done, type Handle, limits, PENDING } from '../../tree/index.ts';
import {
  EAGAIN,
  EBADF,
  EBUSY,
  EINTR,
  EINVAL,
  EIO,
  EISDIR,
  ENOSPC,
  ENOTDIR,
  O_ACCMODE,
  O_DIRECTORY,
  O_NONBLOCK,
  O_RDONLY,
  O_TRUNC,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import type { Fid } from '../fids.ts';
import type { Pending } from '../requests.ts';
import { BODY, type SessionState } from '../state.ts';

/** Flags of open(2) that 9P2000.L has. Bit 040 has no meaning there, but in the tree it is execve(2). */
const DOTL_FLAGS = 0o7777703;
/** The client works it out from msize. */
const ANY_IOUNIT = 0;
const PAGE_BYTES = 4096;

/**
 * For what stays as it was opened: all of it in one Tread. Linux allocates, and clears, room for the longest answer before it
 * sends one, by powers of two: with 64 KiB for each of the three Treads of a short file that takes longer than we do.
 */
function iounitOf({ msize }: SessionState, sizeBytes: number): number {
  let answerBytes = PAGE_BYTES;
  while (answerBytes - BODY - abi.Count.sizeBytes <= sizeBytes) answerBytes *= 2;
  return answerBytes < msize ? answerBytes - BODY - abi.Count.sizeBytes : ANY_IOUNIT;
}

function openedAt(state: SessionState, fid: Fid, handle: Handle): number {
  const node = state.current(fid) ?? handle.node;
  fid.handle = handle;
  fid.pins = state.fileSystem.caching(node) !== 'mutable';
  state.qidOf(BODY, node);
  const isWhole = fid.pins && !handle.stream;
  abi.Opened.iounit.set(state.out, BODY, isWhole ? iounitOf(state, handle.node.sizeBytes) : ANY_IOUNIT);
  return abi.Opened.sizeBytes;
}

export function lopen(state: SessionState): number {
  const { fid, fileSystem } = state;
  if (fid === undefined) return EBADF;
  if (fid.isOpen) return EINVAL;
  const flags = abi.Tlopen.flags.get(state.view, state.body) & DOTL_FLAGS;
  if (!fid.isDirectory) {
    if ((flags & O_DIRECTORY) !== 0) return ENOTDIR;
    const handle = fileSystem.open(fid.caller, fid.ino, flags);
    // ESTALE has Linux look the name up again, and open what stands there now.
    if (typeof handle === 'number') return handle;
    fid.isFresh = true;
    return state.reply(openedAt(state, fid, handle));
  }
  if ((flags & O_ACCMODE) !== O_RDONLY || (flags & O_TRUNC) !== 0) return EISDIR;
  const directory = fileSystem.opendir(fid.caller, fid.ino);
  if (typeof directory === 'number') return directory;
  fid.directory = directory;
  state.qidOf(BODY, state.current(fid) ?? fid.node);
  abi.Opened.iounit.set(state.out, BODY, ANY_IOUNIT);
  return state.reply(abi.Opened.sizeBytes);
}

/** The directory's fid becomes the new file's. Linux has applied the umask. */
export function lcreate(state: SessionState): number {
  const { fid, view, fileSystem } = state;
  const { tail } = state.parts;
  if (fid === undefined) return EBADF;
  if (fid.isOpen) return EINVAL;
  const name = state.name(0);
  if (typeof name === 'number') return name;
  const flags = abi.LcreateTail.flags.get(view, tail) & DOTL_FLAGS;
  const mode = abi.LcreateTail.mode.get(view, tail) & 0o7777;
  const maker = state.maker(fid.caller, abi.LcreateTail.gid.get(view, tail));
  fid.isOpening = true;
  const pending = state.later();
  fileSystem.create(maker, fid.ino, name, mode, 0, flags, (errno, made) => {
    fid.isOpening = false;
    if (errno !== 0 || made === undefined) return pending.fail(errno === 0 ? EIO : errno);
    if (!pending.live || state.fids.get(fid.number) !== fid) {
      fileSystem.release(made.handle, () => undefined);
      return pending.fail(EIO);
    }
    fid.become(made.node, fileSystem.shownMode(made.node));
    return pending.finish(openedAt(state, fid, made.handle));
  });
  return 0;
}

/** Writes an Rread into the reply; returns the bytes of its body. */
function readAt(state: SessionState, bytes: Uint8Array): number {
  abi.Count.count.set(state.out, BODY, bytes.length);
  state.head.set(bytes, BODY + abi.Count.sizeBytes);
  return abi.Count.sizeBytes + bytes.length;
}

export function read(state: SessionState): number {
  const { view, body, fid } = state;
  if (fid === undefined) return EBADF;
  if (fid.directory !== undefined) return EISDIR;
  const offset = abi.Tread.offset.get(view, body);
  const count = Math.min(abi.Tread.count.get(view, body), state.room - abi.Count.sizeBytes);
  const { xattr, handle } = fid;
  if (xattr !== undefined) {
    if (xattr.set !== undefined) return EBADF;
    const from = Math.min(offset, xattr.bytes.length);
    return state.reply(readAt(state, xattr.bytes.subarray(from, from + count)));
  }
  if (handle === undefined) return EBADF;
  fid.isFresh = false;
  const result = state.fileSystem.read(handle, offset, count);
  if (typeof result !== 'number') {
    fid.readsOn = handle.stream && isPart(result, count);
    return state.reply(readAt(state, result));
  }
  if (result !== PENDING) return result;
  if (handle.stream && (handle.flags & O_NONBLOCK) !== 0) return EAGAIN;
  if (!fid.readsOn) return wait(state, fid, handle, offset, count);
  fid.readsOn = false;
  return EINTR;
}

const isPart = (bytes: Uint8Array, count: number): boolean => bytes.length > 0 && bytes.length < count;

function wait(state: SessionState, fid: Fid, handle: Handle, offset: number, count: number): number {
  const pending = state.later();
  pending.fid = fid;
  const cancel = state.fileSystem.waitRead(handle, offset, count, (errno, bytes) => {
    if (errno !== 0 || bytes === undefined) pending.fail(errno === 0 ? EIO : errno);
    else if (pending.live && !pending.settled) {
      fid.readsOn = handle.stream && isPart(bytes, count);
      pending.finish(readAt(state, bytes));
    } else pending.abandon();
  });
  pending.cancel = cancel;
  return 0;
}

/** The data is copied out: it stays with the file system after the request's buffer is used again. */
export function write(state: SessionState): number {
  const { view, body, bytes, fid } = state;
  if (fid === undefined) return EBADF;
  const offset = abi.Twrite.offset.get(view, body);
  const count = abi.Twrite.count.get(view, body);
  const start = body + abi.Twrite.sizeBytes;
  const { xattr, handle } = fid;
  if (xattr !== undefined) {
    if (xattr.set === undefined) return EBADF;
    if (offset !== xattr.written) return EINVAL;
    if (offset + count > xattr.bytes.length) return ENOSPC;
    xattr.bytes.set(bytes.subarray(start, start + count), offset);
    xattr.written += count;
    abi.Count.count.set(state.out, BODY, count);
    return state.reply(abi.Count.sizeBytes);
  }
  if (fid.directory !== undefined) return EISDIR;
  if (handle === undefined) return EBADF;
  if (count > limits.valueBytes) return EINVAL;
  fid.isFresh = false;
  const pending = state.later();
  const done: Done<number> = (errno, written) => {
    if (errno !== 0 || written === undefined) return pending.fail(errno === 0 ? EIO : errno);
    return finishCount(state, pending, written);
  };
  state.fileSystem.write(handle, offset, bytes.slice(start, start + count), done);
  return 0;
}

function finishCount(state: SessionState, pending: Pending, count: number): void {
  abi.Count.count.set(state.out, BODY, count);
  pending.finish(abi.Count.sizeBytes);
}

export function fsync(state: SessionState): number {
  const { fid } = state;
  if (fid === undefined) return EBADF;
  if (fid.isOpening) return EBUSY;
  // Every change of a directory was committed before it was answered.
  if (fid.directory !== undefined) return state.reply(0);
  if (fid.handle === undefined) return EBADF;
  fid.isFresh = false;
  const pending = state.later();
  state.fileSystem.fsync(fid.handle, (errno) => pending.settle(errno));
  return 0;
}
