/** Unix sockets with descriptors in their messages (SCM_RIGHTS). */
import { EINVAL, ENAMETOOLONG, EPROTO } from '../wire/index.ts';
import { setNonBlocking } from './fd.ts';
import * as libc from './libc.ts';
import { SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET } from './socket-numbers.ts';

const { result } = libc;

const AF_UNIX = 1;
const SCM_RIGHTS = 1;
const MSG_PEEK = 0x2;
const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;

/** Length of `sun_path`, terminating zero included. */
const PATH_BYTES = 108;

function unixAddress(path: string): Uint8Array | number {
  const bytes = new TextEncoder().encode(path);
  if (bytes.length === 0 || bytes.includes(0)) return -EINVAL;
  if (bytes.length >= PATH_BYTES) return -ENAMETOOLONG;
  const address = new Uint8Array(new ArrayBuffer(2 + bytes.length + 1));
  address[0] = AF_UNIX;
  address.set(bytes, 2);
  return address;
}

/** An address that is no file (unix(7), "abstract"): known to the network namespace, gone with its socket. */
function abstractAddress(name: string): Uint8Array | number {
  const bytes = new TextEncoder().encode(name);
  if (bytes.length === 0) return -EINVAL;
  if (bytes.length >= PATH_BYTES) return -ENAMETOOLONG;
  const address = new Uint8Array(new ArrayBuffer(2 + 1 + bytes.length));
  address[0] = AF_UNIX;
  address.set(bytes, 3);
  return address;
}

/** Bytes, or whole messages with the limits between them kept. */
export type SocketKind = 'stream' | 'packets';

const typeOf = (kind: SocketKind): number => (kind === 'stream' ? SOCK_STREAM : SOCK_SEQPACKET);

/** A connected pair. */
export function socketPair(kind: SocketKind = 'stream'): [number, number] | number {
  const pair = new Int32Array(new ArrayBuffer(8));
  const error = result(libc.socketpair(AF_UNIX, typeOf(kind) | SOCK_CLOEXEC, 0, pair));
  return error < 0 ? error : [pair[0]!, pair[1]!];
}

/** A non-blocking socket that listens at `path`; the path must be free. The mode of its file follows the umask. */
export function listenUnix(path: string, backlog = 8, kind: SocketKind = 'stream'): number {
  const address = unixAddress(path);
  if (typeof address === 'number') return address;
  const fd = result(libc.socket(AF_UNIX, typeOf(kind) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd < 0) return fd;
  let error = result(libc.bindSocket(fd, address, address.length));
  if (error === 0) error = result(libc.listen(fd, backlog));
  if (error === 0) return fd;
  libc.close(fd);
  return error;
}

/** The next connection, non-blocking; -EAGAIN when there is none. */
export const accept = (fd: number): number => result(libc.accept4(fd, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK));

/** Connects to `path`, and waits for it unless it is told not to: then -EAGAIN when its backlog is full. The socket blocks. */
export function connectUnix(path: string, kind: SocketKind = 'stream', waits = true): number {
  const address = unixAddress(path);
  if (typeof address === 'number') return address;
  const fd = result(libc.socket(AF_UNIX, typeOf(kind) | SOCK_CLOEXEC | (waits ? 0 : SOCK_NONBLOCK), 0));
  if (fd < 0) return fd;
  let error = result(libc.connect(fd, address, address.length));
  if (error === 0 && !waits) error = setNonBlocking(fd, false);
  if (error === 0) return fd;
  libc.close(fd);
  return error;
}

/**
 * Connects to `path` from the abstract address `name`, which the other end can read (`peerName`). Does not wait: -EAGAIN when
 * its backlog is full, -EADDRINUSE when somebody has the name. The socket does not block either.
 */
export function connectUnixFrom(name: string, path: string): number {
  const from = abstractAddress(name);
  if (typeof from === 'number') return from;
  const to = unixAddress(path);
  if (typeof to === 'number') return to;
  const fd = result(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd < 0) return fd;
  let error = result(libc.bindSocket(fd, from, from.length));
  if (error === 0) error = result(libc.connect(fd, to, to.length));
  if (error === 0) return fd;
  libc.close(fd);
  return error;
}

const SHUT = { read: 0, write: 1 } as const;

/** Ends one direction of a connection: the other end cannot write any more, or reads to the end. */
export const shutdown = (fd: number, direction: 'read' | 'write'): number => result(libc.shutdown(fd, SHUT[direction]));

/** Sends without waiting and without SIGPIPE; may be short. */
export const send = (fd: number, buffer: Uint8Array, bytes = buffer.byteLength): number =>
  bytes > buffer.byteLength ? -EINVAL : result(libc.send(fd, buffer, bytes, MSG_NOSIGNAL | MSG_DONTWAIT));

/** Receives up to `bytes` bytes without waiting; descriptors that came with them are gone. -ENOTSOCK for what is no socket. */
export function receive(fd: number, buffer: Uint8Array, bytes: number): number {
  if (bytes > buffer.byteLength) return -EINVAL;
  const iov = { base: buffer, length: bytes };
  const message: libc.MessageHeader = {
    name: null,
    nameLength: 0,
    iov,
    iovLength: 1,
    control: null,
    controlLength: 0,
    flags: 0,
  };
  return result(libc.recvmsg(fd, message, MSG_DONTWAIT));
}

/** `struct cmsghdr`: u64 length, i32 level, i32 type, then the data, padded to 8. */
const CMSG_HEADER_BYTES = 16;
/** As many descriptors as one message may bring here. The kernel would carry 253. */
export const MAX_FDS = 32;
const CONTROL_BYTES = CMSG_HEADER_BYTES + MAX_FDS * 4;

/** Sends `buffer` with `fds`, which stay the caller's. */
export function sendWithFds(fd: number, buffer: Uint8Array, bytes: number, fds: readonly number[]): number {
  if (bytes > buffer.byteLength || fds.length > MAX_FDS) return -EINVAL;
  if (fds.length === 0) return send(fd, buffer, bytes);
  const control = new DataView(new ArrayBuffer(CONTROL_BYTES));
  control.setUint32(0, CMSG_HEADER_BYTES + fds.length * 4, true);
  control.setInt32(8, SOL_SOCKET, true);
  control.setInt32(12, SCM_RIGHTS, true);
  for (const [i, sent] of fds.entries()) control.setInt32(CMSG_HEADER_BYTES + i * 4, sent, true);
  const message: libc.MessageHeader = {
    name: null,
    nameLength: 0,
    iov: { base: buffer, length: bytes },
    iovLength: 1,
    control,
    controlLength: Math.ceil((CMSG_HEADER_BYTES + fds.length * 4) / 8) * 8,
    flags: 0,
  };
  return result(libc.sendmsg(fd, message, MSG_NOSIGNAL));
}

/**
 * Receives up to `bytes` bytes into `buffer` without waiting, and appends the descriptors that came with them to `fds`,
 * which become the caller's. Where more came than `mostFds`, all are closed and the result is -EPROTO. `how` 'peek' leaves
 * what it read in the socket; the descriptors are copies then, the caller's all the same.
 */
export function receiveWithFds(
  fd: number,
  buffer: Uint8Array,
  bytes: number,
  fds: number[],
  mostFds = MAX_FDS,
  how: 'take' | 'peek' = 'take',
): number {
  if (bytes > buffer.byteLength) return -EINVAL;
  const control = new DataView(new ArrayBuffer(CONTROL_BYTES));
  const message: libc.MessageHeader = {
    name: null,
    nameLength: 0,
    iov: { base: buffer, length: bytes },
    iovLength: 1,
    control,
    controlLength: CMSG_HEADER_BYTES + Math.min(mostFds, MAX_FDS) * 4,
    flags: 0,
  };
  const flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC | (how === 'peek' ? MSG_PEEK : 0);
  const received = result(libc.recvmsg(fd, message, flags));
  if (received < 0) return received;
  const first = fds.length;
  for (let at = 0; at + CMSG_HEADER_BYTES <= message.controlLength; ) {
    const length = control.getUint32(at, true);
    if (length < CMSG_HEADER_BYTES) break;
    if (control.getInt32(at + 8, true) === SOL_SOCKET && control.getInt32(at + 12, true) === SCM_RIGHTS)
      for (let i = at + CMSG_HEADER_BYTES; i + 4 <= at + length; i += 4) fds.push(control.getInt32(i, true));
    at += Math.ceil(length / 8) * 8;
  }
  if ((message.flags & MSG_CTRUNC) === 0) return received;
  for (const lost of fds.splice(first)) libc.close(lost);
  return -EPROTO;
}

/**
 * Sends one datagram with `fds`, which stay the caller's, to the socket at `path`; `@NAME` is one in Linux's abstract name
 * space (unix(7)). The bytes that were sent, or the negative errno.
 */
export function sendDatagram(path: string, bytes: Uint8Array, fds: readonly number[]): number {
  const address = unixAddress(path.startsWith('@') ? path.slice(1) : path);
  if (typeof address === 'number') return address;
  if (path.startsWith('@')) address.copyWithin(3, 2, address.length - 1).fill(0, 2, 3);
  const fd = result(libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd < 0) return fd;
  const error = result(libc.connect(fd, address, address.length));
  const sent = error < 0 ? error : sendWithFds(fd, bytes, bytes.length, fds);
  libc.close(fd);
  return sent;
}
