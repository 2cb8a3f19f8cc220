/** Twalk: from a fid to another, name by name. */
import { type Node, ROOT_INO } from '../../tree/index.ts';
import { EBADF, EILSEQ, EINVAL, EMFILE, ENOENT, ESTALE } from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { Fid } from '../fids.ts';
import { BODY, type SessionState } from '../state.ts';

const DOT = 0x2e;

/** One step. `.` stays, and `..` of the root is the root. */
function step(state: SessionState, fid: Fid, parentIno: number, index: number): Node | number {
  const { bytes, fileSystem } = state;
  const start = state.parts.starts[index]!;
  const isDots = bytes[start] === DOT;
  if (isDots && state.textBytes(index) === 1) return fileSystem.lookup(fid.caller, parentIno, '.');
  if (isDots && state.textBytes(index) === 2 && bytes[start + 1] === DOT) {
    if (parentIno === ROOT_INO) return fileSystem.node(ROOT_INO) ?? ESTALE;
    return fileSystem.lookup(fid.caller, parentIno, '..');
  }
  const name = state.name(index);
  if (typeof name === 'number') return name === EILSEQ ? ENOENT : name;
  return fileSystem.lookup(fid.caller, parentIno, name);
}

/** The first name that can't be followed is the answer's errno; a later one ends it early, and `newfid` stays what it was. */
export function walk(state: SessionState): number {
  const { view, body, fids, fid } = state;
  if (fid === undefined) return EBADF;
  const number = abi.Twalk.newfid.get(view, body);
  const count = abi.Twalk.nwname.get(view, body);
  if (count > abi.MAXWELEM || number === abi.NOFID || fid.xattr !== undefined) return EINVAL;
  if (number === fid.number ? fid.isOpen : fids.has(number)) return EBADF;
  if (number !== fid.number && fids.fullFor(fid.caller.uid)) return EMFILE;
  let at: Node | undefined;
  let walked = 0;
  for (; walked < count; walked++) {
    const next = step(state, fid, at === undefined ? fid.ino : at.ino, walked);
    if (typeof next === 'number') {
      if (walked === 0) return next;
      break;
    }
    at = next;
    state.qidOf(BODY + abi.Rwalk.sizeBytes + walked * abi.Qid.sizeBytes, next);
  }
  if (walked === count) {
    if (at !== undefined) fids.add(state.newFid(number, fid.caller, at));
    else if (number !== fid.number) {
      const node = state.current(fid);
      fids.add(new Fid(number, fid.caller, node ?? fid.node, fid.mode));
    }
  }
  abi.Rwalk.nwqid.set(state.out, BODY, walked);
  return state.reply(abi.Rwalk.sizeBytes + walked * abi.Qid.sizeBytes);
}
