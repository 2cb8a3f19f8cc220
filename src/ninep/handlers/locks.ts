/** Tlock, Tgetlock. Linux takes a lock among its own processes before it asks us, and each guest is one kernel. */
import { EBADF, EINVAL } from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { BODY, type SessionState } from '../state.ts';

/** 0 when the fid is an open file and the type is one. */
function refusal({ fid, view, body }: SessionState): number {
  if (fid?.handle === undefined && fid?.directory === undefined) return EBADF;
  return abi.Tlock.type.get(view, body) < abi.LOCK_TYPES ? 0 : EINVAL;
}

/** The guest's kernel has granted it among those who share this tree. */
export function lock(state: SessionState): number {
  const errno = refusal(state);
  if (errno !== 0) return errno;
  abi.Rlock.status.set(state.out, BODY, abi.LOCK_SUCCESS);
  return state.reply(abi.Rlock.sizeBytes);
}

/** Nobody but the guest's own processes holds locks: F_UNLCK, for the range that was asked for. */
export function getlock(state: SessionState): number {
  const errno = refusal(state);
  if (errno !== 0) return errno;
  const { body, out, bytes, parts } = state;
  abi.Rgetlock.type.set(out, BODY, abi.LOCK_TYPE_UNLCK);
  const from = body + abi.Tgetlock.start.offset;
  // The client's id comes back with its length.
  const to = parts.ends[0]!;
  state.head.set(bytes.subarray(from, to), BODY + abi.Rgetlock.start.offset);
  return state.reply(abi.Rgetlock.start.offset + to - from);
}
