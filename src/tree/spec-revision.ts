/** Which commits change what a spec can say of a tree: an import may be bound to none of those having come in between. */
import { isDirectory } from './access.ts';
import type { Node } from './node.ts';
import type { Snapshot } from './snapshot.ts';

/** At or below it, or a directory on the way to it. */
const isApart = (node: Node, path: string, apart: string | undefined): boolean =>
  apart !== undefined &&
  (path === apart || path.startsWith(`${apart}/`) || (isDirectory(node) && apart.startsWith(`${path}/`)));

/**
 * Whether what the outside made differs, `apart` and what lies below it left out. A directory counts when it comes, goes or
 * moves: its entries count for themselves.
 */
export const changesSpec = (
  before: Snapshot,
  next: Snapshot,
  touched: Iterable<number>,
  apart: string | undefined,
): boolean => {
  for (const ino of touched) {
    const [was, is] = [before.node(ino), next.node(ino)];
    const node = is ?? was;
    if (node?.madeBy !== 'outside') continue;
    const stays = was !== undefined && is !== undefined && was.parentIno === is.parentIno && was.name === is.name;
    if (stays && isDirectory(node)) continue;
    const path = was !== undefined && was.parentIno !== 0 ? before.path(was) : next.path(node);
    if (!isApart(node, path, apart)) return true;
  }
  return false;
};

/** Of a tree of which only the nodes are known: at least that of the last such commit, and no less than any that was told. */
export const specRevisionOf = (snapshot: Snapshot, policyRevision: number, apart: string | undefined): number => {
  let newest = policyRevision;
  const note = ({ revision, dataRevision }: Node): void => {
    newest = Math.max(newest, revision, dataRevision);
  };
  for (const node of snapshot.nodes.values())
    if (node.madeBy === 'outside' && node.parentIno !== 0 && !isApart(node, snapshot.path(node), apart)) note(node);
  return newest;
};
