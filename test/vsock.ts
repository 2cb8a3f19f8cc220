/** Programs of this machine that connect to a guest by its vsock device. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';

/** A connection with a port of the guest, after its `OK`. Rejects where nobody listens. */
export const dialGuest = async (hostPath: string, port: number): Promise<Socket> => {
  const socket = connect({ path: hostPath, allowHalfOpen: true });
  socket.write(`CONNECT ${port}\n`);
  let line = '';
  while (!line.endsWith('\n')) {
    const byte = socket.read(1) as Buffer | null;
    if (byte !== null) line += byte.toString('latin1');
    else if (socket.readableEnded || socket.destroyed) throw new Error(`port ${port} of the guest is refused`);
    else await Promise.race([once(socket, 'readable'), once(socket, 'close')]);
  }
  assert.match(line, /^OK \d+\n$/);
  return socket;
};
