/** What of a change outlives the host daemon. */
import { isDirectory } from './access.ts';
import type { Node } from './node.ts';
import type { Policy } from './policy.ts';
import type { Snapshot } from './snapshot.ts';

/**
 * What to keep of what was put, and what not: a node without a name (unless `keepsUnlinked`, nobody can have it open after a
 * restart), and what a rule calls `durable: none`, as what an agent tells is without one. A directory that moves takes what lies below it in or out of such a rule.
 */
export function nodesToKeep(
  before: Snapshot,
  next: Snapshot,
  put: readonly Node[],
  policy: Policy,
  keepsUnlinked: boolean,
): { readonly kept: readonly Node[]; readonly unkept: readonly number[] } {
  const concerned = new Map(put.map((node) => [node.ino, node]));
  const hasVolatile = policy.hasVolatileRules || put.some((node) => wasOrIsInside(before, next, node));
  if (hasVolatile) {
    for (const node of put) {
      const old = before.node(node.ino);
      const moved = old !== undefined && (old.parentIno !== node.parentIno || old.name !== node.name);
      if (moved && isDirectory(node)) for (const below of next.descendants(node)) concerned.set(below.ino, below);
    }
  }
  const kept: Node[] = [];
  const unkept: number[] = [];
  for (const node of concerned.values()) {
    const volatile = hasVolatile && node.madeBy === 'guest' && isVolatile(policy, next.path(node));
    if ((node.parentIno === 0 && !keepsUnlinked) || volatile) unkept.push(node.ino);
    else kept.push(node);
  }
  return { kept, unkept };
}

/** What agents tell of their guests every few seconds. */
const INSIDE = '/guest/.agent/';

const isVolatile = (policy: Policy, path: string): boolean =>
  (policy.effective(path).durable ?? (path.startsWith(INSIDE) ? 'none' : 'host')) === 'none';

const wasOrIsInside = (before: Snapshot, next: Snapshot, node: Node): boolean => {
  const old = before.node(node.ino);
  return next.path(node).startsWith(INSIDE) || (old !== undefined && before.path(old).startsWith(INSIDE));
};
