/** Tgetattr, Tsetattr, Treadlink, Tstatfs. */
import { type FileSystem, type Handle, limits, type Node, type SetAttributes, type Time } from '../../tree/index.ts';
import {
  EBADF,
  EINVAL,
  EMSGSIZE,
  ESTALE,
  O_ACCMODE,
  O_RDONLY,
  O_TRUNC,
  S_IFDIR,
  S_IFMT,
  S_IFREG,
  S_ISGID,
  S_ISUID,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import type { Fid } from '../fids.ts';
import { BODY, type SessionState } from '../state.ts';

const BLOCK_BYTES = 512;
const PREFERRED_IO_BYTES = 4096;
const NSEC_PER_SEC = 1_000_000_000;
const TWO_32 = 2 ** 32;
const STRING_BYTES = 2;

/**
 * fstat(2) of a file that pins its version shows that version. What is gone is shown as it was, without links: a process may
 * stand in a removed directory.
 */
export function getattr(state: SessionState): number {
  const { fid, fileSystem } = state;
  if (fid === undefined) return EBADF;
  const asked = fileSystem.getattr(fid.caller, fid.ino);
  if (typeof asked === 'number' && asked !== ESTALE) return asked;
  const node = typeof asked === 'number' ? undefined : asked;
  const mode = node === undefined ? fid.mode : fileSystem.shownMode(node);
  if (node !== undefined) fid.become(node, mode);
  const pinned = fid.pins ? fid.handle?.node : undefined;
  const isOld = pinned !== undefined && pinned.dataRevision !== node?.dataRevision;
  const shown = isOld ? pinned : (node ?? fid.node);
  return attributes(state, shown, mode, node === undefined ? 0 : node.nlink);
}

function attributes(state: SessionState, node: Node, mode: number, nlink: number): number {
  const { out, fileSystem } = state;
  const mask = abi.Tgetattr.requestMask.lo(state.view, state.body);
  const isEmptied = (mode & S_IFMT) === S_IFREG && fileSystem.pendingTruncation(node.ino);
  const sizeBytes = isEmptied ? 0 : node.sizeBytes;
  abi.Rgetattr.valid.set(out, BODY, abi.GETATTR_BASIC | (mask & abi.GETATTR_DATA_VERSION));
  state.qidOf(BODY + abi.Rgetattr.qid.offset, node);
  abi.Rgetattr.mode.set(out, BODY, mode);
  abi.Rgetattr.uid.set(out, BODY, node.uid);
  abi.Rgetattr.gid.set(out, BODY, node.gid);
  abi.Rgetattr.nlink.set(out, BODY, nlink);
  abi.Rgetattr.rdev.set(out, BODY, 0);
  abi.Rgetattr.size.set(out, BODY, sizeBytes);
  abi.Rgetattr.blksize.set(out, BODY, PREFERRED_IO_BYTES);
  abi.Rgetattr.blocks.set(out, BODY, Math.ceil(sizeBytes / BLOCK_BYTES));
  abi.Rgetattr.atimeSec.set(out, BODY, node.atime.sec);
  abi.Rgetattr.atimeNsec.set(out, BODY, node.atime.nsec);
  abi.Rgetattr.mtimeSec.set(out, BODY, node.mtime.sec);
  abi.Rgetattr.mtimeNsec.set(out, BODY, node.mtime.nsec);
  abi.Rgetattr.ctimeSec.set(out, BODY, node.ctime.sec);
  abi.Rgetattr.ctimeNsec.set(out, BODY, node.ctime.nsec);
  abi.Rgetattr.btimeSec.set(out, BODY, 0);
  abi.Rgetattr.btimeNsec.set(out, BODY, 0);
  abi.Rgetattr.gen.set(out, BODY, 0);
  abi.Rgetattr.dataVersion.set(out, BODY, node.dataRevision);
  return state.reply(abi.Rgetattr.sizeBytes);
}

/** A time beyond what the tree can keep becomes the last that it can; undefined for nanoseconds that are none. */
function time({ view, body }: SessionState, sec: typeof abi.Tsetattr.atimeSec, nsec: typeof abi.Tsetattr.atimeNsec) {
  const at = body + sec.offset;
  const seconds = view.getUint32(at, true) + view.getInt32(at + 4, true) * TWO_32;
  const nanoseconds = nsec.get(view, body);
  if (nanoseconds >= NSEC_PER_SEC) return undefined;
  return { sec: Math.max(-limits.timeSeconds, Math.min(limits.timeSeconds, seconds)), nsec: nanoseconds };
}

/** What the request asks for; undefined for a time that is none. */
function asked(state: SessionState, fid: Fid, valid: number): SetAttributes | undefined {
  const { view, body, fileSystem } = state;
  const T = abi.Tsetattr;
  let atime: Time | 'now' | undefined;
  let mtime: Time | 'now' | undefined;
  if (valid & abi.SETATTR_ATIME) {
    atime = valid & abi.SETATTR_ATIME_SET ? time(state, T.atimeSec, T.atimeNsec) : 'now';
    if (atime === undefined) return undefined;
  }
  if (valid & abi.SETATTR_MTIME) {
    mtime = valid & abi.SETATTR_MTIME_SET ? time(state, T.mtimeSec, T.mtimeNsec) : 'now';
    if (mtime === undefined) return undefined;
  }
  let sizeBytes = valid & abi.SETATTR_SIZE ? T.size.get(view, body) : undefined;
  // A new size, with which Linux sends it, sets the time by itself.
  if (sizeBytes !== undefined && mtime === 'now') mtime = undefined;
  if (sizeBytes === 0 && fid.handle !== undefined && isOfOpen(fid, fid.handle, fileSystem)) {
    fileSystem.truncateOnWrite(fid.handle);
    sizeBytes = undefined;
  }
  fid.isFresh = false;
  let mode = valid & abi.SETATTR_MODE ? T.mode.get(view, body) & 0o7777 : undefined;
  // Linux takes set-id bits away by a mode that it sends with the new size, whoever writes; the tree does so by itself.
  if (sizeBytes !== undefined && mode !== undefined && isWithoutSetId(mode, fileSystem.node(fid.ino))) mode = undefined;
  return {
    mode,
    uid: valid & abi.SETATTR_UID ? T.uid.get(view, body) : undefined,
    gid: valid & abi.SETATTR_GID ? T.gid.get(view, body) : undefined,
    sizeBytes,
    atime,
    mtime,
  };
}

const isWithoutSetId = (mode: number, node: Node | undefined): boolean =>
  node !== undefined &&
  mode !== (node.mode & 0o7777) &&
  (mode | (node.mode & (S_ISUID | S_ISGID))) === (node.mode & 0o7777);

/**
 * Whether Tsetattr of size 0 is the truncation of open(O_TRUNC), which takes effect with the first write. Linux leaves that
 * flag out of Tlopen, and truncates next what it has opened for writing; a client that sends it may truncate all the same.
 */
function isOfOpen(fid: Fid, handle: Handle, fileSystem: FileSystem): boolean {
  if ((handle.flags & O_TRUNC) !== 0) return fileSystem.pendingTruncation(fid.ino);
  return fid.isFresh && (handle.flags & O_ACCMODE) !== O_RDONLY;
}

export function setattr(state: SessionState): number {
  const { view, body, fid, fileSystem } = state;
  if (fid === undefined) return EBADF;
  const valid = abi.Tsetattr.valid.get(view, body);
  let attributes = asked(state, fid, valid);
  if (attributes === undefined) return EINVAL;
  const { mode, uid, gid, sizeBytes, atime, mtime } = attributes;
  if ([mode, uid, gid, sizeBytes, atime, mtime].every((value) => value === undefined)) {
    if ((valid & abi.SETATTR_SIZE) !== 0) return state.reply(0);
    // chown(-1, -1), which takes set-id bits away and is for the owner: chown to what it has does the same.
    const node = fileSystem.node(fid.ino);
    if (node === undefined || (node.mode & (S_ISUID | S_ISGID)) === 0 || (node.mode & S_IFMT) === S_IFDIR)
      return state.reply(0);
    attributes = { uid: node.uid, gid: node.gid };
  }
  const handle = fid.handle !== undefined && (fid.handle.flags & O_ACCMODE) !== O_RDONLY ? fid.handle : undefined;
  const pending = state.later();
  fileSystem.setattr(fid.caller, fid.ino, attributes, handle, (errno) => pending.settle(errno));
  return 0;
}

export function readlink(state: SessionState): number {
  const { fid, out } = state;
  if (fid === undefined) return EBADF;
  const target = state.fileSystem.readlink(fid.caller, fid.ino);
  if (typeof target === 'number') return target;
  if (STRING_BYTES + target.length > state.room) return EMSGSIZE;
  out.setUint16(BODY, target.length, true);
  state.head.set(target, BODY + STRING_BYTES);
  return state.reply(STRING_BYTES + target.length);
}

export function statfs(state: SessionState): number {
  if (state.fid === undefined) return EBADF;
  const { out } = state;
  const { blockSizeBytes, blocks, blocksFree, files, filesFree, nameBytes } = state.fileSystem.statfs();
  abi.Rstatfs.type.set(out, BODY, abi.V9FS_MAGIC);
  abi.Rstatfs.bsize.set(out, BODY, blockSizeBytes);
  abi.Rstatfs.blocks.set(out, BODY, blocks);
  abi.Rstatfs.bfree.set(out, BODY, blocksFree);
  abi.Rstatfs.bavail.set(out, BODY, blocksFree);
  abi.Rstatfs.files.set(out, BODY, files);
  abi.Rstatfs.ffree.set(out, BODY, filesFree);
  abi.Rstatfs.fsid.set(out, BODY, 0);
  abi.Rstatfs.namelen.set(out, BODY, nameBytes);
  return state.reply(abi.Rstatfs.sizeBytes);
}
