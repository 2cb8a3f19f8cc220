/** One file, directory or symlink of a tree at one revision. Immutable: a change makes a new object with the same `ino`. */
export interface Node {
  /** Stable for the VM's whole life and never reused. The root's is 1. */
  readonly ino: number;
  /** The directory that names it; 0 once it is unlinked (it lives on while a handle is open). The root is its own parent. */
  readonly parentIno: number;
  /** Its name in that directory, valid Unicode; '' for the root. */
  readonly name: string;
  readonly madeBy: 'outside' | 'guest';
  /** File type and permission bits (`S_IFMT | 07777`), as decisions use them; what a guest is shown may differ (`shownMode`). */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Entries of the POSIX access ACL beyond the mode's three classes, or undefined. */
  readonly acl: Acl | undefined;
  /** Default ACL of a directory, or undefined. */
  readonly defaultAcl: Acl | undefined;
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

/** A POSIX ACL with named entries. The owner's and other's permissions stand in the mode; the mode's group bits are the mask. */
export interface Acl {
  /** Permissions (0 to 7) of the owning group: ACL_GROUP_OBJ. */
  readonly groupObj: number;
  /** ACL_MASK for default ACLs and as stored; equals the mode's group bits in an access ACL. */
  readonly mask: number;
  readonly users: readonly AclEntry[];
  readonly groups: readonly AclEntry[];
  /** ACL_USER_OBJ and ACL_OTHER, needed in default ACLs only. */
  readonly userObj: number;
  readonly other: number;
}

export interface AclEntry {
  /** uid or gid. */
  readonly id: number;
  /** 0 to 7. */
  readonly permissions: number;
}

export const ROOT_INO = 1;
