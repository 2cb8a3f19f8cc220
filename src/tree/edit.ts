/**
 * Edits from outside by path, as an API or an operator asks for them. What the outside makes is the outside's, with the owner
 * and mode that the policy gives. What a guest made stays the guest's when the outside writes it: its owner, mode, inode number
 * and place in the quota, but for the bytes; and the outside may remove it. Links are not followed.
 */
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from '../wire/index.ts';
import { isDirectory } from './access.ts';
import { checkName } from './name.ts';
import { type Node, ROOT_INO, sameBytes } from './node.ts';
import { orphan } from './orphan.ts';
import { type Placing, placeNode, standing, touchParents } from './outside.ts';
import { CHANGES_NAME } from './policy.ts';
import { CHANGES_INO } from './replica.ts';
import type { Draft, Snapshot } from './snapshot.ts';
import { limits, type SpecEntry } from './spec.ts';

/** Paths are absolute and normalised. Missing directories above a `put`, `directory` or `symlink` are made. */
export type Edit =
  | { readonly op: 'put'; readonly path: string; readonly bytes: Uint8Array }
  | { readonly op: 'directory'; readonly path: string }
  | { readonly op: 'symlink'; readonly path: string; readonly target: string }
  /** A directory that has entries only if `recursive`. */
  | { readonly op: 'remove'; readonly path: string; readonly recursive: boolean };

/** Of the tree before the edits: something is at the path or not; or its `dataRevision` is the one given. */
export type EditCondition =
  | { readonly path: string; readonly exists: boolean }
  | { readonly path: string; readonly dataRevision: number };

export type TreeErrorCode =
  | 'CONDITION_UNMET'
  | 'NOT_FOUND'
  | 'NOT_A_DIRECTORY'
  | 'IS_A_DIRECTORY'
  | 'NOT_EMPTY'
  /** No absolute path of names without an empty one. */
  | 'PATH_INVALID'
  /** A name that can be none, or is too long. */
  | 'NAME_INVALID'
  | 'TARGET_INVALID'
  /** What every tree has, and only Porthole itself changes. */
  | 'PATH_RESERVED'
  /** A value over its limit, or a path with too many names. */
  | 'TOO_LARGE'
  /** A file that a guest made would grow past what guests may use. */
  | 'QUOTA'
  /** It could not be kept, or what it was decided on could not be: nothing happened. `cause` says why. */
  | 'NOT_KEPT';

/** Why an edit from outside was refused: then none of it happened. Never quotes a value. */
export class TreeError extends Error {
  readonly code: TreeErrorCode;
  /** What it is about; '' for the whole tree. */
  readonly path: string;
  /** With CONDITION_UNMET: the index of the condition. */
  readonly condition: number | undefined;

  constructor(code: TreeErrorCode, path: string, message: string, condition?: number, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'TreeError';
    this.code = code;
    this.path = path;
    this.condition = condition;
  }
}

const quoted = (path: string): string => JSON.stringify(path);

/** Applies all edits, in order, to the draft. TreeError: then the draft is not to be used. */
export function applyEdits(edits: readonly Edit[], placing: Placing): void {
  const editing = new Editing(placing);
  for (const edit of edits) editing.apply(edit);
  touchParents(placing);
}

/** TreeError when one does not hold of the snapshot. */
export function checkConditions(conditions: readonly EditCondition[], snapshot: Snapshot): void {
  for (const [index, condition] of conditions.entries()) {
    const { path } = condition;
    const node = nodeAt(snapshot, namesOf(path));
    const unmet = (what: string) => new TreeError('CONDITION_UNMET', path, `${quoted(path)} ${what}`, index);
    if ('exists' in condition) {
      if (condition.exists && node === undefined) throw unmet('is not there');
      if (!condition.exists && node !== undefined) throw unmet('is there already');
    } else if (node === undefined) {
      throw unmet('is not there');
    } else if (node.dataRevision !== condition.dataRevision) {
      throw unmet(`is at data revision ${node.dataRevision}, not ${condition.dataRevision}`);
    }
  }
}

/** TreeError CONDITION_UNMET. */
export function checkRevision(what: string, revision: number, ifRevision: number | undefined): void {
  if (ifRevision === undefined || ifRevision === revision) return;
  throw new TreeError('CONDITION_UNMET', '', `${what} is at revision ${revision}, not ${ifRevision}`);
}

/** TreeError CONDITION_UNMET: changed after `ifRevision`, which is of the tree; or that lies ahead of it. */
export function checkUnchanged(changed: number, newest: number, ifRevision: number | undefined): void {
  if (ifRevision === undefined || (ifRevision >= changed && ifRevision <= newest)) return;
  throw new TreeError(
    'CONDITION_UNMET',
    '',
    `the tree was changed from outside at revision ${changed}, not ${ifRevision}`,
  );
}

/** Of each path that was edited and is there. */
export function dataRevisionsOf(edits: readonly Edit[], snapshot: Snapshot): Map<string, number> {
  const revisions = new Map<string, number>();
  for (const { path } of edits) {
    const node = snapshot.resolve(path);
    if (node !== undefined) revisions.set(path, node.dataRevision);
  }
  return revisions;
}

export const overQuota = (edits: readonly Edit[]): TreeError => {
  const paths = edits.map(({ path }) => path);
  const what = paths.length === 1 ? JSON.stringify(paths[0]) : 'files that guests made';
  const message = `writing ${what} failed: what guests may use is used up; remove some of it, or raise the quota`;
  return new TreeError('QUOTA', paths.length === 1 ? paths[0]! : '', message);
};

export const notKept = (cause: unknown): TreeError => {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new TreeError('NOT_KEPT', '', `keeping the change failed: ${why}`, undefined, cause);
};

/** The names of a normalised absolute path; none for '/'. */
function namesOf(path: string): string[] {
  if (path === '/') return [];
  if (!path.startsWith('/'))
    throw new TreeError('PATH_INVALID', path, `the path ${quoted(path)} does not begin with "/"`);
  const names = path.slice(1).split('/');
  if (names.includes(''))
    throw new TreeError('PATH_INVALID', path, `the path ${quoted(path)} has an empty name; leave out the extra "/"`);
  for (const name of names) {
    if (checkName(name) === 0) continue;
    const why = `can be no name: it is ".", "..", has NUL, is no Unicode, or has more than ${limits.nameBytes} bytes`;
    throw new TreeError('NAME_INVALID', path, `the name ${quoted(name)} in the path ${quoted(path)} ${why}`);
  }
  if (names.length > limits.depth)
    throw new TreeError('TOO_LARGE', path, `the path has ${names.length} names; ${limits.depth} are allowed`);
  return names;
}

function nodeAt(tree: Snapshot | Draft, names: readonly string[]): Node | undefined {
  let node = tree.node(ROOT_INO);
  for (const name of names) node = node && tree.child(node.ino, name);
  return node;
}

const encoder = new TextEncoder();
const types = { put: S_IFREG, directory: S_IFDIR, symlink: S_IFLNK } as const;

class Editing {
  readonly #placing: Placing;
  readonly #draft: Draft;

  constructor(placing: Placing) {
    this.#placing = placing;
    this.#draft = placing.draft;
  }

  apply(edit: Edit): void {
    const names = namesOf(edit.path);
    if (edit.path === `/${CHANGES_NAME}`)
      throw new TreeError('PATH_RESERVED', edit.path, `"${edit.path}" is the tree's own stream of changes`);
    if (edit.op === 'remove') return this.#remove(edit.path, names, edit.recursive);
    if (edit.op === 'put' && edit.bytes.length > limits.valueBytes) {
      const what = `the value of ${quoted(edit.path)} has ${edit.bytes.length} bytes; ${limits.valueBytes} are allowed`;
      throw new TreeError('TOO_LARGE', edit.path, what);
    }
    if (edit.op === 'symlink') checkTarget(edit.path, edit.target);
    const name = names.pop();
    if (name === undefined) {
      if (edit.op === 'directory') return;
      throw new TreeError('IS_A_DIRECTORY', '/', 'the root is a directory');
    }
    let parentIno = ROOT_INO;
    let path = '';
    for (const above of names) {
      path += `/${above}`;
      parentIno = this.#directory(parentIno, above, path);
    }
    if (edit.op === 'directory') this.#directory(parentIno, name, edit.path);
    else this.#place(edit, parentIno, name);
  }

  /** The directory of that name, made if nothing is there. */
  #directory(parentIno: number, name: string, path: string): number {
    const there = this.#draft.child(parentIno, name);
    if (there === undefined) return this.#make({ path, kind: 'directory' }, parentIno, name);
    if (isDirectory(there)) return there.ino;
    throw new TreeError('NOT_A_DIRECTORY', path, `${quoted(path)} is no directory`);
  }

  #place(edit: Extract<Edit, { op: 'put' | 'symlink' }>, parentIno: number, name: string): void {
    const { path } = edit;
    const there = this.#draft.child(parentIno, name);
    if (there !== undefined && isDirectory(there))
      throw new TreeError('IS_A_DIRECTORY', path, `${quoted(path)} is a directory; remove it first`);
    if (there !== undefined && there.madeBy === 'guest' && (there.mode & S_IFMT) === types[edit.op]) {
      this.#overwrite(there, edit.op === 'put' ? edit.bytes : encoder.encode(edit.target));
      return;
    }
    const entry: SpecEntry =
      edit.op === 'put' ? { path, kind: 'file', bytes: edit.bytes } : { path, kind: 'symlink', target: edit.target };
    if (there !== undefined && (there.mode & S_IFMT) === types[edit.op]) {
      placeNode(this.#placing, entry, parentIno, name, there.ino);
      return;
    }
    if (there !== undefined) this.#take(there);
    this.#make(entry, parentIno, name);
  }

  #make(entry: SpecEntry, parentIno: number, name: string): number {
    const ino = this.#placing.allocate();
    placeNode(this.#placing, entry, parentIno, name, ino);
    return ino;
  }

  /** The bytes of what a guest made. A value that was read once is there again with new bytes. */
  #overwrite(node: Node, bytes: Uint8Array): void {
    const { draft, now } = this.#placing;
    if (!node.burned && sameBytes(node.bytes!, bytes)) return;
    const revision = draft.revision;
    const changed = { burned: false, bytes, sizeBytes: bytes.length, dataRevision: revision, revision };
    draft.put({ ...node, ...changed, mtime: now, ctime: now });
  }

  #remove(path: string, names: readonly string[], recursive: boolean): void {
    if (path === '/' || standing.some((entry) => entry.path === path))
      throw new TreeError('PATH_RESERVED', path, `${quoted(path)} is in every tree; remove what is in it`);
    const node = nodeAt(this.#draft, names);
    if (node === undefined) throw new TreeError('NOT_FOUND', path, `there is no ${quoted(path)}`);
    if (!recursive && this.#draft.entryCount(node.ino) > 0)
      throw new TreeError(
        'NOT_EMPTY',
        path,
        `${quoted(path)} is a directory that is not empty; ask to remove all of it`,
      );
    for (const below of [...this.#draft.now.descendants(node)].toReversed()) this.#take(below);
  }

  /** Whoever has a guest's file open keeps it, as with unlink(2); what the outside made is gone. */
  #take(node: Node): void {
    const { draft, policy, now } = this.#placing;
    if (node.ino === CHANGES_INO) return;
    if (node.madeBy === 'outside') return draft.remove(node.ino);
    orphan(draft, policy, node, now);
  }
}

function checkTarget(path: string, target: string): void {
  const bytes = encoder.encode(target).length;
  if (bytes > 0 && bytes <= limits.symlinkBytes && target.isWellFormed() && !target.includes('\0')) return;
  const what = `the link target of ${quoted(path)} must be text of 1 to ${limits.symlinkBytes} bytes without NUL`;
  throw new TreeError('TARGET_INVALID', path, what);
}
