/** MKNOD, MKDIR, SYMLINK, UNLINK, RMDIR, RENAME, RENAME2, CREATE: what changes a directory. */

import { limits, type Node } from '../../tree/index.ts';
import {
  decodeName,
  EINVAL,
  EIO,
  ENAMETOOLONG,
  ENFILE,
  EPERM,
  ESTALE,
  endOfName,
  O_EXCL,
  O_WRONLY,
  RENAME_EXCHANGE,
  RENAME_NOREPLACE,
  S_IFMT,
  S_IFREG,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { BODY, type PendingReply, REPLY, type SessionState } from '../state.ts';
import { onlyName } from './body.ts';
import { openFlags } from './files.ts';

/** `uid`: of who asked, which may be another than the caller of the request at hand by now. */
const answerEntry = (
  state: SessionState,
  pending: PendingReply,
  uid: number,
  errno: number,
  node: Node | undefined,
): void => {
  if (errno !== 0 || node === undefined) pending.fail(errno === 0 ? EIO : errno);
  else if (!pending.live) pending.fail(EIO);
  else if (state.entry(REPLY, node, uid)) pending.finish(abi.EntryOut.sizeBytes);
  else pending.fail(ENFILE);
};

/** A regular file only: `tar --xattrs` makes one so, to set its attributes before it is opened. */
export function mknod(state: SessionState): number {
  const mode = abi.MknodIn.mode.get(state.view, BODY);
  if ((mode & S_IFMT) !== S_IFREG) return EPERM;
  const name = onlyName(state, abi.MknodIn.sizeBytes);
  if (typeof name === 'number') return name;
  if (state.inodes.fullFor(state.caller.uid)) return ENFILE;
  const { caller, fileSystem, inode } = state;
  const umask = abi.MknodIn.umask.get(state.view, BODY) & 0o777;
  const { uid } = state.caller;
  const pending = state.later();
  fileSystem.create(caller, inode.ino, name, mode & 0o7777, umask, O_WRONLY | O_EXCL, (errno, made) => {
    if (made !== undefined) fileSystem.release(made.handle, () => undefined);
    answerEntry(state, pending, uid, errno, made?.node);
  });
  return 0;
}

export function mkdir(state: SessionState): number {
  const name = onlyName(state, abi.MkdirIn.sizeBytes);
  if (typeof name === 'number') return name;
  if (state.inodes.fullFor(state.caller.uid)) return ENFILE;
  const mode = abi.MkdirIn.mode.get(state.view, BODY) & 0o7777;
  const umask = abi.MkdirIn.umask.get(state.view, BODY) & 0o777;
  const { uid } = state.caller;
  const pending = state.later();
  state.fileSystem.mkdir(state.caller, state.inode.ino, name, mode, umask, (errno, node) =>
    answerEntry(state, pending, uid, errno, node),
  );
  return 0;
}

export function symlink(state: SessionState): number {
  const { bytes, end } = state;
  const nameEnd = endOfName(bytes, BODY, end);
  const targetEnd = nameEnd < 0 ? -1 : endOfName(bytes, nameEnd + 1, end);
  if (targetEnd < 0 || targetEnd + 1 !== end) return EINVAL;
  const name = decodeName(bytes, BODY, nameEnd);
  if (typeof name === 'number') return name;
  if (targetEnd === nameEnd + 1) return EINVAL;
  if (targetEnd - nameEnd - 1 > limits.symlinkBytes) return ENAMETOOLONG;
  if (state.inodes.fullFor(state.caller.uid)) return ENFILE;
  const target = bytes.slice(nameEnd + 1, targetEnd);
  const { uid } = state.caller;
  const pending = state.later();
  state.fileSystem.symlink(state.caller, state.inode.ino, name, target, (errno, node) =>
    answerEntry(state, pending, uid, errno, node),
  );
  return 0;
}

export function unlink(state: SessionState): number {
  const name = onlyName(state);
  if (typeof name === 'number') return name;
  const pending = state.later();
  state.fileSystem.unlink(state.caller, state.inode.ino, name, (errno) => pending.settle(errno));
  return 0;
}

export function rmdir(state: SessionState): number {
  const name = onlyName(state);
  if (typeof name === 'number') return name;
  const pending = state.later();
  state.fileSystem.rmdir(state.caller, state.inode.ino, name, (errno) => pending.settle(errno));
  return 0;
}

function renameWith(state: SessionState, fixedBytes: number, newdir: number, flags: number): number {
  const { bytes, end } = state;
  const start = BODY + fixedBytes;
  const nameEnd = endOfName(bytes, start, end);
  const newNameEnd = nameEnd < 0 ? -1 : endOfName(bytes, nameEnd + 1, end);
  if (newNameEnd < 0 || newNameEnd + 1 !== end) return EINVAL;
  const name = decodeName(bytes, start, nameEnd);
  if (typeof name === 'number') return name;
  const newName = decodeName(bytes, nameEnd + 1, newNameEnd);
  if (typeof newName === 'number') return newName;
  const newParent = state.inodes.get(newdir);
  if (newParent === undefined) return ESTALE;
  const pending = state.later();
  state.fileSystem.rename(state.caller, state.inode.ino, name, newParent.ino, newName, flags, (errno) =>
    pending.settle(errno),
  );
  return 0;
}

export const rename = (state: SessionState): number =>
  renameWith(state, abi.RenameIn.sizeBytes, abi.RenameIn.newdir.get(state.view, BODY), 0);

export function rename2(state: SessionState): number {
  const flags = abi.Rename2In.flags.get(state.view, BODY);
  if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) !== 0) return EINVAL;
  return renameWith(state, abi.Rename2In.sizeBytes, abi.Rename2In.newdir.get(state.view, BODY), flags);
}

export function create(state: SessionState): number {
  const { view } = state;
  const name = onlyName(state, abi.CreateIn.sizeBytes);
  if (typeof name === 'number') return name;
  if (state.inodes.fullFor(state.caller.uid) || state.handles.full) return ENFILE;
  const flags = abi.CreateIn.flags.get(view, BODY);
  const mode = abi.CreateIn.mode.get(view, BODY) & 0o7777;
  const umask = abi.CreateIn.umask.get(view, BODY) & 0o777;
  const { uid } = state.caller;
  const pending = state.later();
  state.fileSystem.create(state.caller, state.inode.ino, name, mode, umask, flags, (errno, made) => {
    if (errno !== 0 || made === undefined) return pending.fail(errno === 0 ? EIO : errno);
    const { node, handle } = made;
    if (!pending.live || !state.entry(REPLY, node, uid)) {
      state.fileSystem.release(handle, () => undefined);
      return pending.fail(pending.live ? ENFILE : EIO);
    }
    const at = REPLY + abi.EntryOut.sizeBytes;
    abi.OpenOut.fh.set(state.out, at, state.handles.addFile(handle).fh);
    abi.OpenOut.openFlags.set(state.out, at, openFlags(state, handle, state.fileSystem.caching(node)));
    abi.OpenOut.padding.set(state.out, at, 0);
    return pending.finish(abi.EntryOut.sizeBytes + abi.OpenOut.sizeBytes);
  });
  return 0;
}
