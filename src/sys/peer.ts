/** Who is at the other end of a connected unix socket, as the kernel knows it (unix(7)). */
import { EINVAL, ERANGE } from '../wire/index.ts';
import * as libc from './libc.ts';

const { result } = libc;

const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SO_PEERGROUPS = 59;

export interface PeerCredentials {
  /** 0 for a process of another pid namespace. */
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** What the peer was when it connected (or called `listen`); or the negative errno. */
export function peerCredentials(fd: number): PeerCredentials | number {
  const ucred = new Int32Array(new ArrayBuffer(12));
  const length = new Uint32Array(new ArrayBuffer(4));
  length[0] = ucred.byteLength;
  const error = result(libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ucred, length));
  if (error < 0) return error;
  if (length[0] !== ucred.byteLength) return -EINVAL;
  // A socket of another family has no peer that the kernel could name.
  if (ucred[1] === -1) return -EINVAL;
  return { pid: ucred[0]!, uid: ucred[1]! >>> 0, gid: ucred[2]! >>> 0 };
}

/** Supplementary groups of the peer when it connected; or the negative errno. */
export function peerGroups(fd: number): number[] | number {
  const length = new Uint32Array(new ArrayBuffer(4));
  for (let room = 32; room <= 65_536; room *= 8) {
    const gids = new Uint32Array(new ArrayBuffer(room * 4));
    length[0] = gids.byteLength;
    const error = result(libc.getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, gids, length));
    if (error === 0) return [...gids.subarray(0, length[0] / 4)];
    if (error !== -ERANGE) return error;
  }
  return -ERANGE;
}

const AF_UNIX = 1;

/**
 * The abstract address that the peer of a connected unix socket is bound to, without its leading NUL; undefined where it is
 * bound to none (or to a file). Or the negative errno.
 */
export function peerName(fd: number): string | undefined | number {
  const address = new Uint8Array(new ArrayBuffer(2 + 108));
  const length = new Uint32Array(new ArrayBuffer(4));
  length[0] = address.length;
  const error = result(libc.getpeername(fd, address, length));
  if (error < 0) return error;
  const bytes = Math.min(length[0], address.length);
  if (address[0] !== AF_UNIX || address[1] !== 0) return -EINVAL;
  return bytes > 3 && address[2] === 0 ? Buffer.from(address.subarray(3, bytes)).toString('latin1') : undefined;
}
