/** Who is at the other end of a socket of Node's. */
import type { Socket } from 'node:net';
import { type PeerCredentials, peerCredentials } from '../sys/index.ts';

/** Of a socket that is open. Node has no other way to its descriptor. */
export const fdOf = (socket: Socket): number | undefined => {
  const { _handle: handle } = socket as Socket & { readonly _handle?: { readonly fd: number } | null };
  return handle?.fd;
};

/** Or a negative number. */
export const peerOf = (socket: Socket): PeerCredentials | number => {
  const fd = fdOf(socket);
  return fd === undefined ? -1 : peerCredentials(fd);
};
