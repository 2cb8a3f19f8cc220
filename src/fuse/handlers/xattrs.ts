/** GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR. ENOSYS is never answered: it would end attributes for the whole mount. */
import { limits } from '../../tree/index.ts';
import {
  decodeText,
  E2BIG,
  EINVAL,
  ENODATA,
  ENOSYS,
  EOPNOTSUPP,
  ERANGE,
  endOfName,
  XATTR_CREATE,
  XATTR_REPLACE,
} from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { BODY, REPLY, type SessionState } from '../state.ts';

/** XATTR_SIZE_MAX. */
const VALUE_BYTES = 65536;

/** The name from `start` to the NUL at `nul`. Attribute names may hold slashes. */
function attributeName(state: SessionState, start: number, nul: number): string | number {
  if (nul <= start) return EINVAL;
  if (nul - start > limits.nameBytes) return ERANGE;
  const name = decodeText(state.bytes, start, nul);
  return typeof name === 'number' ? ENODATA : name;
}

/** `sizeBytes` 0 asks how long the value is. */
function answer(state: SessionState, value: Uint8Array | number, sizeBytes: number): number {
  if (typeof value === 'number') return value === ENOSYS ? ENODATA : value;
  if (sizeBytes === 0) {
    if (state.room < abi.GetxattrOut.sizeBytes) return ERANGE;
    abi.GetxattrOut.size.set(state.out, REPLY, value.length);
    abi.GetxattrOut.padding.set(state.out, REPLY, 0);
    return state.reply(abi.GetxattrOut.sizeBytes);
  }
  return value.length > Math.min(sizeBytes, state.room) ? ERANGE : state.reply(0, value);
}

export function getxattr(state: SessionState): number {
  const start = BODY + abi.GetxattrIn.sizeBytes;
  const nul = endOfName(state.bytes, start, state.end);
  if (nul + 1 !== state.end) return EINVAL;
  const name = attributeName(state, start, nul);
  if (typeof name === 'number') return name;
  const { inode } = state;
  // Kernels ask for the ACL before they open: what lost its name since it was looked up still has one.
  const value = state.fileSystem.getxattr(state.caller, inode.ino, name, inode.pinned);
  return answer(state, value, abi.GetxattrIn.size.get(state.view, BODY));
}

export const listxattr = (state: SessionState): number =>
  answer(state, state.fileSystem.listxattr(state.caller, state.inode.ino), abi.GetxattrIn.size.get(state.view, BODY));

export function setxattr(state: SessionState): number {
  const start = BODY + abi.FUSE_COMPAT_SETXATTR_IN_SIZE;
  const nul = endOfName(state.bytes, start, state.end);
  const sizeBytes = abi.SetxattrIn.size.get(state.view, BODY);
  const flags = abi.SetxattrIn.flags.get(state.view, BODY);
  if (nul < 0 || nul + 1 + sizeBytes !== state.end) return EINVAL;
  if ((flags & ~(XATTR_CREATE | XATTR_REPLACE)) !== 0) return EINVAL;
  if (sizeBytes > VALUE_BYTES) return E2BIG;
  const name = attributeName(state, start, nul);
  if (typeof name === 'number') return name === ENODATA ? EOPNOTSUPP : name;
  const value = state.bytes.slice(nul + 1, state.end);
  const pending = state.later();
  state.fileSystem.setxattr(state.caller, state.inode.ino, name, value, flags, (errno) =>
    pending.settle(errno === ENOSYS ? EOPNOTSUPP : errno),
  );
  return 0;
}

export function removexattr(state: SessionState): number {
  const nul = endOfName(state.bytes, BODY, state.end);
  if (nul + 1 !== state.end) return EINVAL;
  const name = attributeName(state, BODY, nul);
  if (typeof name === 'number') return name;
  const pending = state.later();
  state.fileSystem.removexattr(state.caller, state.inode.ino, name, (errno) =>
    pending.settle(errno === ENOSYS ? EOPNOTSUPP : errno),
  );
  return 0;
}
