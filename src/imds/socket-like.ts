/** What `node:http` asks of its sockets, for streams that are none: timeouts, and an end after what is written has left. */
import type { Duplex } from 'node:stream';

export interface SocketLike {
  /** Emits `timeout` when nothing has come for so long; 0: never. */
  setTimeout(ms: number): this;
  destroySoon(): void;
}

/** A `net.Socket` has both, and stays as it is. */
export const asSocketLike = (stream: Duplex): Duplex & SocketLike => {
  if ('setTimeout' in stream) return stream as Duplex & SocketLike;
  let timer: NodeJS.Timeout | undefined;
  let idleMs = 0;
  const wait = (): void => {
    clearTimeout(timer);
    timer = idleMs > 0 && !stream.destroyed ? setTimeout(() => stream.emit('timeout'), idleMs) : undefined;
    timer?.unref();
  };
  const push = stream.push.bind(stream);
  const socketLike: Duplex & SocketLike = Object.assign(stream, {
    setTimeout(ms: number): Duplex & SocketLike {
      idleMs = ms;
      wait();
      return socketLike;
    },
    destroySoon(): void {
      if (stream.writable) stream.end(() => stream.destroy());
      else stream.destroy();
    },
    // Whatever arrives passes here, before anybody has taken it.
    push(chunk: unknown, encoding?: BufferEncoding): boolean {
      if (timer !== undefined) wait();
      return push(chunk, encoding);
    },
  });
  stream.once('close', () => clearTimeout(timer));
  return socketLike;
};
