/** Tmkdir, Tmknod, Tsymlink, Trename, Trenameat, Tunlinkat: what changes a directory. */
import { type Done, limits, type Node, ROOT_INO } from '../../tree/index.ts';
import {
  EBADF,
  EBUSY,
  EINVAL,
  EIO,
  ENAMETOOLONG,
  ENOENT,
  EPERM,
  ESTALE,
  O_EXCL,
  O_WRONLY,
  S_IFMT,
  S_IFREG,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import type { Pending } from '../requests.ts';
import { BODY, type SessionState } from '../state.ts';

const NUL = 0;

/** Answers with the qid of what was made. */
const answerQid =
  (state: SessionState, pending: Pending): Done<Node> =>
  (errno, node) => {
    if (errno !== 0 || node === undefined) return pending.fail(errno === 0 ? EIO : errno);
    state.qidOf(BODY, node);
    return pending.finish(abi.Qid.sizeBytes);
  };

export function mkdir(state: SessionState): number {
  const { fid, view } = state;
  const { tail } = state.parts;
  if (fid === undefined) return EBADF;
  const name = state.name(0);
  if (typeof name === 'number') return name;
  const mode = abi.MkdirTail.mode.get(view, tail) & 0o7777;
  const maker = state.maker(fid.caller, abi.MkdirTail.gid.get(view, tail));
  state.fileSystem.mkdir(maker, fid.ino, name, mode, 0, answerQid(state, state.later()));
  return 0;
}

/** A regular file only, as with FUSE. */
export function mknod(state: SessionState): number {
  const { fid, view, fileSystem } = state;
  const { tail } = state.parts;
  if (fid === undefined) return EBADF;
  const mode = abi.MknodTail.mode.get(view, tail);
  if ((mode & S_IFMT) !== S_IFREG) return EPERM;
  const name = state.name(0);
  if (typeof name === 'number') return name;
  const maker = state.maker(fid.caller, abi.MknodTail.gid.get(view, tail));
  const answer = answerQid(state, state.later());
  fileSystem.create(maker, fid.ino, name, mode & 0o7777, 0, O_WRONLY | O_EXCL, (errno, made) => {
    if (made !== undefined) fileSystem.release(made.handle, () => undefined);
    answer(errno, made?.node);
  });
  return 0;
}

export function symlink(state: SessionState): number {
  const { fid, bytes, parts } = state;
  if (fid === undefined) return EBADF;
  const name = state.name(0);
  if (typeof name === 'number') return name;
  const targetBytes = state.textBytes(1);
  const start = parts.starts[1]!;
  if (targetBytes === 0) return EINVAL;
  if (targetBytes > limits.symlinkBytes) return ENAMETOOLONG;
  const target = bytes.slice(start, start + targetBytes);
  if (target.includes(NUL)) return EINVAL;
  const maker = state.maker(fid.caller, abi.SymlinkTail.gid.get(state.view, parts.tail));
  state.fileSystem.symlink(maker, fid.ino, name, target, answerQid(state, state.later()));
  return 0;
}

/** Renames what the fid stands for, by the name that it has now. */
export function rename(state: SessionState): number {
  const { view, body, fids, fid } = state;
  const directory = fids.get(abi.Trename.dfid.get(view, body));
  if (fid === undefined || directory === undefined) return EBADF;
  const name = state.name(0);
  if (typeof name === 'number') return name;
  const node = state.fileSystem.node(fid.ino);
  if (node === undefined) return ESTALE;
  if (fid.ino === ROOT_INO) return EBUSY;
  if (node.parentIno === 0) return ENOENT;
  const pending = state.later();
  state.fileSystem.rename(fid.caller, node.parentIno, node.name, directory.ino, name, 0, (errno) =>
    pending.settle(errno),
  );
  return 0;
}

export function renameat(state: SessionState): number {
  const { view, fids, fid, parts } = state;
  const directory = fids.get(abi.RenameatTail.newdirfid.get(view, parts.tail));
  if (fid === undefined || directory === undefined) return EBADF;
  const name = state.name(0);
  if (typeof name === 'number') return name;
  const newName = state.name(1);
  if (typeof newName === 'number') return newName;
  const pending = state.later();
  state.fileSystem.rename(fid.caller, fid.ino, name, directory.ino, newName, 0, (errno) => pending.settle(errno));
  return 0;
}

export function unlinkat(state: SessionState): number {
  const { fid, fileSystem } = state;
  if (fid === undefined) return EBADF;
  const flags = abi.UnlinkatTail.flags.get(state.view, state.parts.tail);
  if ((flags & ~abi.AT_REMOVEDIR) !== 0) return EINVAL;
  const name = state.name(0);
  if (typeof name === 'number') return name;
  const pending = state.later();
  const done = (errno: number) => pending.settle(errno);
  if (flags === abi.AT_REMOVEDIR) fileSystem.rmdir(fid.caller, fid.ino, name, done);
  else fileSystem.unlink(fid.caller, fid.ino, name, done);
  return 0;
}
