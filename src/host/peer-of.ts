/** Who is at the other end of a socket of Node's. */
import type { Socket } from 'node:net';
import { type PeerCredentials, peerCredentials } from '../sys/index.ts';

/** Or a negative number. Node has no other way to the descriptor of a socket. */
export const peerOf = (socket: Socket): PeerCredentials | number => {
  const { _handle: handle } = socket as Socket & { readonly _handle?: { readonly fd: number } };
  return handle === undefined || handle === null ? -1 : peerCredentials(handle.fd);
};
