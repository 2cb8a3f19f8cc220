/** What `porthole serve` serves a tree on: checked before a device process starts, cleaned up after the last has ended. */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, lstatSync, readFileSync, realpathSync, statSync, unlinkSync } from 'node:fs';
import { connect, isIPv4, isIPv6 } from 'node:net';
import { dirname, resolve } from 'node:path';
import type { LinkMount, LinkNinep, LinkTarget, LinkVhostUser, LinkVsock } from '../device/index.ts';

/** What was asked for cannot be done as asked; the message says why and what to do. */
export class ServeError extends Error {
  readonly code = 'CANNOT_SERVE';

  constructor(message: string) {
    super(message);
    this.name = 'ServeError';
  }
}

/** sockaddr_un.sun_path less its NUL (unix(7)). */
const socketPathBytes = 107;

/** Checks a socket's path and removes a dead socket that an earlier run left there. */
export const prepareSocket = async (path: string, gid: number | undefined): Promise<LinkVhostUser> => {
  const full = resolve(path);
  if (Buffer.byteLength(full) > socketPathBytes) {
    throw new ServeError(`the socket path "${full}" has more than ${socketPathBytes} bytes; give a shorter one`);
  }
  if (statSync(dirname(full), { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new ServeError(`there is no directory "${dirname(full)}" for the socket; make it first`);
  }
  checkAccess(dirname(full), constants.W_OK | constants.X_OK, 'make a socket there; give another path');
  const there = lstatSync(full, { throwIfNoEntry: false });
  if (there !== undefined && !there.isSocket()) {
    throw new ServeError(`"${full}" is there already and no socket; give another path, or remove it`);
  }
  if (there !== undefined) {
    if (await accepts(full))
      throw new ServeError(`another process listens on "${full}"; stop it, or give another path`);
    unlinkSync(full);
  }
  return gid === undefined ? { path: full, mode: 0o600 } : { path: full, mode: 0o660, gid };
};

/** Room for the port of a service behind the path of a vsock device: `_4294967295`. */
const portCharacters = 11;

/** The sockets of a vsock device: `path` for programs of this machine, and the front end's beside it. */
export const prepareVsock = async (path: string, guestCid: number, gid: number | undefined): Promise<LinkVsock> => {
  const host = await prepareSocket(path, gid);
  if (Buffer.byteLength(host.path) + portCharacters > socketPathBytes) {
    const most = socketPathBytes - portCharacters;
    throw new ServeError(`the vsock path "${host.path}" has more than ${most} bytes; give a shorter one`);
  }
  return { ...(await prepareSocket(`${path}.vhost-user`, gid)), host, guestCid };
};

const accepts = async (path: string): Promise<boolean> => {
  const { promise, resolve: answer } = Promise.withResolvers<boolean>();
  const socket = connect(path);
  socket
    .once('connect', () => answer(true))
    .once('error', (error: NodeJS.ErrnoException) => answer(error.code === 'EAGAIN'));
  try {
    return await promise;
  } finally {
    socket.destroy();
  }
};

/** IANA's port of 9P. */
const defaultPort = 564;
const loopback = /^(127\.|::1$)/;

/** Checks an address or prefix that may connect: `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/32`. */
const checkAllowed = (text: string): string => {
  const [address = '', bits, ...rest] = text.split('/');
  const most = isIPv4(address) ? 32 : isIPv6(address) && !address.includes('%') ? 128 : undefined;
  if (most === undefined || rest.length > 0)
    throw new ServeError(`"${text}" is no address or prefix; write 192.0.2.7 or 192.0.2.0/24`);
  if (bits !== undefined && !(/^\d{1,3}$/.test(bits) && Number(bits) <= most))
    throw new ServeError(`the prefix length in "${text}" must be 0 to ${most}`);
  return text;
};

const vsockPort = (where: string): LinkNinep => {
  const port = Number(where.slice('vsock:'.length));
  if (/^vsock:\d+$/.test(where) && port > 0 && port < 0xffff_ffff) return { path: `vsock:${port}`, vsockPort: port };
  throw new ServeError(`"${where}" is no vsock port; write vsock:${defaultPort}`);
};

/**
 * Where to listen for 9P clients: the path of a socket, `tcp:ADDRESS[:PORT]`, or `vsock:PORT` of the vsock devices. TCP carries everything in clear, so any
 * address but loopback needs `allow`, who may connect to it.
 */
export const prepareNinep = async (
  where: string,
  gid: number | undefined,
  allow: readonly string[],
): Promise<LinkNinep> => {
  if (where.startsWith('vsock:')) return vsockPort(where);
  if (!where.startsWith('tcp:')) return await prepareSocket(where, gid);
  const match = /^tcp:(?:\[(?<six>[^\]]*)\]|(?<four>[^:[\]]*))(?::(?<port>\d{1,5}))?$/.exec(where);
  const address = match?.groups?.['six'] ?? match?.groups?.['four'] ?? '';
  const isSix = match?.groups?.['six'] !== undefined;
  const isAddress = isSix ? isIPv6(address) && !/[.%]/.test(address) : isIPv4(address);
  if (!isAddress)
    throw new ServeError(`"${where}" is no TCP address; write tcp:127.0.0.1, tcp:127.0.0.1:5640 or tcp:[::1]:5640`);
  const port = Number(match?.groups?.['port'] ?? defaultPort);
  if (port < 1 || port > 0xffff) throw new ServeError(`the port in "${where}" must be 1 to 65535`);
  if (!loopback.test(address) && allow.length === 0)
    throw new ServeError(
      `9P on "${where}" could be reached from other machines, in clear; say who may connect by --9p-allow ADDRESS, or listen on tcp:127.0.0.1`,
    );
  const path = `tcp:${isSix ? `[${address}]` : address}:${port}`;
  return { path, address, port, allow: allow.map(checkAllowed) };
};

/** Checks that a directory can be mounted on. */
export const prepareMount = (path: string): LinkMount => {
  const full = resolve(path);
  try {
    if (!statSync(full).isDirectory()) throw new ServeError(`"${full}" is no directory; give one to mount on`);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') throw new ServeError(`there is no directory "${full}" to mount on; make it first`);
    if (code === 'ENOTCONN') throw new ServeError(`a dead mount is left on "${full}"; run: umount '${full}'`);
    throw error;
  }
  // As the kernel lists it.
  const real = realpathSync(full);
  if (isMounted(real)) {
    throw new ServeError(`a FUSE file system is mounted on "${full}" already; unmount it, or give another directory`);
  }
  checkAccess('/dev/fuse', constants.R_OK | constants.W_OK, 'open it; mounting needs root');
  return { path: real };
};

const checkAccess = (path: string, mode: number, purpose: string): void => {
  try {
    accessSync(path, mode);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') throw new ServeError(`there is no "${path}" on this machine; mounting needs it`);
    throw new ServeError(`"${path}": uid ${process.getuid?.()} may not ${purpose} (${code})`);
  }
};

/** The gid of a group by name or number. */
export const groupId = (group: string): number => {
  if (/^\d{1,10}$/.test(group)) return allowedGroup(group, Number(group));
  for (const line of readFileSync('/etc/group', 'utf8').split('\n')) {
    const [name, , gid] = line.split(':');
    if (name === group) return allowedGroup(group, Number(gid));
  }
  throw new ServeError(`there is no group "${group}" on this machine; give another, or its number`);
};

/** Only root may give a file to a group that it is not in (chown(2)). */
const allowedGroup = (group: string, gid: number): number => {
  const own = [process.getegid?.(), ...(process.getgroups?.() ?? [])];
  if (process.geteuid?.() === 0 || own.includes(gid)) return gid;
  throw new ServeError(`only root, or a member of the group "${group}", may let it connect; run it as one of them`);
};

/**
 * Removes what a device process that was killed could not: its sockets, and mounts that nobody answers any more. `made` has
 * the paths that a device process of ours has served on: what stands at the others is somebody else's.
 */
export const cleanUp = (targets: readonly LinkTarget[], made: ReadonlySet<string>): void => {
  for (const { kind, path } of targets) {
    if (kind === 'mount') {
      if (isMounted(path) && (made.has(path) || isDead(path))) spawnSync('umount', ['-l', path], { stdio: 'ignore' });
    } else if (made.has(path) && !/^(tcp|vsock):/.test(path))
      for (const socket of kind === 'vsock' ? vsockPaths(path) : [path]) removeSocket(socket);
  }
};

/** The sockets of a vsock device, by that of its front end. */
const vsockPaths = (path: string): readonly string[] => [path, path.replace(/\.vhost-user$/, '')];

const removeSocket = (path: string): void => {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true) unlinkSync(path);
};

/** Whether nobody answers a mount any more. */
const isDead = (path: string): boolean => {
  try {
    statSync(path);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOTCONN';
  }
};

/** Whether our file system is mounted on a directory (proc_pid_mountinfo(5): octal escapes for blanks). */
const isMounted = (path: string): boolean => {
  const escaped = path.replaceAll(/[ \t\n\\]/g, (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`);
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4] === escaped && / - fuse(\.\S+)? /.test(line));
};
