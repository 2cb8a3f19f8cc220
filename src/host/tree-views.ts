/** Pages of a whole tree without its values: what is there, what a caller may do, what another policy would change. */
import { setImmediate as turn } from 'node:timers/promises';
import type {
  FileProblem,
  PolicyComparison,
  SeenEntry,
  TreeAnswer,
  TreeEntry,
  TreePage,
  TreePort,
} from '../records/index.ts';
import {
  type Caller,
  Comparison,
  callersOf,
  explain,
  type Node,
  type PolicySpec,
  type Replica,
  rightsOf,
  TreeRights,
  underPolicy,
  ways,
} from '../tree/index.ts';
import { entryOf, inTurns, typeOf } from './tree-entry.ts';

/** A tree at one revision. */
export interface StillTree {
  readonly epoch: number;
  readonly still: Replica;
}

export interface ReadPolicy {
  readonly policy: PolicySpec;
  readonly warnings: readonly FileProblem[];
}

export const listBelow = async (
  tree: StillTree,
  top: Node,
  page: TreePage,
): Promise<TreeAnswer & { readonly entries: readonly TreeEntry[]; readonly more: boolean }> => {
  const found = await pageOf(tree.still, top, page, (node) => entryOf(tree.still, node));
  return { ...answerOf(tree), ...found };
};

export const viewOf = async (
  tree: StillTree,
  top: Node,
  caller: Caller,
  page: TreePage,
  read?: ReadPolicy,
): ReturnType<TreePort['view']> => {
  const replica = read === undefined ? tree.still : await under(tree.still, read.policy, page.signal);
  const wallMs = Date.now();
  // Who is in no further group says so: what is left open here would be the guest's kernel's to decide.
  const who = { ...caller, groups: caller.groups ?? [] };
  const rights = new TreeRights(replica, [who], wallMs);
  const seen = (before: Node): SeenEntry => {
    const node = replica.snapshot.node(before.ino)!;
    const { keys: _, shownMode: __, hidden: ___, type, ...told } = explain(replica, ways.agent, node, who, wallMs);
    return { ...told, kind: type, may: rightsOf(rights.of(node).bits[0]!) };
  };
  const found = await pageOf(tree.still, top, page, seen);
  return { ...answerOf(tree), ...found, warnings: read?.warnings ?? [] };
};

export const comparePolicy = async (
  tree: StillTree,
  top: Node,
  page: TreePage,
  { policy, warnings }: ReadPolicy,
): Promise<PolicyComparison> => {
  const { still } = tree;
  const after = await under(still, policy, page.signal);
  const policies = [still.policy.spec, policy];
  const { classes, callers, leftOut } = await inSteps(callersOf(still.snapshot, policies), page.signal);
  const comparison = new Comparison(still, after, callers, Date.now());
  const found = await pageOf(
    still,
    top,
    page,
    (node) => {
      const changes = comparison.changesOf(node);
      return changes.length === 0 ? undefined : { path: still.snapshot.path(node), kind: typeOf(node), changes };
    },
    () => comparison.isLong(),
  );
  const names = (ids: readonly number[] | undefined, ofOne: (replica: Replica, id: number) => string | undefined) =>
    (ids ?? []).flatMap((id) => ofOne(after, id) ?? ofOne(still, id) ?? []);
  return {
    ...answerOf(tree),
    warnings,
    callers: classes.map((one) => ({
      ...one,
      names: [
        ...names(one.uids, ({ policy: of }, id) => of.userName(id)),
        ...names(one.gids, ({ policy: of }, id) => of.groupName(id)),
      ],
    })),
    callersLeftOut: leftOut,
    ...found,
  };
};

const answerOf = ({ epoch, still }: StillTree): TreeAnswer => ({ epoch, revision: still.snapshot.revision });

/** `view` undefined: the node is not of the page. `isLong`: others have their turn after this node. */
const pageOf = async <T>(
  { snapshot }: Replica,
  top: Node,
  { path, after, limit, signal }: TreePage,
  view: (node: Node) => T | undefined,
  isLong: () => boolean = () => false,
): Promise<{ readonly entries: readonly T[]; readonly more: boolean }> => {
  const entries: T[] = [];
  const names = after?.split('/').filter(Boolean).slice(path.split('/').filter(Boolean).length);
  const nodes = names === undefined ? snapshot.descendants(top) : snapshot.descendantsAfter(top, names);
  for await (const node of inTurns(nodes, signal)) {
    const entry = view(node);
    if (isLong()) await turn(undefined, { signal });
    if (entry === undefined) continue;
    if (entries.length === limit) return { entries, more: true };
    entries.push(entry);
  }
  return { entries, more: false };
};

const under = (still: Replica, policy: PolicySpec, signal: AbortSignal | undefined): Promise<Replica> => {
  const nowMs = Date.now();
  const now = { sec: Math.floor(nowMs / 1000), nsec: (nowMs % 1000) * 1e6 };
  return inSteps(underPolicy(still, policy, now), signal);
};

const inSteps = async <T>(steps: Generator<undefined, T>, signal: AbortSignal | undefined): Promise<T> => {
  for (;;) {
    const { done, value } = steps.next();
    if (done === true) return value;
    await turn(undefined, { signal });
  }
};
