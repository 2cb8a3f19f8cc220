/** A change that a guest asks for. The authority decides it, applies it, has it committed, and answers with an `Outcome`. */
import type { Caller } from './caller.ts';
import type { Done } from './file-system.ts';
import type { Time } from './node.ts';

export type Mutation = { readonly caller: Caller } & (
  | {
      readonly op: 'create';
      readonly parentIno: number;
      readonly name: string;
      /** Permission bits as asked for; `umask` is applied unless the parent has a default ACL. */
      readonly mode: number;
      readonly umask: number;
    }
  | {
      readonly op: 'mkdir';
      readonly parentIno: number;
      readonly name: string;
      readonly mode: number;
      readonly umask: number;
    }
  | { readonly op: 'symlink'; readonly parentIno: number; readonly name: string; readonly target: Uint8Array }
  | { readonly op: 'unlink'; readonly parentIno: number; readonly name: string }
  | { readonly op: 'rmdir'; readonly parentIno: number; readonly name: string }
  | {
      readonly op: 'rename';
      readonly parentIno: number;
      readonly name: string;
      readonly newParentIno: number;
      readonly newName: string;
      /** RENAME_NOREPLACE, RENAME_EXCHANGE or 0. */
      readonly flags: number;
    }
  | {
      readonly op: 'write';
      readonly ino: number;
      /** Ignored when `append`. */
      readonly offset: number;
      readonly data: Uint8Array;
      readonly append: boolean;
      /** The pending truncation of an O_TRUNC open takes effect first, in the same commit. */
      readonly truncate: boolean;
      /** The file was created or opened for writing when it could be: POSIX checks at open only (guest-made files). */
      readonly grantedAtOpen: boolean;
    }
  | {
      readonly op: 'truncate';
      readonly ino: number;
      readonly sizeBytes: number;
      /** By a handle that was opened for writing (ftruncate, O_TRUNC), or by path. */
      readonly grantedAtOpen: boolean;
    }
  | {
      readonly op: 'setattr';
      readonly ino: number;
      readonly mode?: number;
      readonly uid?: number;
      readonly gid?: number;
      /** 'now' needs write permission only; a given time needs ownership (utimensat(2)). */
      readonly atime?: Time | 'now';
      readonly mtime?: Time | 'now';
    }
  | {
      readonly op: 'setxattr';
      readonly ino: number;
      readonly name: string;
      readonly value: Uint8Array;
      readonly flags: number;
    }
  | { readonly op: 'removexattr'; readonly ino: number; readonly name: string }
  /** Burns a `once` value: the outcome carries it. */
  | { readonly op: 'burn'; readonly ino: number }
  /** The replica holds no handle of this unlinked node any more. */
  | { readonly op: 'drop'; readonly ino: number }
);

export interface Outcome {
  /** 0 or why it was refused. */
  readonly errno: number;
  /** Revision of the commit; the replica has applied it before the outcome arrives. 0 when refused. */
  readonly revision: number;
  /** The node made by create, mkdir, symlink; 0 otherwise. */
  readonly ino: number;
  /** The value that `burn` released. */
  readonly bytes?: Uint8Array;
}

/** Called exactly once. */
export type Settle = (outcome: Outcome) => void;

/** Bytes of a node that are not in the replica. */
export interface Fetched {
  /** The caller's to keep. */
  readonly bytes: Uint8Array;
  readonly dataRevision: number;
}

/** Where a `FileSystem` sends mutations: the authority in the same process, or the link to the host daemon. */
export interface Upstream {
  /** Reads `mutation` during the call only, its `data` and `value` too; what has to outlive it is copied. */
  submit(mutation: Mutation, settle: Settle): void;
  /** Whether the request at hand has submitted its next mutation before, in an earlier life of this process. */
  isResumed?(): boolean;
  /** Where bytes of others than `once` values are missing in the replica too: those of a node, for who has it open. */
  fetch?(opener: Caller, ino: number, done: Done<Fetched>): void;
}
