/** What a metadata server tells of the tree, checked: JSON in, deltas of the tree out. Nothing it says is taken unseen. */
import type { Acl, AclEntry, Change, Delta, Node, PolicySpec, Time, Usage } from '../tree/index.ts';
import { AgentError } from './agent-error.ts';

type Key =
  | 'ino'
  | 'parent'
  | 'name'
  | 'lastPath'
  | 'madeBy'
  | 'mode'
  | 'uid'
  | 'gid'
  | 'acl'
  | 'defaultAcl'
  | 'nlink'
  | 'size'
  | 'bytes'
  | 'burned'
  | 'dataRevision'
  | 'revision'
  | 'atime'
  | 'mtime'
  | 'ctime'
  | 'userObj'
  | 'groupObj'
  | 'other'
  | 'mask'
  | 'users'
  | 'groups'
  | 'rules'
  | 'quota'
  | 'nodes'
  | 'boot'
  | 'policy'
  | 'usage'
  | 'heartbeat'
  | 'put'
  | 'remove'
  | 'changes'
  | 'path'
  | 'what';
type Told = Readonly<Partial<Record<Key, unknown>>>;

const nonsense = (what: string): AgentError =>
  new AgentError('SERVER_GARBAGE', `the server told of ${what} that is none`);

const record = (value: unknown, what: string): Told => {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw nonsense(what);
  return value;
};

const list = (value: unknown, what: string): readonly unknown[] => {
  if (!Array.isArray(value)) throw nonsense(what);
  return value as readonly unknown[];
};

const whole = (value: unknown, what: string): number => {
  if (!Number.isSafeInteger(value) || (value as number) < 0) throw nonsense(what);
  return value as number;
};

const text = (value: unknown, what: string): string => {
  if (typeof value !== 'string') throw nonsense(what);
  return value;
};

const time = (value: unknown): Time => {
  const [sec, nsec] = list(value, 'a time');
  if (!Number.isSafeInteger(sec)) throw nonsense('a time');
  return { sec: sec as number, nsec: whole(nsec, 'a time') };
};

const aclEntries = (value: unknown): readonly AclEntry[] =>
  list(value, 'an ACL').map((entry) => {
    const [id, permissions] = list(entry, 'an ACL');
    return { id: whole(id, 'an ACL'), permissions: whole(permissions, 'an ACL') & 7 };
  });

const acl = (value: unknown): Acl | undefined => {
  if (value === undefined) return undefined;
  const { userObj, groupObj, other, mask, users, groups } = record(value, 'an ACL');
  if (!Number.isSafeInteger(mask)) throw nonsense('an ACL');
  return {
    userObj: whole(userObj, 'an ACL'),
    groupObj: whole(groupObj, 'an ACL'),
    other: whole(other, 'an ACL'),
    mask: Number(mask),
    users: aclEntries(users),
    groups: aclEntries(groups),
  };
};

/** Bytes in memory of their own: a small `Buffer` shares its memory with others. */
export const bytesOf = (value: unknown): Uint8Array => {
  const base64 = text(value, 'a value');
  const bytes = new Uint8Array(Buffer.byteLength(base64, 'base64'));
  const decoded = Buffer.from(bytes.buffer).write(base64, 'base64');
  return decoded === bytes.length ? bytes : bytes.slice(0, decoded);
};

export const nodeOf = (value: unknown): Node => {
  const told = record(value, 'a node');
  const { madeBy, lastPath, bytes } = told;
  if (madeBy !== 'outside' && madeBy !== 'guest') throw nonsense('a node');
  return {
    ino: whole(told.ino, 'a node'),
    parentIno: whole(told.parent, 'a node'),
    name: text(told.name, 'a node'),
    ...(lastPath !== undefined && { lastPath: text(lastPath, 'a node') }),
    madeBy,
    mode: whole(told.mode, 'a node'),
    uid: whole(told.uid, 'a node'),
    gid: whole(told.gid, 'a node'),
    acl: acl(told.acl),
    defaultAcl: acl(told.defaultAcl),
    nlink: whole(told.nlink, 'a node'),
    sizeBytes: whole(told.size, 'a node'),
    bytes: bytes === undefined ? undefined : bytesOf(bytes),
    burned: told.burned === true,
    dataRevision: whole(told.dataRevision, 'a node'),
    revision: whole(told.revision, 'a node'),
    atime: time(told.atime),
    mtime: time(told.mtime),
    ctime: time(told.ctime),
  };
};

const usageOf = (value: unknown): Usage => {
  const { bytes, nodes } = record(value, 'a usage');
  return { bytes: whole(bytes, 'a usage'), nodes: whole(nodes, 'a usage') };
};

const policyOf = (value: unknown): PolicySpec => {
  const told = record(value, 'a policy');
  list(told.rules, 'a policy');
  record(told.users, 'a policy');
  record(told.groups, 'a policy');
  record(told.quota, 'a policy');
  return told as unknown as PolicySpec;
};

const kinds: ReadonlySet<unknown> = new Set(['created', 'changed', 'attributes', 'removed']);

const changeOf = (value: unknown): Change => {
  const { ino, path, what } = record(value, 'a change');
  if (!kinds.has(what)) throw nonsense('a change');
  return { ino: whole(ino, 'a change'), path: text(path, 'a change'), what: what as Change['what'] };
};

/** The whole tree. AgentError `SERVER_GARBAGE`. */
export const treeOf = (value: unknown): { readonly boot: string; readonly delta: Delta } => {
  const told = record(value, 'a tree');
  const nodes = list(told.nodes, 'a tree').map(nodeOf);
  return {
    boot: text(told.boot, 'a tree'),
    delta: {
      revision: whole(told.revision, 'a tree'),
      full: true,
      put: parentsFirst(nodes),
      remove: [],
      policy: policyOf(told.policy),
      changes: [],
      usage: usageOf(told.usage),
    },
  };
};

/** One line of the watch: the next commit, or undefined for a heartbeat. AgentError `SERVER_GARBAGE`. */
export const commitOf = (line: string): Delta | undefined => {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw nonsense('a commit');
  }
  const told = record(value, 'a commit');
  const revision = whole(told.revision, 'a commit');
  if (told.heartbeat === true) return undefined;
  return {
    revision,
    full: false,
    put: list(told.put, 'a commit').map(nodeOf),
    remove: list(told.remove, 'a commit').map((ino) => whole(ino, 'a commit')),
    ...(told.policy !== undefined && { policy: policyOf(told.policy) }),
    changes: list(told.changes, 'a commit').map(changeOf),
    usage: usageOf(told.usage),
  };
};

/** A tree without a root, with a node whose directory is not there, or with a circle, is none. */
const parentsFirst = (nodes: readonly Node[]): Node[] => {
  const byIno = new Map(nodes.map((node) => [node.ino, node]));
  const placed = new Set<number>();
  const ordered: Node[] = [];
  for (const node of nodes) {
    const above: Node[] = [];
    for (let at = node; !placed.has(at.ino); ) {
      above.push(at);
      placed.add(at.ino);
      if (at.parentIno === at.ino || at.parentIno === 0) break;
      const parent = byIno.get(at.parentIno);
      if (parent === undefined) throw nonsense('a tree');
      at = parent;
    }
    ordered.push(...above.toReversed());
  }
  if (byIno.get(1)?.parentIno !== 1) throw nonsense('a tree');
  return ordered;
};
