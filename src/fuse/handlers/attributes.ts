/** LOOKUP, GETATTR, SETATTR, ACCESS, READLINK, STATFS. */
import { type Handle, limits, type Node, PENDING, type SetAttributes } from '../../tree/index.ts';
import {
  EBADF,
  EILSEQ,
  EINVAL,
  EIO,
  ENFILE,
  ENOENT,
  ESTALE,
  S_IFDIR,
  S_IFMT,
  S_ISGID,
  S_ISUID,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import * as c from '../constants.ts';
import { isCurrent } from '../inodes.ts';
import { BODY, REPLY, type SessionState } from '../state.ts';
import { onlyName } from './body.ts';

const TWO_32 = 2 ** 32;
const NSEC_PER_SEC = 1_000_000_000;
const ACCESS_BITS = 7;

export function lookup(state: SessionState): number {
  const name = onlyName(state);
  if (typeof name === 'number') return name === EILSEQ ? ENOENT : name;
  const node = state.fileSystem.lookup(state.caller, state.inode.ino, name);
  if (typeof node === 'number') return node;
  if (!state.entry(REPLY, node, state.caller.uid)) return ENFILE;
  if (state.retries.size > 0) {
    const nodeid = abi.EntryOut.nodeid.get(state.out, REPLY);
    state.retries.lookedUp(state.caller.pid, nodeid, node, state.clock.monotonicMs());
  }
  return state.reply(abi.EntryOut.sizeBytes);
}

/**
 * fstat(2) of an old version shows that version: the kernel sends no file handle, so the nodeid must tell. What is gone is
 * shown as it was, without links: a process may stand in a removed directory, and ESTALE would reach it.
 */
export function getattr(state: SessionState): number {
  const { inode } = state;
  const node = state.fileSystem.getattr(state.caller, inode.ino);
  if (typeof node === 'number') {
    if (node !== ESTALE) return node;
    state.attributes(inode, undefined);
  } else state.attributes(inode, node);
  return state.reply(abi.AttrOut.sizeBytes);
}

/** A time beyond what the tree can keep becomes the last that it can, as in other file systems of Linux. */
const time = (state: SessionState, secOffset: number, nsec: number) => {
  const sec = state.view.getUint32(BODY + secOffset, true) + state.view.getInt32(BODY + secOffset + 4, true) * TWO_32;
  return { sec: Math.max(-limits.timeSeconds, Math.min(limits.timeSeconds, sec)), nsec };
};

export function setattr(state: SessionState): number {
  const { view } = state;
  const valid = abi.SetattrIn.valid.get(view, BODY);
  let handle: Handle | undefined;
  if (valid & c.FATTR_FH) {
    handle = state.handles.file(abi.SetattrIn.fh.get(view, BODY))?.handle;
    if (handle === undefined) return EBADF;
  }
  const atimensec = abi.SetattrIn.atimensec.get(view, BODY);
  const mtimensec = abi.SetattrIn.mtimensec.get(view, BODY);
  if (valid & c.FATTR_ATIME && !(valid & c.FATTR_ATIME_NOW) && atimensec >= NSEC_PER_SEC) return EINVAL;
  if (valid & c.FATTR_MTIME && !(valid & c.FATTR_MTIME_NOW) && mtimensec >= NSEC_PER_SEC) return EINVAL;
  let attributes: SetAttributes = {
    mode: valid & c.FATTR_MODE ? abi.SetattrIn.mode.get(view, BODY) & 0o7777 : undefined,
    uid: valid & c.FATTR_UID ? abi.SetattrIn.uid.get(view, BODY) : undefined,
    gid: valid & c.FATTR_GID ? abi.SetattrIn.gid.get(view, BODY) : undefined,
    sizeBytes: valid & c.FATTR_SIZE ? abi.SetattrIn.size.get(view, BODY) : undefined,
    atime:
      valid & c.FATTR_ATIME_NOW
        ? 'now'
        : valid & c.FATTR_ATIME
          ? time(state, abi.SetattrIn.atime.offset, atimensec)
          : undefined,
    // A new size, with which Linux sends it, sets the time by itself.
    mtime:
      valid & c.FATTR_MTIME_NOW
        ? valid & c.FATTR_SIZE
          ? undefined
          : 'now'
        : valid & c.FATTR_MTIME
          ? time(state, abi.SetattrIn.mtime.offset, mtimensec)
          : undefined,
  };
  // FATTR_CTIME, FATTR_LOCKOWNER and FATTR_KILL_SUIDGID ask for nothing that the tree does not do by itself.
  const asked = c.FATTR_MODE | c.FATTR_UID | c.FATTR_GID | c.FATTR_SIZE;
  const askedTimes = c.FATTR_ATIME | c.FATTR_MTIME | c.FATTR_ATIME_NOW | c.FATTR_MTIME_NOW;
  const { inode } = state;
  if ((valid & (asked | askedTimes)) === 0) {
    // chown(-1, -1), which takes set-id bits away and is for the owner: chown to what it has does the same.
    const node = state.fileSystem.node(inode.ino);
    if (node === undefined || (node.mode & (S_ISUID | S_ISGID)) === 0 || (node.mode & S_IFMT) === S_IFDIR)
      return getattr(state);
    attributes = { uid: node.uid, gid: node.gid };
  }
  const pending = state.later();
  state.fileSystem.setattr(state.caller, inode.ino, attributes, handle, (errno, node) => {
    if (errno !== 0 || node === undefined) return pending.fail(errno === 0 ? ESTALE : errno);
    state.attributes(inode, node);
    return pending.finish(abi.AttrOut.sizeBytes);
  });
  return 0;
}

export function access(state: SessionState): number {
  const mask = abi.AccessIn.mask.get(state.view, BODY);
  if ((mask & ~ACCESS_BITS) !== 0) return EINVAL;
  const errno = state.fileSystem.access(state.caller, state.inode.ino, mask);
  if (errno !== PENDING) return errno === 0 ? state.reply(0) : errno;
  const pending = state.later();
  state.fileSystem.waitAccess!(state.caller, state.inode.ino, mask, (errno) => pending.settle(errno));
  return 0;
}

/** A symlink that changed since it was looked up is looked up again, so that an open through it finds the new target. */
export function readlink(state: SessionState): number {
  const { inode, fileSystem } = state;
  const node = fileSystem.node(inode.ino);
  let version: Node | undefined;
  if (node === undefined || !isCurrent(inode, node, fileSystem.caching(node))) {
    version = state.lookedUpAgain(state.nodeid);
    if (version === undefined) return state.expectRetry();
  }
  const target = fileSystem.readlink(state.caller, inode.ino, version);
  if (target !== PENDING) return typeof target === 'number' ? target : state.reply(0, target);
  const pending = state.later();
  fileSystem.waitReadlink!(state.caller, inode.ino, version, (errno, found) => {
    if (errno !== 0 || found === undefined) pending.fail(errno === 0 ? EIO : errno);
    else pending.finish(0, found);
  });
  return 0;
}

export function statfs(state: SessionState): number {
  const { out } = state;
  const { blockSizeBytes, blocks, blocksFree, files, filesFree, nameBytes } = state.fileSystem.statfs();
  state.head.fill(0, REPLY, REPLY + abi.Kstatfs.sizeBytes);
  abi.Kstatfs.blocks.set(out, REPLY, blocks);
  abi.Kstatfs.bfree.set(out, REPLY, blocksFree);
  abi.Kstatfs.bavail.set(out, REPLY, blocksFree);
  abi.Kstatfs.files.set(out, REPLY, files);
  abi.Kstatfs.ffree.set(out, REPLY, filesFree);
  abi.Kstatfs.bsize.set(out, REPLY, blockSizeBytes);
  abi.Kstatfs.namelen.set(out, REPLY, nameBytes);
  abi.Kstatfs.frsize.set(out, REPLY, blockSizeBytes);
  return state.reply(abi.Kstatfs.sizeBytes);
}
