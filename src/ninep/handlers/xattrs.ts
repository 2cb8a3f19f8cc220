/** Txattrwalk, Txattrcreate: an attribute becomes a fid, to be read, or written and set when the fid is clunked. */
import { limits } from '../../tree/index.ts';
import {
  E2BIG,
  EBADF,
  EINVAL,
  EMFILE,
  ENODATA,
  ENOSPC,
  ENOSYS,
  EOPNOTSUPP,
  ERANGE,
  XATTR_CREATE,
  XATTR_REPLACE,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { Fid } from '../fids.ts';
import { BODY, type SessionState } from '../state.ts';

/** XATTR_SIZE_MAX. */
const VALUE_BYTES = 65536;

/** Attribute names may hold slashes. */
function attributeName(state: SessionState): string | number {
  if (state.textBytes(0) > limits.nameBytes) return ERANGE;
  const name = state.text(0);
  if (typeof name === 'number') return ENODATA;
  return name.includes('\0') ? EINVAL : name;
}

/** The value, or the names where the request names none, as it is now: the fid reads from that, whatever comes later. */
export function xattrwalk(state: SessionState): number {
  const { view, body, fids, fid, fileSystem } = state;
  if (fid === undefined) return EBADF;
  const number = abi.Txattrwalk.newfid.get(view, body);
  if (number === abi.NOFID || fid.xattr !== undefined) return EINVAL;
  if (fids.has(number)) return EBADF;
  if (fids.fullFor(fid.caller.uid)) return EMFILE;
  const name = attributeName(state);
  if (typeof name === 'number') return name;
  const value =
    name === ''
      ? fileSystem.listxattr(fid.caller, fid.ino)
      : // Kernels ask for the ACL before they open: what lost its name since it was looked up still has one.
        fileSystem.getxattr(fid.caller, fid.ino, name, fid.node);
  if (typeof value === 'number') return value === ENOSYS ? ENODATA : value;
  if (!fids.hasRoomForXattr(value.length)) return ENOSPC;
  const made = new Fid(number, fid.caller, fid.node, fid.mode);
  fids.add(made);
  fids.holdXattr(made, { bytes: value, set: undefined, written: 0 });
  abi.Rxattrwalk.size.set(state.out, BODY, value.length);
  return state.reply(abi.Rxattrwalk.sizeBytes);
}

export function xattrcreate(state: SessionState): number {
  const { view, fids, fid } = state;
  const { tail } = state.parts;
  if (fid === undefined) return EBADF;
  if (fid.isOpen) return EINVAL;
  const sizeBytes = abi.XattrcreateTail.attrSize.get(view, tail);
  const flags = abi.XattrcreateTail.flags.get(view, tail);
  if ((flags & ~(XATTR_CREATE | XATTR_REPLACE)) !== 0) return EINVAL;
  if (sizeBytes > VALUE_BYTES) return E2BIG;
  const name = attributeName(state);
  if (typeof name === 'number') return name === ENODATA ? EOPNOTSUPP : name;
  if (name === '') return EINVAL;
  if (!fids.hasRoomForXattr(sizeBytes)) return ENOSPC;
  fids.holdXattr(fid, { bytes: new Uint8Array(sizeBytes), set: { name, flags }, written: 0 });
  return state.reply(0);
}
