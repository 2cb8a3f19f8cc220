/** Brings a spec into a tree: one draft that holds what the outside now says, with what guests made kept. */
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from '../wire/index.ts';
import { isDirectory } from './access.ts';
import { checkName } from './name.ts';
import type { Acl, Node, Time } from './node.ts';
import { ROOT_INO, sameBytes, samePlace } from './node.ts';
import { CHANGES_NAME, defaults, type Effective, isPattern, type Policy } from './policy.ts';
import { CHANGES_INO } from './replica.ts';
import type { Draft, Snapshot } from './snapshot.ts';
import { limits, type Spec, type SpecEntry } from './spec.ts';

/** Owner, mode and ACL that defaults and rules give to what is made outside. */
interface Attributes {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly acl: Acl | undefined;
}

/** Lets a directory be searched where a pattern's mode lets it be read, as `chmod a+X` would. */
const withSearch = (mode: number): number => mode | ((mode & 0o444) >> 2);

function outsideAttributes(effective: Effective, path: string, type: number): Attributes {
  const uid = effective.owner ?? 0;
  const gid = effective.group ?? 0;
  if (type === S_IFLNK) return { mode: S_IFLNK | 0o777, uid, gid, acl: undefined };
  const directory = type === S_IFDIR;
  const rule = effective.sources.get('mode');
  let bits = effective.mode ?? defaults(path, directory).mode;
  if (directory && rule !== undefined && isPattern(rule)) bits = withSearch(bits);
  if (effective.acl === undefined || effective.acl.length === 0) return { mode: type | bits, uid, gid, acl: undefined };
  const groupObj = (bits >> 3) & 7;
  const named = (tag: 'user' | 'group') =>
    effective
      .acl!.filter((entry) => entry.tag === tag)
      .map(({ id, permissions }) => ({ id, permissions }))
      .toSorted((a, b) => a.id - b.id);
  const mask = effective.acl.reduce((union, entry) => union | entry.permissions, groupObj);
  const acl: Acl = {
    userObj: (bits >> 6) & 7,
    groupObj,
    other: bits & 7,
    mask,
    users: named('user'),
    groups: named('group'),
  };
  return { mode: type | (bits & ~0o070) | (mask << 3), uid, gid, acl };
}

/** Directories that every tree has. */
export const standing: readonly SpecEntry[] = [
  { path: '/guest', kind: 'directory' },
  { path: '/guest/.agent', kind: 'directory' },
];

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const typeOf = { directory: S_IFDIR, file: S_IFREG, symlink: S_IFLNK } as const;

export interface Placing {
  readonly draft: Draft;
  readonly policy: Policy;
  readonly now: Time;
  /** The next inode number, never used before. */
  readonly allocate: () => number;
  /**
   * Whether the value of a file or symlink differs from the one that was last loaded for this inode number: then the
   * outside's new value counts, else what is there now (which a guest may have written).
   */
  readonly valueChanged: (ino: number, bytes: Uint8Array) => boolean;
}

const sameAcl = (a: Acl | undefined, b: Acl | undefined): boolean => a === b || JSON.stringify(a) === JSON.stringify(b);

/**
 * Puts every entry of the spec, and removes what was made outside and is in it no more. Throws for entries that make no
 * tree; the draft is not to be used then.
 */
export function placeSpec(entries: readonly SpecEntry[], placing: Placing): void {
  const { draft } = placing;
  const placed = new Map<string, number>();
  const kept = new Set<number>([ROOT_INO, CHANGES_INO]);
  placed.set('/', ROOT_INO);
  placeNode(placing, { path: '/', kind: 'directory' }, ROOT_INO, '', ROOT_INO);
  placeNode(
    placing,
    { path: `/${CHANGES_NAME}`, kind: 'file', bytes: new Uint8Array() },
    ROOT_INO,
    CHANGES_NAME,
    CHANGES_INO,
  );
  const given = new Set(entries.map((entry) => entry.path));
  const missing = standing.filter((entry) => !given.has(entry.path));
  for (const entry of missing) if (entry.path === '/guest') place(placing, entry, placed, kept);
  for (const entry of entries) place(placing, entry, placed, kept);
  for (const entry of missing) if (entry.path !== '/guest') place(placing, entry, placed, kept);
  for (const node of leavesFirst(draft)) {
    if (node.madeBy === 'guest' || kept.has(node.ino)) continue;
    // A directory that still holds what guests made stays until that is gone.
    if (isDirectory(node) && draft.entryCount(node.ino) > 0) reattribute(placing, node);
    else draft.remove(node.ino);
  }
  touchParents(placing);
}

/** A directory's entries are its data: it changes with them. */
export function touchParents({ draft, now }: Placing): void {
  const parents = new Set<number>();
  for (const ino of draft.touched) {
    const before = draft.base.node(ino);
    const after = draft.node(ino);
    if (before !== undefined && after !== undefined && samePlace(before, after)) continue;
    if (before !== undefined) parents.add(before.parentIno);
    if (after !== undefined) parents.add(after.parentIno);
  }
  for (const ino of parents) {
    const directory = draft.node(ino);
    if (directory === undefined || directory.dataRevision === draft.revision) continue;
    draft.put({ ...directory, dataRevision: draft.revision, revision: draft.revision, mtime: now, ctime: now });
  }
}

/** The directory that an entry goes into, and its name there. */
function destination(path: string, placed: ReadonlyMap<string, number>): { parentIno: number; name: string } {
  const slash = path.lastIndexOf('/');
  const parentIno = placed.get(slash <= 0 ? '/' : path.slice(0, slash));
  const name = path.slice(slash + 1);
  const problem =
    slash < 0 || checkName(name) !== 0
      ? 'is no absolute path of names'
      : placed.has(path)
        ? 'is there twice'
        : path === `/${CHANGES_NAME}`
          ? "is the tree's own stream of changes"
          : parentIno === undefined
            ? 'has no directory before it'
            : path.split('/').length - 1 > limits.depth
              ? `is deeper than ${limits.depth} names`
              : undefined;
  if (problem !== undefined)
    throw new TypeError(`cannot place the spec's entry ${JSON.stringify(path)}: it ${problem}`);
  return { parentIno: parentIno!, name };
}

function place(placing: Placing, entry: SpecEntry, placed: Map<string, number>, kept: Set<number>): void {
  const { parentIno, name } = destination(entry.path, placed);
  if (!isDirectory(placing.draft.node(parentIno)!))
    throw new TypeError(`cannot place the spec's entry ${JSON.stringify(entry.path)}: what it lies in is no directory`);
  const there = placing.draft.child(parentIno, name);
  const type = typeOf[entry.kind];
  let ino = there?.ino;
  if (there !== undefined && ((there.mode & S_IFMT) !== type || (there.madeBy === 'guest' && type !== S_IFDIR))) {
    for (const node of [...placing.draft.now.descendants(there)].toReversed()) placing.draft.remove(node.ino);
    ino = undefined;
  }
  ino ??= placing.allocate();
  placed.set(entry.path, ino);
  kept.add(ino);
  placeNode(placing, entry, parentIno, name, ino);
}

/** What the outside makes of one entry, in place of what the outside had there. */
export function placeNode(placing: Placing, entry: SpecEntry, parentIno: number, name: string, ino: number): void {
  const { draft, now } = placing;
  const before = draft.node(ino);
  const type = typeOf[entry.kind];
  const attributes = outsideAttributes(placing.policy.effective(entry.path), entry.path, type);
  const value =
    entry.kind === 'file' ? entry.bytes : entry.kind === 'symlink' ? encoder.encode(entry.target) : undefined;
  const changed = value !== undefined && placing.valueChanged(ino, value);
  const bytes = before === undefined || changed || before.bytes === undefined ? value : before.bytes;
  const bytesMoved =
    before === undefined ||
    (changed && !(before.bytes !== undefined && value !== undefined && sameBytes(before.bytes, value)));
  const burned = changed ? false : (before?.burned ?? false);
  const shown = burned ? new Uint8Array() : bytes;
  const next: Node = {
    ino,
    parentIno,
    name,
    madeBy: 'outside',
    ...attributes,
    defaultAcl: before?.madeBy === 'outside' ? before.defaultAcl : undefined,
    nlink: 1,
    sizeBytes: shown?.length ?? 0,
    bytes: shown,
    burned,
    dataRevision: bytesMoved || burned !== (before?.burned ?? false) ? draft.revision : before!.dataRevision,
    revision: draft.revision,
    atime: before?.atime ?? now,
    mtime: bytesMoved ? now : before!.mtime,
    ctime: now,
  };
  // The outside's value counts from now on also where a guest had written the same: that has to be kept.
  if (before !== undefined && !changed && same(before, next)) {
    // A restored node comes without the bytes that only the spec holds.
    if (before.bytes !== next.bytes) draft.refill({ ...before, bytes: next.bytes });
    return;
  }
  draft.put(next);
}

const same = (a: Node, b: Node): boolean =>
  a.madeBy === b.madeBy &&
  samePlace(a, b) &&
  a.mode === b.mode &&
  a.uid === b.uid &&
  a.gid === b.gid &&
  a.burned === b.burned &&
  a.dataRevision === b.dataRevision &&
  a.sizeBytes === b.sizeBytes &&
  sameAcl(a.acl, b.acl);

/** Gives everything made outside the attributes that the policy now says. */
export function reattributeAll(placing: Pick<Placing, 'draft' | 'policy' | 'now'>): void {
  for (const node of placing.draft.base.nodes.values()) if (node.madeBy === 'outside') reattribute(placing, node);
}

/** The same for one node. */
export function reattribute({ draft, policy, now }: Pick<Placing, 'draft' | 'policy' | 'now'>, node: Node): void {
  const path = draft.now.path(node);
  const attributes = outsideAttributes(policy.effective(path), path, node.mode & S_IFMT);
  const next: Node = { ...node, ...attributes, revision: draft.revision, ctime: now };
  if (!same(node, next)) draft.put(next);
}

/** What the outside made, as it stands, as a spec: what guests made is left out but for directories that hold some of it. */
export function specOfOutside(snapshot: Snapshot, policy: Policy): Spec {
  const entries: SpecEntry[] = [];
  const root = snapshot.node(ROOT_INO);
  const add = (node: Node, path: string): void => {
    const before = entries.length;
    const bytes = node.bytes ?? new Uint8Array();
    if (isDirectory(node)) {
      if (node.ino !== ROOT_INO) entries.push({ path, kind: 'directory' });
      for (const [name, ino] of snapshot.entries(node.ino)) add(snapshot.node(ino)!, `${path}/${name}`);
      if (node.madeBy === 'guest' && entries.length === before + 1) entries.pop();
    } else if (node.madeBy === 'outside' && node.ino !== CHANGES_INO) {
      if ((node.mode & S_IFMT) !== S_IFLNK) entries.push({ path, kind: 'file', bytes });
      else entries.push({ path, kind: 'symlink', target: decoder.decode(bytes) });
    }
  };
  if (root !== undefined) add(root, '');
  return { entries, policy: policy.spec };
}

function leavesFirst(draft: Draft): Node[] {
  const root = draft.node(ROOT_INO);
  return root === undefined ? [] : [...draft.now.descendants(root)].toReversed();
}
