import type { Caller, Way } from './caller.ts';
import type { Change } from './delta.ts';
import type { Node, Time } from './node.ts';
import type { Caching } from './replica.ts';

/** Answer of what has to wait: call `waitRead`, `waitOpen` and so on. No errno has this value. */
export const PENDING = -1;

/** An open file. Bytes of what was made outside and guests can't write are those of the version that was opened. */
export interface Handle {
  readonly ino: number;
  /** The version that was opened. */
  readonly node: Node;
  /** open(2) flags. */
  readonly flags: number;
  /** True for `/.changes`: direct, a stream, not seekable. */
  readonly stream: boolean;
}

/** An open directory: its entries as they were when it was opened or rewound, `.` and `..` first. */
export interface DirectoryHandle {
  readonly ino: number;
}

/** Reused by the next call of `entry`. */
export interface DirectoryEntry {
  readonly name: string;
  readonly ino: number;
  /** File type bits (`S_IFMT`). */
  readonly type: number;
  /** The node as it is now; undefined for one that is gone meanwhile (skip it when attributes are asked for). */
  readonly node: Node | undefined;
}

/** Called exactly once. `errno` 0: `value` holds. */
export type Done<T = undefined> = (errno: number, value: T | undefined) => void;

/** What setattr shall change; a missing key stays. Permission bits 0 to 07777; times may be 'now'. */
export interface SetAttributes {
  readonly mode?: number | undefined;
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  readonly sizeBytes?: number | undefined;
  readonly atime?: Time | 'now' | undefined;
  readonly mtime?: Time | 'now' | undefined;
}

/** statfs(2): the quota, and what guests have used of it. */
export interface StatFs {
  readonly blockSizeBytes: number;
  readonly blocks: number;
  readonly blocksFree: number;
  readonly files: number;
  readonly filesFree: number;
  readonly nameBytes: number;
}

/**
 * Every operation that a guest can ask for, decided by the policy in one place, recorded for the audit where the policy
 * asks for it. Methods answer with a value or a positive errno; mutations answer through `done`, which may be called
 * before the method returns. Nothing throws for what a guest does.
 */
export interface FileSystem {
  readonly way: Way;
  /** Revision of the tree that reads are answered from. */
  readonly revision: number;
  /** The current node, or undefined when the inode number is gone. No decision is made: for transports' bookkeeping only. */
  node(ino: number): Node | undefined;
  caching(node: Node): Caching;
  /** Type and permission bits as the guest is shown them. */
  shownMode(node: Node): number;
  /** Checks search permission on the parent, hides what is hidden. `name` may be `..`. ENOENT, EACCES, ENOTDIR, ENAMETOOLONG, ESTALE. */
  lookup(caller: Caller, parentIno: number, name: string): Node | number;
  /** Attributes of the current node; ESTALE when it is gone. */
  getattr(caller: Caller, ino: number): Node | number;
  /** access(2), where the way in asks us. */
  access(caller: Caller, ino: number, mask: number): number;
  /** Whether the caller may look names up in a directory. Nobody asked for it, so nothing is recorded. */
  maySearch(caller: Caller, ino: number): boolean;
  /** `version` as in `open`. */
  readlink(caller: Caller, ino: number, version?: Node): Uint8Array | number;
  /**
   * Decides and opens. Checks search permission on every ancestor. O_TRUNC is pending until the first write, fsync or
   * release. ESTALE when the node is gone. `version`: pins that version for reading, which was looked up during the same
   * open(2), although it is the current one no more, or gone by now; who wants to write gets the current one, or ENOENT.
   */
  open(caller: Caller, ino: number, flags: number, version?: Node): Handle | number;
  /**
   * Only where others decide: `access`, `readlink`, `open` and `opendir` may answer PENDING there, and these ask, with the same
   * arguments. The caller is copied.
   */
  waitAccess?(caller: Caller, ino: number, mask: number, done: Done): void;
  waitReadlink?(caller: Caller, ino: number, version: Node | undefined, done: Done<Uint8Array>): void;
  waitOpen?(caller: Caller, ino: number, flags: number, version: Node | undefined, done: Done<Handle>): void;
  waitOpendir?(caller: Caller, ino: number, done: Done<DirectoryHandle>): void;
  /** Opens for reading what somebody has open elsewhere already: only what the special keys of rules say is decided. */
  openAgain(caller: Caller, ino: number): Handle | number;
  /** Bytes at `offset`, a view of at most `sizeBytes`; empty at the end; or an errno; or PENDING. */
  read(handle: Handle, offset: number, sizeBytes: number): Uint8Array | number;
  /**
   * Waits for what `read` called PENDING: a change, a burned value, or the truncation that a release has sent upstream and
   * that is not answered (the kernel does not wait for RELEASE: who opens after close(2) must not see the old bytes). Returns
   * how to give up (interrupt): `done` is then called with EINTR.
   */
  waitRead(handle: Handle, offset: number, sizeBytes: number, done: Done<Uint8Array>): () => void;
  /** True when `read` would not wait (POLLIN). */
  readable(handle: Handle): boolean;
  /** From now on the handle, which may write, is as if it had just been opened with O_TRUNC. */
  truncateOnWrite(handle: Handle): void;
  /** The file shows size 0: a truncation is pending, or sent upstream and not answered. */
  pendingTruncation(ino: number): boolean;
  /** `appends`: the handle has O_APPEND now, which fcntl(2) can set and clear; as it was opened where that is not known. */
  write(handle: Handle, offset: number, data: Uint8Array, done: Done<number>, appends?: boolean): void;
  fsync(handle: Handle, done: Done): void;
  /** Ends a handle; a pending truncation takes effect. The handle is gone whatever the errno. */
  release(handle: Handle, done: Done): void;
  opendir(caller: Caller, ino: number): DirectoryHandle | number;
  /** Entry `index` (0 is `.`, 1 is `..`), without what is hidden from the caller; undefined at the end. Index 0 rewinds. */
  entry(caller: Caller, directory: DirectoryHandle, index: number): DirectoryEntry | undefined;
  releasedir(directory: DirectoryHandle): void;
  /** Makes a file and opens it; opens it when it is there and `flags` has no O_EXCL. */
  create(
    caller: Caller,
    parentIno: number,
    name: string,
    mode: number,
    umask: number,
    flags: number,
    done: Done<{ readonly node: Node; readonly handle: Handle }>,
  ): void;
  mkdir(caller: Caller, parentIno: number, name: string, mode: number, umask: number, done: Done<Node>): void;
  symlink(caller: Caller, parentIno: number, name: string, target: Uint8Array, done: Done<Node>): void;
  unlink(caller: Caller, parentIno: number, name: string, done: Done): void;
  rmdir(caller: Caller, parentIno: number, name: string, done: Done): void;
  rename(
    caller: Caller,
    parentIno: number,
    name: string,
    newParentIno: number,
    newName: string,
    flags: number,
    done: Done,
  ): void;
  /** `handle` when the guest gave one (ftruncate). */
  setattr(caller: Caller, ino: number, attributes: SetAttributes, handle: Handle | undefined, done: Done<Node>): void;
  /** `version`: the node as it was known last, for when it is gone. */
  getxattr(caller: Caller, ino: number, name: string, version?: Node): Uint8Array | number;
  /** Names, each ended by NUL. */
  listxattr(caller: Caller, ino: number): Uint8Array | number;
  setxattr(caller: Caller, ino: number, name: string, value: Uint8Array, flags: number, done: Done): void;
  removexattr(caller: Caller, ino: number, name: string, done: Done): void;
  statfs(): StatFs;
  /** Tells of every commit after it is visible here; of every node when the policy is another. Returns how to stop. */
  subscribe(listener: (changes: readonly Change[]) => void): () => void;
  /** Gives every waiting reader a heartbeat line now. */
  flushWaiters(): void;
  /** Drops all handles and waiting readers without answering them. */
  reset(): void;
  tick(nowMs: number): void;
  nextDeadlineMs(): number;
}
