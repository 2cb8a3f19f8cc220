/** Values that can be read once are the authority's alone: what replicas are sent instead. */
import { S_IFMT, S_IFREG } from '../wire/index.ts';
import { type Delta, movedWithParent } from './delta.ts';
import type { Node } from './node.ts';
import type { Policy } from './policy.ts';
import type { Draft, Snapshot } from './snapshot.ts';

/**
 * Untouched nodes whose `once` changes, by a new policy or because a directory above them moved: replicas must drop or
 * get their bytes.
 */
export function onceChanged(draft: Draft, next: Snapshot, before: Policy, policy: Policy): Node[] {
  if (!before.hasOnce && !policy.hasOnce) return [];
  const nodes: Node[] = [];
  for (const node of policy === before ? movedWithParent(draft, next) : next.nodes.values()) {
    if (draft.touched.has(node.ino) || node.sizeBytes === 0) continue;
    const old = draft.base.node(node.ino)!;
    if (policy.effective(next.ruledPath(node)).once !== before.effective(draft.base.ruledPath(old)).once)
      nodes.push(node);
  }
  return nodes;
}

/** Replicas never hold the value of a `once` file. What a link says is no value: nothing ever burns it. */
export function withoutOnceValues(delta: Delta, snapshot: Snapshot, policy: Policy): Delta {
  if (!policy.hasOnce) return delta;
  const put = delta.put.map((node) =>
    node.bytes !== undefined &&
    node.sizeBytes > 0 &&
    (node.mode & S_IFMT) === S_IFREG &&
    policy.effective(snapshot.ruledPath(node)).once
      ? { ...node, bytes: undefined }
      : node,
  );
  return { ...delta, put };
}
