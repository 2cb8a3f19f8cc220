/** TCP sockets: listening, and whose connection it is (ip(7), tcp(7)). */
import { isIPv4, isIPv6 } from 'node:net';
import { EINVAL } from '../wire/index.ts';
import * as libc from './libc.ts';
import { SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET } from './socket-numbers.ts';

const { result } = libc;

const AF_INET = 2;
const AF_INET6 = 10;
const SO_REUSEADDR = 2;
const SO_KEEPALIVE = 9;
const SO_BINDTODEVICE = 25;
const IPPROTO_IP = 0;
const IP_TTL = 2;
const IP_FREEBIND = 15;
const IPPROTO_IPV6 = 41;
const IPV6_UNICAST_HOPS = 16;
const IPV6_FREEBIND = 78;
/** IFNAMSIZ, with the NUL. */
const DEVICE_NAME_BYTES = 16;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_KEEPIDLE = 4;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;

/** struct sockaddr_in6; struct sockaddr_in is shorter. */
const ADDRESS_BYTES = 28;
/** `sin_addr` and `sin6_addr`. */
const IPV4_AT = 4;
const IPV6_AT = 8;

export interface TcpAddress {
  /** As people write it, IPv4 or IPv6. An IPv4 address in an IPv6 one (`::ffff:…`) is written as IPv4. */
  readonly address: string;
  readonly port: number;
}

/** The eight groups of an IPv6 address without zone and without dots. */
function groupsOf(address: string): number[] {
  const [head = '', tail] = address.split('::');
  const numbers = (text: string): number[] =>
    text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16));
  const [first, last] = [numbers(head), tail === undefined ? [] : numbers(tail)];
  return [...first, ...Array.from({ length: 8 - first.length - last.length }, () => 0), ...last];
}

function socketAddress({ address, port }: TcpAddress): Uint8Array | number {
  if (!Number.isInteger(port) || port < 0 || port > 0xffff) return -EINVAL;
  const bytes = new Uint8Array(new ArrayBuffer(ADDRESS_BYTES));
  const view = new DataView(bytes.buffer);
  view.setUint16(2, port);
  if (isIPv4(address)) {
    view.setUint16(0, AF_INET, true);
    bytes.set(address.split('.').map(Number), IPV4_AT);
    return bytes.subarray(0, 16);
  }
  if (!isIPv6(address) || /[.%]/.test(address)) return -EINVAL;
  view.setUint16(0, AF_INET6, true);
  for (const [index, group] of groupsOf(address).entries()) view.setUint16(IPV6_AT + 2 * index, group);
  return bytes;
}

const option = new Int32Array(new ArrayBuffer(4));

function setOption(fd: number, level: number, name: number, value: number): number {
  option[0] = value;
  return result(libc.setsockopt(fd, level, name, option, option.byteLength));
}

/** For a socket that only the machine at the other end of one network device is to reach. */
export interface DeviceSocket {
  /** Name of the network device: nothing that arrives by another is heard. */
  readonly device: string;
  /** Hops that what is sent may travel (IP_TTL, IPV6_UNICAST_HOPS); 1: not beyond the next machine. */
  readonly hopLimit: number;
}

/** -EINVAL for a name that no device can have. Connections that are accepted have the same. */
function bindToDevice(fd: number, family: number, { device, hopLimit }: DeviceSocket): number {
  const name = new TextEncoder().encode(`${device}\0`);
  if (name.length > DEVICE_NAME_BYTES || name.indexOf(0) !== name.length - 1) return -EINVAL;
  const isV6 = family === AF_INET6;
  return (
    result(libc.setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, name.length)) ||
    // The device may have its address later.
    (isV6 ? setOption(fd, IPPROTO_IPV6, IPV6_FREEBIND, 1) : setOption(fd, IPPROTO_IP, IP_FREEBIND, 1)) ||
    (isV6 ? setOption(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, hopLimit) : setOption(fd, IPPROTO_IP, IP_TTL, hopLimit))
  );
}

/**
 * A non-blocking socket that listens there, and nowhere else; or the negative errno. -EINVAL for what is no address, -ENODEV
 * where there is no such device.
 */
export function listenTcp(at: TcpAddress, backlog = 64, on?: DeviceSocket): number {
  const address = socketAddress(at);
  if (typeof address === 'number') return address;
  const family = address.length === ADDRESS_BYTES ? AF_INET6 : AF_INET;
  const fd = result(libc.socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd < 0) return fd;
  let error = setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (error === 0 && on !== undefined) error = bindToDevice(fd, family, on);
  if (error === 0) error = result(libc.bindSocket(fd, address, address.length));
  if (error === 0) error = result(libc.listen(fd, backlog));
  if (error === 0) return fd;
  libc.close(fd);
  return error;
}

/** Has small answers leave at once, and a peer that is gone without a word noticed after two minutes. */
export function tuneTcp(fd: number): number {
  return (
    setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1) ||
    setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1) ||
    setOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60) ||
    setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10) ||
    setOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 6)
  );
}

/** Who is at the other end of a connected TCP socket; or the negative errno, -EINVAL for a socket of another kind. */
export function tcpPeer(fd: number): TcpAddress | number {
  const bytes = new Uint8Array(new ArrayBuffer(ADDRESS_BYTES));
  const length = new Uint32Array(new ArrayBuffer(4));
  length[0] = bytes.length;
  const error = result(libc.getpeername(fd, bytes, length));
  if (error < 0) return error;
  const view = new DataView(bytes.buffer);
  const family = view.getUint16(0, true);
  const port = view.getUint16(2);
  if (family === AF_INET) return { address: bytes.subarray(IPV4_AT, IPV4_AT + 4).join('.'), port };
  if (family !== AF_INET6) return -EINVAL;
  const groups = Array.from({ length: 8 }, (_, index) => view.getUint16(IPV6_AT + 2 * index));
  const isMapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (isMapped) return { address: bytes.subarray(IPV6_AT + 12, IPV6_AT + 16).join('.'), port };
  return { address: groups.map((group) => group.toString(16)).join(':'), port };
}
