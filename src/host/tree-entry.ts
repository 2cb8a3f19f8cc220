/** What is told of a node to whoever looks from outside, and how a tree is read while others have their turns. */
import { setImmediate as turn } from 'node:timers/promises';
import type { TreeEntry } from '../records/index.ts';
import { type Acl, type Node, Replica, type Time } from '../tree/index.ts';
import { S_IFDIR, S_IFLNK, S_IFMT } from '../wire/index.ts';

/** Of a tree that is read whole, before others have their turn. */
export const nodesInTurn = 256;

/** As a tree is now, for whoever takes several turns to read it. */
export const stillOf = (replica: Replica): Replica => {
  const still = new Replica();
  still.become(replica);
  return still;
};

export async function* inTurns<T>(all: Iterable<T>, signal: AbortSignal | undefined): AsyncGenerator<T> {
  let count = 0;
  for (const one of all) {
    yield one;
    if (++count % nodesInTurn === 0) await turn(undefined, { signal });
  }
}

export const entryOf = (replica: Replica, node: Node): TreeEntry => {
  const { caching, effective } = replica.facts(node);
  return {
    path: replica.snapshot.path(node),
    kind: typeOf(node),
    madeBy: node.madeBy,
    sizeBytes: node.sizeBytes,
    dataRevision: node.dataRevision,
    revision: node.revision,
    uid: node.uid,
    gid: node.gid,
    mode: node.mode & 0o7777,
    mtimeMs: timeMs(node.mtime),
    worldReadable: (node.mode & 0o004) !== 0 && !effective.special && caching !== 'private',
    burned: node.burned,
    rule: ruleOf(effective.rule),
    owner: replica.policy.userName(node.uid),
    group: replica.policy.groupName(node.gid),
    acl: node.acl && aclWords(node.acl),
    changedMs: timeMs(node.ctime),
  };
};

const ruleOf = (rule: { readonly path: string } | undefined): string => rule?.path ?? 'default';

export const typeOf = ({ mode }: Node): TreeEntry['kind'] => {
  const type = mode & S_IFMT;
  if (type === S_IFDIR) return 'directory';
  return type === S_IFLNK ? 'symlink' : 'file';
};

const timeMs = ({ sec, nsec }: Time): number => sec * 1000 + Math.floor(nsec / 1e6);

const permissionLetters = (bits: number): string =>
  [...'rwx'].map((letter, i) => ((bits & (4 >> i)) === 0 ? '-' : letter)).join('');

const aclWords = ({ users, groups, groupObj, mask }: Acl): string =>
  [
    ...users.map(({ id, permissions }) => `user:${id}:${permissionLetters(permissions)}`),
    `group::${permissionLetters(groupObj)}`,
    ...groups.map(({ id, permissions }) => `group:${id}:${permissionLetters(permissions)}`),
    ...(mask < 0 ? [] : [`mask::${permissionLetters(mask)}`]),
  ].join();
