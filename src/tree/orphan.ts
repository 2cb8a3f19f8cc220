/** Takes a node's name away: who has it open keeps it, under the rules that it had. */
import { LAST_PATH_CHARACTERS, type Node, orphaned, type Time } from './node.ts';
import type { Policy } from './policy.ts';
import type { Draft } from './snapshot.ts';

export function orphan(draft: Draft, policy: Policy, node: Node, now: Time): void {
  const path = draft.now.path(node);
  const { rule, once, special, writeOnce } = policy.effective(path);
  const tooLong = path.length > LAST_PATH_CHARACTERS;
  const losesValue = once || (tooLong && (special || writeOnce));
  const lastPath = rule !== undefined || policy.hasQuotas ? path : undefined;
  draft.put(orphaned(node, { losesValue, lastPath }, draft.revision, now));
}
