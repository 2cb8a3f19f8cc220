/** Tversion, Tattach, Tflush, Tclunk, Tremove: how a session, a principal, a request and a fid begin and end. */
import { type Caller, ROOT_INO } from '../../tree/index.ts';
import {
  EBADF,
  EBUSY,
  EINTR,
  EINVAL,
  EIO,
  EMFILE,
  EMSGSIZE,
  ENOENT,
  ENOSYS,
  EOPNOTSUPP,
  ESTALE,
  S_IFDIR,
  S_IFMT,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import type { Fid } from '../fids.ts';
import type { Pending } from '../requests.ts';
import { BODY, NOBODY, type SessionState } from '../state.ts';

const UNKNOWN = 'unknown';
const STRING_BYTES = 2;

/** Whatever it says, what was before is over. */
export function version(state: SessionState): number {
  state.forgetEverything();
  const offered = abi.Tversion.msize.get(state.view, state.body);
  if (offered < abi.MIN_MSIZE) return EMSGSIZE;
  const isSpoken = state.text(0) === abi.VERSION;
  const msize = Math.min(offered, state.options.maxMsize);
  if (isSpoken) state.agree(msize);
  const answer = isSpoken ? abi.VERSION : UNKNOWN;
  abi.Rversion.msize.set(state.out, BODY, msize);
  const at = BODY + abi.Rversion.sizeBytes;
  state.out.setUint16(at, answer.length, true);
  state.headText.write(answer, at + STRING_BYTES, 'latin1');
  return state.reply(abi.Rversion.sizeBytes + STRING_BYTES + answer.length);
}

/** Users of the policy are themselves; all others, and who does not say who they are, are nobody. */
function principal(state: SessionState, uid: number | undefined): Caller {
  const asked = uid ?? state.options.uidOfMount() ?? NOBODY;
  return { uid: asked !== NOBODY && state.options.isUser(asked) ? asked : NOBODY, gid: NOBODY, pid: 0 };
}

export function attach(state: SessionState): number {
  const { view, body, fids } = state;
  const number = abi.Tattach.fid.get(view, body);
  if (abi.Tattach.afid.get(view, body) !== abi.NOFID || number === abi.NOFID) return EINVAL;
  if (fids.has(number)) return EBADF;
  const uname = state.text(0);
  const aname = state.text(1);
  if (typeof uname === 'number') return uname;
  if (typeof aname === 'number') return aname;
  const said = abi.NUname.nUname.get(view, state.parts.tail);
  const uid = said === abi.NONUNAME ? undefined : said;
  const caller = principal(state, uid);
  if (fids.fullFor(caller.uid)) return EMFILE;
  const refusal = state.options.attach({ uname, aname, uid });
  if (refusal !== 0) return refusal;
  const root = state.fileSystem.node(ROOT_INO);
  if (root === undefined) return EIO;
  fids.add(state.newFid(number, caller, root));
  state.qidOf(BODY, root);
  return state.reply(abi.Qid.sizeBytes);
}

/**
 * A read that waits is given up without an answer. What has been sent to the tree takes effect or not: its answer goes out
 * first. Either way nothing is said of the flushed tag after Rflush.
 */
export function flush(state: SessionState): number {
  const old = state.requests.get(abi.Tflush.oldtag.get(state.view, state.body));
  if (old?.cancel !== undefined) old.giveUp(0);
  else if (old !== undefined) {
    old.flushedBy(state.later());
    return 0;
  }
  return state.reply(0);
}

/** The fid is gone whatever comes of it; answered when what it had open is closed. */
function close(state: SessionState, fid: Fid, pending: Pending, errno = 0): void {
  const { fileSystem, fids } = state;
  fids.remove(fid);
  state.requests.interrupt(fid, EINTR);
  const { handle, directory, xattr } = fid;
  if (directory !== undefined) fileSystem.releasedir(directory);
  if (handle !== undefined) fileSystem.release(handle, (code) => pending.settle(errno === 0 ? code : errno));
  else if (xattr?.set === undefined || errno !== 0) pending.settle(errno);
  else if (xattr.written !== xattr.bytes.length) pending.fail(EINVAL);
  else {
    const { name, flags } = xattr.set;
    const done = (code: number) => pending.settle(code === ENOSYS ? EOPNOTSUPP : code);
    // No bytes: Linux asks so for removexattr(2).
    if (xattr.bytes.length === 0) fileSystem.removexattr(fid.caller, fid.ino, name, done);
    else fileSystem.setxattr(fid.caller, fid.ino, name, xattr.bytes, flags, done);
  }
}

export function clunk(state: SessionState): number {
  const { fid } = state;
  if (fid === undefined) return EBADF;
  if (!fid.isOpen) {
    state.fids.remove(fid);
    return state.reply(0);
  }
  close(state, fid, state.later());
  return 0;
}

/** Removes what the fid stands for, and ends the fid whether that could be or not. */
export function remove(state: SessionState): number {
  const { fid, fileSystem } = state;
  if (fid === undefined) return EBADF;
  const pending = state.later();
  const node = fileSystem.node(fid.ino);
  const { life } = state;
  const done = (errno: number) => {
    if (state.life === life && state.fids.get(fid.number) === fid) close(state, fid, pending, errno);
    else pending.settle(errno);
  };
  if (node === undefined) done(ESTALE);
  else if (fid.ino === ROOT_INO) done(EBUSY);
  else if (node.parentIno === 0) done(ENOENT);
  else if ((node.mode & S_IFMT) === S_IFDIR) fileSystem.rmdir(fid.caller, node.parentIno, node.name, done);
  else fileSystem.unlink(fid.caller, node.parentIno, node.name, done);
  return 0;
}
