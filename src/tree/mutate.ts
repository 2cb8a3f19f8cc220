/**
 * What each mutation does to a draft, and the decision whether it may: one function a mutation. POSIX semantics for what
 * guests made; what was made outside belongs to the outside, and a guest may only write its data.
 */
import {
  EACCES,
  EEXIST,
  EFBIG,
  EINVAL,
  EISDIR,
  ENAMETOOLONG,
  ENODATA,
  ENOENT,
  ENOTDIR,
  ENOTEMPTY,
  EOPNOTSUPP,
  EPERM,
  ESTALE,
  EXDEV,
  R_OK,
  RENAME_EXCHANGE,
  RENAME_NOREPLACE,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  S_ISGID,
  S_ISUID,
  S_ISVTX,
  W_OK,
  X_OK,
  XATTR_CREATE,
  XATTR_REPLACE,
} from '../wire/index.ts';
import { isDirectory } from './access.ts';
import { ACCESS_XATTR, aclMode, chmodAcl, DEFAULT_XATTR, decodeAcl, inheritAcl, isMinimal } from './acl.ts';
import type { Caller, Way } from './caller.ts';
import type { Mutation } from './mutation.ts';
import { checkName } from './name.ts';
import { isId, type Node, ROOT_INO, type Time } from './node.ts';
import { orphan } from './orphan.ts';
import { CHANGES_INO, type Replica } from './replica.ts';
import type { Draft } from './snapshot.ts';
import { limits } from './spec.ts';

export interface MutationContext {
  readonly draft: Draft;
  readonly replica: Replica;
  readonly way: Way;
  readonly now: Time;
  readonly wallMs: number;
  readonly allocate: () => number;
}

export interface MutationResult {
  readonly errno: number;
  /** Of the node that was made, else 0. */
  readonly ino: number;
  /** What the decision was about, for the audit; undefined where nothing was decided (a name that can't be one). */
  readonly target: Node | undefined;
  /** Made outside, and holds a guest's bytes now. */
  readonly writes?: number;
  readonly bytes?: Uint8Array;
}

type Of<Op extends Mutation['op']> = Extract<Mutation, { op: Op }>;

const refuse = (errno: number, target?: Node): MutationResult => ({ errno, ino: 0, target });
const done = (target: Node, ino = 0): MutationResult => ({ errno: 0, ino, target });

/** Applies a mutation to the draft. When `errno` is not 0 the draft is not to be used. `drop` is the authority's own. */
export function mutate(mutation: Exclude<Mutation, { op: 'drop' }>, context: MutationContext): MutationResult {
  switch (mutation.op) {
    case 'create':
      return make(mutation, S_IFREG, new Uint8Array(), context);
    case 'mkdir':
      return make(mutation, S_IFDIR, undefined, context);
    case 'symlink':
      return makeSymlink(mutation, context);
    case 'unlink':
      return unlink(mutation, context);
    case 'rmdir':
      return rmdir(mutation, context);
    case 'rename':
      return rename(mutation, context);
    case 'write':
      return write(mutation, context);
    case 'truncate':
      return truncate(mutation, context);
    case 'setattr':
      return setattr(mutation, context);
    case 'setxattr':
      return setxattr(mutation, context);
    case 'removexattr':
      return removexattr(mutation, context);
    case 'burn':
      return burn(mutation, context);
  }
}

const decide = (context: MutationContext, node: Node, caller: Caller, mask: number): number =>
  context.replica.decide(context.way, node, caller, mask, context.wallMs);

/** Whether the caller may search all directories above a node, as far as nobody else has checked that. */
const reachable = ({ replica, way, wallMs }: MutationContext, node: Node, caller: Caller): boolean =>
  replica.reachable(way, node, caller, wallMs);

/** Whether the caller must not learn from an errno that a name is there. */
const hides = ({ replica, way, wallMs }: MutationContext, node: Node, caller: Caller): boolean =>
  replica.hides(way, node, caller, wallMs);

/** Marks a directory's entries as changed. */
function touchDirectory({ draft, now }: MutationContext, ino: number): void {
  const directory = draft.node(ino)!;
  draft.put({ ...directory, dataRevision: draft.revision, revision: draft.revision, mtime: now, ctime: now });
}

/** A directory that the caller may search, or an errno. */
function directoryOf(context: MutationContext, ino: number, caller: Caller): Node | number {
  const directory = context.draft.node(ino);
  if (directory === undefined) return ESTALE;
  if (!isDirectory(directory)) return ENOTDIR;
  if (directory.parentIno === 0 && ino !== ROOT_INO) return ENOENT;
  if (!reachable(context, directory, caller)) return EACCES;
  return decide(context, directory, caller, X_OK) === 0 ? directory : EACCES;
}

/** Whether the caller may add and remove entries. */
const mayChangeEntries = (context: MutationContext, directory: Node, caller: Caller): boolean =>
  decide(context, directory, caller, W_OK) === 0;

/** chmod(2) and rename(2) in a sticky directory: root, the directory's owner and the file's owner only. */
const stickyRefuses = (directory: Node, node: Node, caller: Caller): boolean =>
  (directory.mode & S_ISVTX) !== 0 && caller.uid !== 0 && caller.uid !== node.uid && caller.uid !== directory.uid;

/** `writeOnce` and written: nobody changes it any more. */
const sealed = (context: MutationContext, node: Node): boolean =>
  node.sizeBytes > 0 && !isDirectory(node) && context.replica.facts(node).effective.writeOnce;

function make(
  mutation: Of<'create'> | Of<'mkdir'> | Of<'symlink'>,
  type: number,
  bytes: Uint8Array | undefined,
  context: MutationContext,
): MutationResult {
  const { draft, now } = context;
  const { caller, name, parentIno } = mutation;
  const bad = checkName(name);
  if (bad !== 0) return refuse(bad);
  const parent = directoryOf(context, parentIno, caller);
  if (typeof parent === 'number') return refuse(parent, draft.node(parentIno));
  const there = draft.child(parentIno, name);
  if (there !== undefined && !hides(context, there, caller)) return refuse(EEXIST);
  if (!mayChangeEntries(context, parent, caller)) return refuse(EACCES, parent);
  if (there !== undefined) return refuse(EEXIST);
  if (depth(draft, parent) + 1 > limits.depth) return refuse(ENAMETOOLONG);
  let mode = type === S_IFLNK ? 0o777 : (mutation as Of<'create'>).mode & 0o7777;
  let acl: Node['acl'];
  if (type !== S_IFLNK) {
    if (parent.defaultAcl === undefined) mode &= ~((mutation as Of<'create'>).umask & 0o777);
    else ({ mode, acl } = inheritAcl(parent.defaultAcl, mode));
  }
  const inherits = (parent.mode & S_ISGID) !== 0;
  const gid = inherits ? parent.gid : caller.gid;
  if (inherits && type === S_IFDIR) mode |= S_ISGID;
  else if (!mayKeepSetgid(context, caller, gid) && (mode & 0o010) !== 0) mode &= ~S_ISGID;
  const node: Node = {
    ino: context.allocate(),
    parentIno,
    name,
    madeBy: 'guest',
    mode: type | mode,
    uid: caller.uid,
    gid,
    acl,
    defaultAcl: type === S_IFDIR ? parent.defaultAcl : undefined,
    nlink: 1,
    sizeBytes: bytes?.length ?? 0,
    bytes,
    burned: false,
    dataRevision: draft.revision,
    revision: draft.revision,
    atime: now,
    mtime: now,
    ctime: now,
  };
  draft.put(node);
  touchDirectory(context, parentIno);
  return done(node, node.ino);
}

const mayKeepSetgid = ({ way }: MutationContext, caller: Caller, gid: number): boolean =>
  caller.uid === 0 ||
  caller.gid === gid ||
  caller.groups?.includes(gid) === true ||
  (way.kernelChecks && caller.groups === undefined);

function makeSymlink(mutation: Of<'symlink'>, context: MutationContext): MutationResult {
  if (mutation.target.length === 0) return refuse(ENOENT);
  if (mutation.target.length > limits.symlinkBytes) return refuse(ENAMETOOLONG);
  if (mutation.target.includes(0)) return refuse(EINVAL);
  return make(mutation, S_IFLNK, mutation.target, context);
}

/** How many names lead to a node. */
function depth(draft: Draft, node: Node): number {
  let count = 0;
  for (let at: Node | undefined = node; at !== undefined && at.ino !== ROOT_INO; at = draft.node(at.parentIno)) count++;
  return count;
}

function height(draft: Draft, node: Node): number {
  if (!isDirectory(node)) return 0;
  let most = 0;
  for (const [, ino] of draft.now.entries(node.ino)) most = Math.max(most, 1 + height(draft, draft.node(ino)!));
  return most;
}

/** 0 if the caller may take `node` out of `directory`. */
function mayRemove(context: MutationContext, directory: Node, node: Node, caller: Caller): number {
  // Root is told the real reason: it may write any directory, as on a disk.
  if (node.madeBy === 'outside' && caller.uid === 0) return EPERM;
  if (!mayChangeEntries(context, directory, caller)) return EACCES;
  if (node.madeBy === 'outside' || stickyRefuses(directory, node, caller) || sealed(context, node)) return EPERM;
  return 0;
}

function unlink({ caller, parentIno, name }: Of<'unlink'>, context: MutationContext): MutationResult {
  const { draft } = context;
  const parent = directoryOf(context, parentIno, caller);
  if (typeof parent === 'number') return refuse(parent, draft.node(parentIno));
  const node = draft.child(parentIno, name);
  if (node === undefined || hides(context, node, caller)) return refuse(ENOENT);
  const errno = mayRemove(context, parent, node, caller);
  if (errno !== 0) return refuse(errno, node);
  if (isDirectory(node)) return refuse(EISDIR);
  orphan(draft, context.replica.policy, node, context.now);
  touchDirectory(context, parentIno);
  return done(node);
}

function rmdir({ caller, parentIno, name }: Of<'rmdir'>, context: MutationContext): MutationResult {
  const { draft } = context;
  const parent = directoryOf(context, parentIno, caller);
  if (typeof parent === 'number') return refuse(parent, draft.node(parentIno));
  const node = draft.child(parentIno, name);
  if (node === undefined || hides(context, node, caller)) return refuse(ENOENT);
  const errno = mayRemove(context, parent, node, caller);
  if (errno !== 0) return refuse(errno, node);
  if (!isDirectory(node)) return refuse(ENOTDIR);
  if (draft.entryCount(node.ino) > 0) return refuse(ENOTEMPTY);
  orphan(draft, context.replica.policy, node, context.now);
  touchDirectory(context, parentIno);
  return done(node);
}

function rename(mutation: Of<'rename'>, context: MutationContext): MutationResult {
  const { draft, now } = context;
  const { caller, parentIno, name, newParentIno, newName, flags } = mutation;
  const bad = checkName(newName);
  if (bad !== 0) return refuse(bad);
  if (flags !== 0 && flags !== RENAME_NOREPLACE && flags !== RENAME_EXCHANGE) return refuse(EINVAL);
  const from = directoryOf(context, parentIno, caller);
  if (typeof from === 'number') return refuse(from, draft.node(parentIno));
  const to = directoryOf(context, newParentIno, caller);
  if (typeof to === 'number') return refuse(to, draft.node(newParentIno));
  const node = draft.child(parentIno, name);
  if (node === undefined || hides(context, node, caller)) return refuse(ENOENT);
  const over = draft.child(newParentIno, newName);
  const seesOver = over !== undefined && !hides(context, over, caller);
  if (seesOver && flags === RENAME_NOREPLACE) return refuse(EEXIST);
  if (!seesOver && flags === RENAME_EXCHANGE) return refuse(ENOENT);
  const errno = mayRemove(context, from, node, caller);
  if (errno !== 0) return refuse(errno, node);
  if (!seesOver && !mayChangeEntries(context, to, caller)) return refuse(EACCES, to);
  if (over !== undefined) {
    if (flags === RENAME_NOREPLACE) return refuse(EEXIST);
    const overErrno = mayRemove(context, to, over, caller);
    if (overErrno !== 0) return refuse(overErrno, over);
  }
  if (over?.ino === node.ino) return done(node);
  if (isWithin(draft, to, node) || (over !== undefined && flags === RENAME_EXCHANGE && isWithin(draft, from, over)))
    return refuse(EINVAL);
  // Moving a directory rewrites its `..`, which takes write permission on it.
  for (const moved of flags === RENAME_EXCHANGE ? [node, over!] : [node]) {
    if (isDirectory(moved) && from.ino !== to.ino && decide(context, moved, caller, W_OK) !== 0)
      return refuse(EACCES, moved);
  }
  if (over !== undefined && flags !== RENAME_EXCHANGE) {
    if (isDirectory(over) && !isDirectory(node)) return refuse(EISDIR);
    if (!isDirectory(over) && isDirectory(node)) return refuse(ENOTDIR);
    if (isDirectory(over) && draft.entryCount(over.ino) > 0) return refuse(ENOTEMPTY);
    if (isWithin(draft, from, over)) return refuse(ENOTEMPTY);
    orphan(draft, context.replica.policy, over, now);
  }
  if (depth(draft, to) + 1 + height(draft, node) > limits.depth) return refuse(ENAMETOOLONG);
  if (flags === RENAME_EXCHANGE && depth(draft, from) + 1 + height(draft, over!) > limits.depth)
    return refuse(ENAMETOOLONG);
  if (escapes(context, node, pathIn(context, to, newName))) return refuse(EXDEV, node);
  if (flags === RENAME_EXCHANGE && escapes(context, over!, pathIn(context, from, name))) return refuse(EXDEV, over);
  draft.put({ ...node, parentIno: newParentIno, name: newName, revision: draft.revision, ctime: now });
  if (over !== undefined && flags === RENAME_EXCHANGE)
    draft.put({ ...over, parentIno, name, revision: draft.revision, ctime: now });
  touchDirectory(context, parentIno);
  if (newParentIno !== parentIno) touchDirectory(context, newParentIno);
  return done(node);
}

const pathIn = ({ replica }: MutationContext, directory: Node, name: string): string => {
  const path = replica.snapshot.path(directory);
  return path === '/' ? `/${name}` : `${path}/${name}`;
};

/**
 * Whether a node, or one below it, would leave a rule that guards it by more than mode and ACL (`root: deny`, `hidden`,
 * `writeOnce`, …). Then it is as with another file system: who may read it can copy it, and is asked for that.
 */
function escapes({ draft, replica }: MutationContext, top: Node, newPath: string): boolean {
  const { policy, snapshot } = replica;
  const oldPath = snapshot.path(top);
  // A guest moves thousands of nodes by one rename: none of them is looked at for rules that are about other places.
  if (!policy.guardsWithin(oldPath)) return false;
  for (const node of draft.now.descendants(top)) {
    const path = node === top ? oldPath : snapshot.path(node);
    const before = policy.effective(path);
    if (before.special || before.writeOnce) {
      if (policy.effective(newPath + path.slice(oldPath.length)) !== before) return true;
    }
  }
  return false;
}

/** Whether `directory` is `top` or lies below it. */
function isWithin(draft: Draft, directory: Node, top: Node): boolean {
  for (let at: Node | undefined = directory; at !== undefined; at = draft.node(at.parentIno)) {
    if (at.ino === top.ino) return true;
    if (at.ino === ROOT_INO || at.parentIno === 0) return false;
  }
  return false;
}

/**
 * 0 if the caller may write the bytes of a file: POSIX asks at open only, and so it is with the mode of what guests made; all
 * that the policy says counts each time.
 */
function mayWrite(context: MutationContext, node: Node, caller: Caller, grantedAtOpen: boolean): number {
  if (isDirectory(node)) return EISDIR;
  if ((node.mode & S_IFMT) !== S_IFREG) return EINVAL;
  if (node.ino === CHANGES_INO) return EACCES;
  if (!grantedAtOpen && !reachable(context, node, caller)) return EACCES;
  const { replica, way, wallMs } = context;
  const errno = grantedAtOpen
    ? replica.decideOpened(way, node, caller, W_OK, wallMs)
    : decide(context, node, caller, W_OK);
  if (errno !== 0) return errno;
  return sealed(context, node) ? EPERM : 0;
}

/** Writing by anybody but root takes set-user-id away, and set-group-id where the group may execute (write(2)). */
const withoutSetid = (mode: number, caller: Caller): number => (caller.uid === 0 ? mode : killSetid(mode));
const killSetid = (mode: number): number => mode & ~(S_ISUID | ((mode & 0o010) !== 0 ? S_ISGID : 0));

function replaceBytes(context: MutationContext, node: Node, bytes: Uint8Array, caller: Caller): MutationResult {
  const { draft, now } = context;
  draft.put({
    ...node,
    mode: withoutSetid(node.mode, caller),
    bytes,
    sizeBytes: bytes.length,
    dataRevision: draft.revision,
    revision: draft.revision,
    mtime: now,
    ctime: now,
  });
  const result = done(node);
  return node.madeBy === 'outside' ? { ...result, writes: node.ino } : result;
}

function write(mutation: Of<'write'>, context: MutationContext): MutationResult {
  const { caller, data } = mutation;
  const node = context.draft.node(mutation.ino);
  if (node === undefined) return refuse(ESTALE);
  const errno = mayWrite(context, node, caller, mutation.grantedAtOpen);
  if (errno !== 0) return refuse(errno, node);
  const old = mutation.truncate ? new Uint8Array() : node.bytes!;
  const offset = mutation.append ? old.length : mutation.offset;
  if (!Number.isSafeInteger(offset) || offset < 0) return refuse(EINVAL);
  // Writing nothing changes nothing, not even the size.
  const end = data.length === 0 ? old.length : offset + data.length;
  if (end > limits.valueBytes) return refuse(EFBIG);
  const bytes = new Uint8Array(Math.max(old.length, end));
  bytes.set(old);
  if (data.length > 0) bytes.set(data, offset);
  return replaceBytes(context, node, bytes, caller);
}

function truncate({ caller, ino, sizeBytes, grantedAtOpen }: Of<'truncate'>, context: MutationContext): MutationResult {
  const node = context.draft.node(ino);
  if (node === undefined) return refuse(ESTALE);
  const errno = mayWrite(context, node, caller, grantedAtOpen);
  if (errno !== 0) return refuse(errno, node);
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) return refuse(EINVAL);
  if (sizeBytes > limits.valueBytes) return refuse(EFBIG);
  const bytes = new Uint8Array(sizeBytes);
  bytes.set(node.bytes!.subarray(0, sizeBytes));
  return replaceBytes(context, node, bytes, caller);
}

function setattr(mutation: Of<'setattr'>, context: MutationContext): MutationResult {
  const { draft, now } = context;
  const { caller } = mutation;
  const node = draft.node(mutation.ino);
  if (node === undefined) return refuse(ESTALE);
  for (const id of [mutation.uid, mutation.gid]) if (id !== undefined && !isId(id)) return refuse(EINVAL);
  for (const time of [mutation.atime, mutation.mtime]) if (!isTime(time)) return refuse(EINVAL);
  if (!reachable(context, node, caller)) return refuse(EACCES, node);
  const isTouch = mutation.atime === 'now' && mutation.mtime === 'now';
  const timesOnly = mutation.mode === undefined && mutation.uid === undefined && mutation.gid === undefined;
  if (node.madeBy === 'outside') {
    // touch(1) on what one may write is no change that anybody sees: its times tell when bytes changed.
    const touches = timesOnly && isTouch && decide(context, node, caller, W_OK) === 0;
    return touches ? done(node) : refuse(EPERM, node);
  }
  const owns = caller.uid === 0 || caller.uid === node.uid;
  let { mode, uid, gid, acl } = node;
  if (mutation.uid !== undefined || mutation.gid !== undefined) {
    const newUid = mutation.uid ?? uid;
    const newGid = mutation.gid ?? gid;
    if (caller.uid !== 0) {
      if (newUid !== uid || caller.uid !== uid) return refuse(EPERM, node);
      if (newGid !== gid && !mayKeepSetgid(context, caller, newGid)) return refuse(EPERM, node);
    }
    uid = newUid;
    gid = newGid;
    if (!isDirectory(node)) mode = killSetid(mode);
  }
  if (mutation.mode !== undefined) {
    if (!owns) return refuse(EPERM, node);
    let bits = mutation.mode & 0o7777;
    if (!mayKeepSetgid(context, caller, gid)) bits &= ~S_ISGID;
    mode = (mode & S_IFMT) | bits;
    if (acl !== undefined) acl = chmodAcl(acl, bits);
  }
  const times = mutation.atime !== undefined || mutation.mtime !== undefined;
  if (times && !owns) {
    // Both to now is what utimensat(2) grants to who may write; one of them is as good as a time that was given.
    if (!isTouch) return refuse(EPERM, node);
    if (decide(context, node, caller, W_OK) !== 0) return refuse(EACCES, node);
  }
  const time = (asked: Time | 'now' | undefined, old: Time): Time =>
    asked === undefined ? old : asked === 'now' ? now : asked;
  draft.put({
    ...node,
    mode,
    uid,
    gid,
    acl,
    atime: time(mutation.atime, node.atime),
    mtime: time(mutation.mtime, node.mtime),
    ctime: now,
    revision: draft.revision,
  });
  return done(node);
}

const isTime = (time: Time | 'now' | undefined): boolean =>
  typeof time !== 'object' ||
  (Number.isSafeInteger(time.sec) && Number.isInteger(time.nsec) && time.nsec >= 0 && time.nsec < 1e9);

/** A node whose ACL the caller may change, or why not. */
function aclOwner(ino: number, name: string, caller: Caller, context: MutationContext): Node | MutationResult {
  const node = context.draft.node(ino);
  if (node === undefined) return refuse(ESTALE);
  if (name !== ACCESS_XATTR && name !== DEFAULT_XATTR) return refuse(EOPNOTSUPP);
  if ((node.mode & S_IFMT) === S_IFLNK) return refuse(EOPNOTSUPP);
  if (!reachable(context, node, caller)) return refuse(EACCES, node);
  if (node.madeBy === 'outside' || (caller.uid !== 0 && caller.uid !== node.uid)) return refuse(EPERM, node);
  return node;
}

function setxattr({ caller, ino, name, value, flags }: Of<'setxattr'>, context: MutationContext): MutationResult {
  const { draft, now } = context;
  const node = aclOwner(ino, name, caller, context);
  if ('errno' in node) return node;
  const acl = decodeAcl(value);
  if (acl === undefined) return refuse(EINVAL);
  const changed = { revision: draft.revision, ctime: now };
  const had = name === DEFAULT_XATTR ? node.defaultAcl : node.acl;
  if ((flags & XATTR_CREATE) !== 0 && had !== undefined) return refuse(EEXIST);
  if ((flags & XATTR_REPLACE) !== 0 && had === undefined) return refuse(ENODATA);
  if (name === DEFAULT_XATTR) {
    if (!isDirectory(node)) return refuse(EACCES, node);
    draft.put({ ...node, ...changed, defaultAcl: acl });
    return done(node);
  }
  let mode = (node.mode & ~0o777) | aclMode(acl);
  if (!mayKeepSetgid(context, caller, node.gid)) mode &= ~S_ISGID;
  draft.put({ ...node, ...changed, mode, acl: isMinimal(acl) ? undefined : acl });
  return done(node);
}

function removexattr({ caller, ino, name }: Of<'removexattr'>, context: MutationContext): MutationResult {
  const { draft, now } = context;
  const node = aclOwner(ino, name, caller, context);
  if ('errno' in node) return node;
  if ((name === DEFAULT_XATTR ? node.defaultAcl : node.acl) === undefined) return refuse(ENODATA);
  const changed = { revision: draft.revision, ctime: now };
  if (name === DEFAULT_XATTR) draft.put({ ...node, ...changed, defaultAcl: undefined });
  else draft.put({ ...node, ...changed, mode: (node.mode & ~0o070) | (node.acl!.groupObj << 3), acl: undefined });
  return done(node);
}

function burn({ caller, ino }: Of<'burn'>, context: MutationContext): MutationResult {
  const { draft, now, replica } = context;
  const node = draft.node(ino);
  if (node === undefined) return refuse(ESTALE);
  if ((node.mode & S_IFMT) !== S_IFREG || !replica.facts(node).effective.once) return refuse(EINVAL);
  const errno = decide(context, node, caller, R_OK);
  if (errno !== 0 || node.burned) return refuse(EACCES, node);
  if (!replica.reachable(context.way, node, caller, context.wallMs)) return refuse(EACCES, node);
  const bytes = node.bytes!;
  draft.put({
    ...node,
    burned: true,
    bytes: new Uint8Array(),
    sizeBytes: 0,
    dataRevision: draft.revision,
    revision: draft.revision,
    ctime: now,
  });
  return { ...done(node), bytes };
}
