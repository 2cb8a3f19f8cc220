/** One file, directory or symlink of a tree at one revision. Immutable: a change makes a new object with the same `ino`. */
export interface Node {
  /** Stable for the VM's whole life and never reused. The root's is 1. */
  readonly ino: number;
  /** The directory that names it; 0 once it is unlinked (it lives on while a handle is open). The root is its own parent. */
  readonly parentIno: number;
  /** Its name in that directory, valid Unicode; '' for the root. */
  readonly name: string;
  /** Where it was when it lost its name, if rules guarded or counted it there: they still do, for who has it open. */
  readonly lastPath?: string;
  readonly madeBy: 'outside' | 'guest';
  /** File type and permission bits (`S_IFMT | 07777`), as decisions use them; what a guest is shown may differ (`shownMode`). */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Entries of the POSIX access ACL beyond the mode's three classes, or undefined. */
  readonly acl: Acl | undefined;
  /** Default ACL of a directory, or undefined. */
  readonly defaultAcl: Acl | undefined;
  /** 1, or 0 when unlinked; directories don't count their subdirectories (as on btrfs). */
  readonly nlink: number;
  /** Length of the value or of the link target; 0 for a directory. */
  readonly sizeBytes: number;
  /** Value or link target. Never changed in place. Undefined for directories, and for `once` values outside the authority. */
  readonly bytes: Uint8Array | undefined;
  /** `once` and read: nobody can open it any more. */
  readonly burned: boolean;
  /** Tree revision of the last change of the bytes (or of a directory's entries). */
  readonly dataRevision: number;
  /** Tree revision of the last change of anything. */
  readonly revision: number;
  readonly atime: Time;
  readonly mtime: Time;
  readonly ctime: Time;
}

/** Seconds since the epoch and nanoseconds below a second. */
export interface Time {
  readonly sec: number;
  readonly nsec: number;
}

/** A POSIX ACL (acl(5)). In an access ACL, userObj, other and the mask agree with the mode's three classes. Permissions are 0 to 7. */
export interface Acl {
  readonly userObj: number;
  readonly groupObj: number;
  readonly other: number;
  /** −1 where the ACL has none, which only one without named entries may. */
  readonly mask: number;
  readonly users: readonly AclEntry[];
  readonly groups: readonly AclEntry[];
}

/** A named user or group, and what it may. */
export interface AclEntry {
  /** uid or gid. */
  readonly id: number;
  /** 0 to 7. */
  readonly permissions: number;
}

/** Inode number of the root of every tree. */
export const ROOT_INO = 1;

/** Whether a number is a uid or gid. 2^32 − 1 is none: it means "no change" to chown(2). */
export const isId = (id: number): boolean => id >>> 0 === id && id !== 0xffff_ffff;

/** What is remembered of where an unlinked node was; a guest may hold thousands of them. */
export const LAST_PATH_CHARACTERS = 1024;

/**
 * A node whose name was taken away. A `once` value goes with its name, and so does one that rules guarded at a path that is
 * too long to be remembered: no rule would guard it any more. `lastPath` undefined: no rule speaks of it.
 */
export const orphaned = (
  node: Node,
  { losesValue, lastPath }: { readonly losesValue: boolean; readonly lastPath: string | undefined },
  revision: number,
  now: Time,
): Node => ({
  ...node,
  ...(losesValue && node.bytes !== undefined
    ? { burned: true, bytes: new Uint8Array(), sizeBytes: 0, dataRevision: revision }
    : {}),
  ...(lastPath === undefined ? {} : { lastPath: lastPath.slice(0, LAST_PATH_CHARACTERS) }),
  parentIno: 0,
  nlink: 0,
  revision,
  ctime: now,
});

export const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
};

export const samePlace = (a: Node, b: Node): boolean => a.parentIno === b.parentIno && a.name === b.name;
