/** Connections to the sockets of a QEMU, whose directory belongs to QEMU's user. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { connect, type Socket } from 'node:net';

/** open(2); Node has no name for it. */
const O_PATH = 0o10000000;

/**
 * Connects to the socket that is at `path` itself. A link in its place, which a QEMU that was taken over can put there, leads
 * to another VM's sockets, and is refused. Throws what `open` says, or that it is no socket; the connection fails later.
 */
export function connectToItself(path: string): Socket {
  const fd = openSync(path, O_PATH | constants.O_NOFOLLOW);
  let socket: Socket;
  try {
    if (!fstatSync(fd).isSocket()) throw new Error(`"${path}" is no socket; something was put in its place`);
    socket = connect(`/proc/self/fd/${fd}`);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  let isOpen = true;
  const close = (): void => {
    if (isOpen) closeSync(fd);
    isOpen = false;
  };
  socket.once('connect', close);
  socket.once('close', close);
  return socket;
}
