/** AF_VSOCK sockets: from a guest to its host (vsock(7)). */
import { EINPROGRESS, EINVAL } from '../wire/index.ts';
import * as libc from './libc.ts';
import { SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM } from './socket-numbers.ts';

const { result } = libc;

const AF_VSOCK = 40;
const VMADDR_CID_ANY = 0xffff_ffff;
/** struct sockaddr_vm: family, reserved, port, cid, 4 bytes of zero. */
const ADDRESS_BYTES = 16;

const addressOf = (cid: number, port: number): Uint8Array => {
  const bytes = new Uint8Array(new ArrayBuffer(ADDRESS_BYTES));
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_VSOCK, true);
  view.setUint32(4, port, true);
  view.setUint32(8, cid, true);
  return bytes;
};

const isNumber = (value: number): boolean => Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff;

/**
 * A socket that does not block and is being connected to `port` of `cid` from `fromPort`, which below 1024 takes privilege; or the
 * negative errno, -EADDRINUSE among them. Once it can be written it is connected, or write(2) says why not.
 */
export function connectVsock(cid: number, port: number, fromPort: number): number {
  if (!isNumber(cid) || !isNumber(port) || !isNumber(fromPort)) return -EINVAL;
  const fd = result(libc.socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd < 0) return fd;
  let error = result(libc.bindSocket(fd, addressOf(VMADDR_CID_ANY, fromPort), ADDRESS_BYTES));
  if (error === 0) error = result(libc.connect(fd, addressOf(cid, port), ADDRESS_BYTES));
  if (error === 0 || error === -EINPROGRESS) return fd;
  libc.close(fd);
  return error;
}
