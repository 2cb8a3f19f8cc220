/**
 * A service at a unix socket, for streams under measurement: `node stream-service.ts SOCKET`. It serves one request of a
 * connection after the other, each a byte and a u32: `e` gives so many bytes back, `s` reads so many and answers with one, `g`
 * sends so many.
 */
import { accept, EPOLLIN, Epoll, listenUnix, read, setNonBlocking, write } from '../src/sys/index.ts';

const [, , socketPath = ''] = process.argv;
const HEAD_BYTES = 5;
const bytes = new Uint8Array(new ArrayBuffer(256 * 1024));
const view = new DataView(bytes.buffer);
const epoll = new Epoll(64);
const listener = listenUnix(socketPath, 16);
if (listener < 0) throw new Error(`listening at "${socketPath}" failed with errno ${-listener}`);
epoll.add(listener, EPOLLIN);

/** Reads `count` bytes, `most` at a time. False at the end. */
function readAll(fd: number, count: number, most: number): boolean {
  for (let left = count; left > 0; ) {
    const got = read(fd, bytes, Math.min(left, most));
    if (got <= 0) return false;
    left -= got;
  }
  return true;
}

function writeAll(fd: number, count: number): boolean {
  for (let left = count; left > 0; ) {
    const sent = write(fd, bytes, Math.min(left, bytes.length));
    if (sent <= 0) return false;
    left -= sent;
  }
  return true;
}

function serve(fd: number): boolean {
  if (!readAll(fd, HEAD_BYTES, HEAD_BYTES)) return false;
  const what = String.fromCharCode(bytes[0]!);
  const count = view.getUint32(1, true);
  if (what === 'g') return writeAll(fd, count);
  if (!readAll(fd, count, bytes.length)) return false;
  return writeAll(fd, what === 'e' ? count : 1);
}

for (;;) {
  const count = epoll.wait(-1);
  for (let i = 0; i < count; i++) {
    const fd = epoll.eventFd(i);
    if (fd === listener) {
      const connection = accept(listener);
      if (connection < 0) continue;
      setNonBlocking(connection, false);
      epoll.add(connection, EPOLLIN);
    } else if (!serve(fd)) epoll.remove(fd);
  }
}
