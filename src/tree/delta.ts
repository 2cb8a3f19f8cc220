/** What one commit changed, for replicas, stores and watchers. */
import { isDirectory } from './access.ts';
import { type Node, ROOT_INO, samePlace } from './node.ts';
import type { Draft, Snapshot } from './snapshot.ts';
import type { PolicySpec } from './spec.ts';

/** Applying all deltas in order to an empty tree gives the tree. The first one of a stream carries everything and has `full`. */
export interface Delta {
  readonly revision: number;
  /** Replaces the whole tree rather than changing it. */
  readonly full: boolean;
  /** Nodes as they are now, parents before children. Replicas get `once` values without their bytes. */
  readonly put: readonly Node[];
  /** Inode numbers that are gone for good. */
  readonly remove: readonly number[];
  /** The policy, when it changed. */
  readonly policy?: PolicySpec;
  /** For `/.changes` and watchers: one entry per path. */
  readonly changes: readonly Change[];
  /** What guests have used of the quota. */
  readonly usage: Usage;
}

/** Of what guests made, and of what was made outside and a guest has written. */
export interface Usage {
  readonly bytes: number;
  readonly nodes: number;
}

/** `created` and `removed` are of a path: a rename is one of each. `attributes`: all but the bytes or entries. */
export interface Change {
  readonly ino: number;
  readonly path: string;
  readonly what: 'created' | 'changed' | 'attributes' | 'removed';
}

/** What a watcher is told of the step from one snapshot to the next, for the nodes that the step touched. */
export function changesBetween(before: Snapshot, after: Snapshot, touched: ReadonlySet<number>): Change[] {
  const changes: Change[] = [];
  for (const ino of touched) {
    const old = before.node(ino);
    const now = after.node(ino);
    const oldPath = old === undefined || (old.parentIno === 0 && ino !== ROOT_INO) ? undefined : before.path(old);
    const path = now === undefined || (now.parentIno === 0 && ino !== ROOT_INO) ? undefined : after.path(now);
    if (oldPath !== undefined && oldPath !== path) changes.push({ ino, path: oldPath, what: 'removed' });
    if (path === undefined) continue;
    if (oldPath !== path) changes.push({ ino, path, what: 'created' });
    else if (old!.dataRevision === now!.dataRevision) changes.push({ ino, path, what: 'attributes' });
    else if (!isDirectory(now!)) changes.push({ ino, path, what: 'changed' });
  }
  return changes;
}

/** A full delta for a replica that has an older state: what is the same as before keeps its identity. */
export const keepingSame = (before: Snapshot, full: Delta): Delta => ({
  ...full,
  put: full.put.map((node) => {
    const old = before.node(node.ino);
    // A node's revision rises with every change; a rule may take a value away from replicas without one.
    return old?.revision === node.revision && (old.bytes === undefined) === (node.bytes === undefined) ? old : node;
  }),
});

/** That delta once it is applied, as the difference that it made. What happened in between is not known. */
export function asDifference(before: Snapshot, after: Snapshot, full: Delta): Delta {
  const put = full.put.filter((node) => before.node(node.ino) !== node);
  const remove = [...before.nodes.values()].flatMap(({ ino }) => (after.node(ino) === undefined ? [ino] : []));
  const touched = new Set([...put.map(({ ino }) => ino), ...remove]);
  return { ...full, put, remove, changes: changesBetween(before, after, touched) };
}

/** With every other node too: a new policy may change what anybody may see of what itself stays as it was. */
export function withJudgedAnew(changes: readonly Change[], snapshot: Snapshot): Change[] {
  const told = new Set(changes.map(({ ino }) => ino));
  const others = [...snapshot.nodes.values()].filter(({ ino }) => !told.has(ino));
  return [
    ...changes,
    ...others.map((node): Change => ({ ino: node.ino, path: snapshot.path(node), what: 'attributes' })),
  ];
}

/** The nodes that got another path because a directory above them moved. */
export function* movedWithParent(draft: Draft, next: Snapshot): Generator<Node> {
  for (const ino of draft.touched) {
    const old = draft.base.node(ino);
    const now = next.node(ino);
    if (old === undefined || now === undefined || !isDirectory(now) || samePlace(old, now)) continue;
    for (const node of next.descendants(now)) if (node !== now) yield node;
  }
}
