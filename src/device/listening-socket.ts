/** The unix socket of a vhost-user device: made, given its rights, and one that a dead process left behind removed. */
import { chmodSync, chownSync, closeSync, constants, fstatSync, lstatSync, openSync, unlinkSync } from 'node:fs';
import { close, connectUnix, listenUnix } from '../sys/index.ts';
import { EAGAIN, ECONNREFUSED, ENOENT, errnoName } from '../wire/index.ts';
import type { LinkVhostUser } from './link-messages.ts';

/** open(2): a place in the file tree only. Linux has it, Node has no name for it. */
const O_PATH = 0o10_000_000;

/** Listens; until it has its rights, nobody may connect. Throws, in words for people, when that is not possible. */
export function openListeningSocket(socket: LinkVhostUser, backlog?: number): number {
  removeStaleSocket(socket.path);
  const umask = process.umask(0o777);
  const fd = listenUnix(socket.path, backlog);
  process.umask(umask);
  if (fd < 0) throw new Error(`listening on "${socket.path}" failed: ${errnoName(-fd)}`);
  try {
    giveSocketRights(socket);
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

/**
 * Gives a socket its mode and group. Where others may write the directory, a link may stand in the socket's place by now,
 * and chmod(2) would follow it to any file of this machine: so what stands there is held, looked at, and changed itself.
 */
export function giveSocketRights({ path, mode, gid }: LinkVhostUser): void {
  const place = openSync(path, O_PATH | constants.O_NOFOLLOW);
  try {
    if (!fstatSync(place).isSocket()) throw new Error(`"${path}" is no socket any more: somebody replaced it`);
    const held = `/proc/self/fd/${place}`;
    if (gid !== undefined) chownSync(held, -1, gid);
    chmodSync(held, mode);
  } finally {
    closeSync(place);
  }
}

/** Removes a socket that a process left behind when it died; one that somebody listens on stays. */
function removeStaleSocket(path: string): void {
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (there === undefined) return;
  if (!there.isSocket()) throw new Error(`"${path}" exists and is no socket; choose another path or remove it`);
  const fd = connectUnix(path, 'stream', false);
  if (fd >= 0) close(fd);
  // Only a socket that nobody listens on refuses. EAGAIN: its listener has more connections waiting than it takes.
  if (fd === -ECONNREFUSED) return unlinkSync(path);
  if (fd === -ENOENT) return;
  if (fd < 0 && fd !== -EAGAIN)
    throw new Error(`"${path}" is a socket that cannot be asked (${errnoName(-fd)}); choose another path or remove it`);
  throw new Error(`another process listens on "${path}"; stop it or choose another path`);
}
