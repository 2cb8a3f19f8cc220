/** OPEN, READ, WRITE, FLUSH, FSYNC, RELEASE, POLL: what happens to an open file. */
import { type Caching, type Done, type Handle, type Node, PENDING } from '../../tree/index.ts';
import { EAGAIN, EBADF, EINTR, EINVAL, EIO, ENFILE, ESTALE, O_APPEND, O_NONBLOCK } from '../../wire/index.ts';
import * as abi from '../abi.ts';
import * as c from '../constants.ts';
import type { OpenFile } from '../handles.ts';
import { isCurrent } from '../inodes.ts';
import { BODY, REPLY, type SessionState, type WaitingRead } from '../state.ts';
import { MAX_WRITE_BYTES } from './lifecycle.ts';

/** How the kernel treats an open file; counts the cached and the direct ones. */
export function openFlags(state: SessionState, handle: Handle, caching: Caching): number {
  if (handle.stream) {
    state.opensDirect++;
    return c.FOPEN_DIRECT_IO | c.FOPEN_STREAM | c.FOPEN_NONSEEKABLE | c.FOPEN_NOFLUSH;
  }
  if (caching === 'shared') {
    state.opensCached++;
    return c.FOPEN_KEEP_CACHE | c.FOPEN_NOFLUSH;
  }
  state.opensDirect++;
  return c.FOPEN_DIRECT_IO | c.FOPEN_NOFLUSH;
}

/** ESTALE sends Linux back to LOOKUP: what is opened is always the version of now, whatever the kernel still has cached. */
export function open(state: SessionState): number {
  const { fileSystem, inode } = state;
  const { ino } = inode;
  const node = fileSystem.node(ino);
  const caching = node === undefined ? inode.caching : fileSystem.caching(node);
  const current = node !== undefined && isCurrent(inode, node, caching);
  const retried = state.retried(inode);
  if (!current && retried === undefined) return state.expectRetry();
  if (state.handles.full) return ENFILE;
  const flags = abi.OpenIn.flags.get(state.view, BODY);
  let handle = fileSystem.open(state.caller, ino, flags, current ? undefined : retried);
  // Its name went to another file since it was looked up.
  if (handle === ESTALE)
    handle = retried === undefined ? state.expectRetry() : fileSystem.open(state.caller, ino, flags, retried);
  if (handle === PENDING) return openElsewhere(state, flags, current ? undefined : retried);
  if (typeof handle === 'number') return handle;
  opened(state, handle, caching === inode.caching ? caching : 'private');
  return state.reply(abi.OpenOut.sizeBytes);
}

function opened(state: SessionState, handle: Handle, caching: Caching): void {
  abi.OpenOut.fh.set(state.out, REPLY, state.handles.addFile(handle).fh);
  abi.OpenOut.openFlags.set(state.out, REPLY, openFlags(state, handle, caching));
  abi.OpenOut.padding.set(state.out, REPLY, 0);
}

/** What others decide is for this caller alone: never cached. */
function openElsewhere(state: SessionState, flags: number, version: Node | undefined): number {
  const { fileSystem, inode } = state;
  const { uid, gid, pid } = state.caller;
  const pending = state.later();
  fileSystem.waitOpen!(state.caller, inode.ino, flags, version, (errno, handle) => {
    if (errno === ESTALE && version === undefined) state.retries.expect({ uid, gid, pid }, state.clock.monotonicMs());
    if (errno !== 0 || handle === undefined) return pending.fail(errno === 0 ? EIO : errno);
    if (!pending.live || state.handles.full) {
      fileSystem.release(handle, () => undefined);
      return pending.fail(pending.live ? ENFILE : EIO);
    }
    opened(state, handle, 'private');
    return pending.finish(abi.OpenOut.sizeBytes);
  });
  return 0;
}

export function read(state: SessionState): number {
  const { view } = state;
  const file = state.handles.file(abi.ReadIn.fh.get(view, BODY));
  if (file === undefined) return EBADF;
  const offset = abi.ReadIn.offset.get(view, BODY);
  const sizeBytes = Math.min(abi.ReadIn.size.get(view, BODY), state.room);
  const result = state.fileSystem.read(file.handle, offset, sizeBytes);
  if (typeof result !== 'number') return state.reply(0, result);
  if (result !== PENDING) return result;
  const nonblocking = file.handle.stream && (abi.ReadIn.flags.get(view, BODY) & O_NONBLOCK) !== 0;
  return nonblocking ? EAGAIN : wait(state, file, offset, sizeBytes);
}

function wait(state: SessionState, file: OpenFile, offset: number, sizeBytes: number): number {
  const { unique } = state;
  if (state.interrupted.delete(unique)) return EINTR;
  if (state.waits.has(unique)) return EIO;
  const pending = state.later();
  const waiting: WaitingRead = { fh: file.fh, pending, cancel: () => undefined };
  state.waits.set(unique, waiting);
  waiting.cancel = state.fileSystem.waitRead(file.handle, offset, sizeBytes, (errno, bytes) => {
    if (state.waits.get(unique) === waiting) state.waits.delete(unique);
    if (errno !== 0 || bytes === undefined) pending.fail(errno === 0 ? EIO : errno);
    else pending.finish(0, bytes);
  });
  return 0;
}

/** The data is copied out: it stays with the file system after the request's buffer is used again. */
export function write(state: SessionState): number {
  const { view, bytes } = state;
  const start = BODY + abi.WriteIn.sizeBytes;
  const sizeBytes = abi.WriteIn.size.get(view, BODY);
  if (start + sizeBytes !== state.end) return EIO;
  // More than INIT allowed: no kernel does it.
  if (sizeBytes > MAX_WRITE_BYTES) return EINVAL;
  const file = state.handles.file(abi.WriteIn.fh.get(view, BODY));
  if (file === undefined) return EBADF;
  const offset = abi.WriteIn.offset.get(view, BODY);
  const appends = (abi.WriteIn.flags.get(view, BODY) & O_APPEND) !== 0;
  const pending = state.later();
  const answer: Done<number> = (errno, written) => {
    if (errno !== 0 || written === undefined) return pending.fail(errno === 0 ? EIO : errno);
    abi.WriteOut.size.set(state.out, REPLY, written);
    abi.WriteOut.padding.set(state.out, REPLY, 0);
    return pending.finish(abi.WriteOut.sizeBytes);
  };
  state.fileSystem.write(file.handle, offset, bytes.slice(start, state.end), answer, appends);
  return 0;
}

/** Nothing is done at close(2): shells send a FLUSH between O_TRUNC and the first WRITE. */
export const flush = (state: SessionState): number =>
  state.handles.file(abi.FlushIn.fh.get(state.view, BODY)) === undefined ? EBADF : state.reply(0);

export function fsync(state: SessionState): number {
  const file = state.handles.file(abi.FsyncIn.fh.get(state.view, BODY));
  if (file === undefined) return EBADF;
  const pending = state.later();
  state.fileSystem.fsync(file.handle, (errno) => pending.settle(errno));
  return 0;
}

/** Answered when a pending truncation is committed: virtiofs makes close(2) wait for it. */
export function release(state: SessionState): number {
  const file = state.handles.file(abi.ReleaseIn.fh.get(state.view, BODY));
  if (file === undefined) return state.exchange.isRedone === true ? state.reply(0) : EBADF;
  state.handles.removeFile(file.fh);
  state.poll(file, false);
  for (const waiting of state.waits.values()) if (waiting.fh === file.fh) waiting.cancel();
  const pending = state.later();
  state.fileSystem.release(file.handle, (errno) => {
    state.handles.released(file);
    pending.settle(errno);
  });
  return 0;
}

const ALWAYS = c.POLLIN | c.POLLRDNORM | c.POLLOUT | c.POLLWRNORM;

/** `/.changes` is readable when a line is there; any other file always, and has POLLPRI once a newer version exists. */
export function pollEvents(state: SessionState, file: OpenFile): number {
  const { handle } = file;
  if (handle.stream) return state.fileSystem.readable(handle) ? c.POLLIN | c.POLLRDNORM : 0;
  const node = state.fileSystem.node(handle.ino);
  return node === undefined || node.dataRevision !== handle.node.dataRevision ? ALWAYS | c.POLLPRI : ALWAYS;
}

/** True when nothing more can happen that a wake-up would tell. */
export const pollIsComplete = (file: OpenFile, events: number): boolean =>
  (events & (file.handle.stream ? c.POLLIN : c.POLLPRI)) !== 0;

export function poll(state: SessionState): number {
  const { view } = state;
  const file = state.handles.file(abi.PollIn.fh.get(view, BODY));
  if (file === undefined) return EBADF;
  const events = pollEvents(state, file);
  if ((abi.PollIn.flags.get(view, BODY) & c.FUSE_POLL_SCHEDULE_NOTIFY) !== 0 && !pollIsComplete(file, events)) {
    file.pollLo = abi.PollIn.kh.lo(view, BODY);
    file.pollHi = abi.PollIn.kh.hi(view, BODY);
    state.poll(file, true);
  }
  abi.PollOut.revents.set(state.out, REPLY, events);
  abi.PollOut.padding.set(state.out, REPLY, 0);
  return state.reply(abi.PollOut.sizeBytes);
}
