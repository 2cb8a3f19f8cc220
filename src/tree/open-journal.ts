/** What a file system notes down of what is open, for a successor of its process. One without it works the same. */
import type { Caller } from './caller.ts';
import type { Node } from './node.ts';
import type { OpenFile } from './open-files.ts';

export interface OpenJournal {
  /** From now on only handles keep this version's bytes. */
  keepVersion(node: Node): void;
  /** No handle needs it any more. */
  forgetVersion(node: Node): void;
  /** The pending truncation of a handle has taken effect. */
  truncated(file: OpenFile): void;
  /** Burning has released a value to a handle (`burnt`). */
  burn(file: OpenFile): void;
  /** The version of a handle was given up (`stale`). */
  giveUp(file: OpenFile): void;
  /** The request that is answered next tells a reader of `/.changes` (`toldRevision`, `rest`). */
  tell(file: OpenFile): void;
}

/** An open file as a predecessor left it. */
export interface LeftFile {
  readonly ino: number;
  /** Of the version that was opened. */
  readonly dataRevision: number;
  readonly flags: number;
  readonly caller: Caller;
  readonly stream: boolean;
  readonly pinned: boolean;
  readonly truncates: boolean;
  readonly stale: boolean;
  readonly burnt: Uint8Array | undefined;
  readonly toldRevision: number;
  readonly rest: Uint8Array | undefined;
  /** That version, where only handles keep it: one object for all its handles. */
  readonly version: Node | undefined;
  readonly record: number;
}

/** An open directory as a predecessor left it. */
export interface LeftDirectory {
  readonly ino: number;
  readonly caller: Caller;
  /** Cookies that may be asked for next, and the name of the entry before each. */
  readonly places: readonly { readonly cookie: number; readonly name: string }[];
  readonly record: number;
}
