/** What `porthole serve` serves a tree on: checked before a device process starts, cleaned up after the last has ended. */
import { spawnSync } from 'node:child_process';
import { lstatSync, readFileSync, statSync, unlinkSync } from 'node:fs';
import { connect } from 'node:net';
import { dirname, resolve } from 'node:path';
import type { LinkMount, LinkTarget, LinkVhostUser } from '../device/index.ts';

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
  return { path: full };
};

/** The gid of a group by name or number. */
export const groupId = (group: string): number => {
  if (/^\d{1,10}$/.test(group)) return Number(group);
  for (const line of readFileSync('/etc/group', 'utf8').split('\n')) {
    const [name, , gid] = line.split(':');
    if (name === group) return Number(gid);
  }
  throw new ServeError(`there is no group "${group}" on this machine; give another, or its number`);
};

/** Removes what a device process that was killed could not: its sockets, and mounts that nobody answers any more. */
export const cleanUp = (targets: readonly LinkTarget[]): void => {
  for (const { kind, path } of targets) {
    if (kind === 'mount') {
      if (isMounted(path)) spawnSync('umount', ['-l', path], { stdio: 'ignore' });
    } else if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true) unlinkSync(path);
  }
};

/** Whether our file system is mounted on a directory (proc_pid_mountinfo(5): octal escapes for blanks). */
const isMounted = (path: string): boolean => {
  const escaped = path.replaceAll(/[ \t\n\\]/g, (c) => `\\${c.charCodeAt(0).toString(8).padStart(3, '0')}`);
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4] === escaped && / - fuse(\.\S+)? /.test(line));
};
