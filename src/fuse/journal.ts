/** What a session notes down for a successor of its process. A session without one works the same. */
import type { OpenDirectory, OpenFile } from './handles.ts';
import type { Inode } from './inodes.ts';

export interface SessionJournal {
  /** The kernel is about to be given this nodeid for the first time. */
  addInode(inode: Inode): void;
  /** `lookups` changed. */
  countLookups(inode: Inode): void;
  /** `pinned` changed. */
  repin(inode: Inode): void;
  removeInode(inode: Inode): void;
  addFile(file: OpenFile): void;
  removeFile(file: OpenFile): void;
  /** Somebody waits in poll(2) for it (`pollLo`, `pollHi`), or nobody does any more. */
  poll(file: OpenFile, isAwaited: boolean): void;
  addDirectory(open: OpenDirectory): void;
  removeDirectory(open: OpenDirectory): void;
  /** Entries from cookie `from` on were listed; `to` is the cookie after the last one, `name`. */
  list(open: OpenDirectory, from: number, to: number, name: string): void;
  /** Everything above is forgotten: the session begins or ends. */
  wipe(): void;
  initialize(isInitialized: boolean): void;
}

/** What a predecessor's session knew. Root, and what its tables count from, are made anew. */
export interface LeftSession {
  readonly isInitialized: boolean;
  /** By nodeid, ascending. */
  readonly inodes: readonly Inode[];
  readonly files: readonly OpenFile[];
  readonly directories: readonly OpenDirectory[];
  /** Those of `files` that somebody waits for in poll(2). */
  readonly polled: readonly OpenFile[];
  readonly nextNodeid: number;
  readonly nextFh: number;
}
