/** What `Authority` has decided, until it is kept and published. */
import type { Applied, Commit } from './commit.ts';
import type { Change, Delta } from './delta.ts';
import type { Node } from './node.ts';
import type { Step } from './pipeline.ts';
import type { Policy } from './policy.ts';
import type { Records } from './records.ts';
import type { Made } from './replica.ts';
import type { Draft } from './snapshot.ts';

/** A decision that is to become the head. */
export interface Decision {
  /** Made from the head; undefined when nothing changes and only the order counts. */
  readonly draft?: Draft;
  readonly policy?: Policy | undefined;
  readonly records?: Records;
  /** Nobody has to keep it: a restart knows nothing of what it is about. */
  readonly unkept?: boolean;
  readonly applied?: Applied | undefined;
  readonly request?: { readonly id: string; readonly dataRevision: number | undefined } | undefined;
  readonly forgotten?: string;
  readonly kept: () => void;
  readonly refused: (failure: Error) => void;
  /** Does again what does not depend on what could not be kept. */
  readonly again?: () => void;
}

/** A decision in its place in the order. */
export interface Decided extends Step {
  readonly decision: Decision;
  readonly touched: ReadonlySet<number>;
  readonly records: Records;
  /** Undefined when nothing changes. */
  change: { readonly delta: Delta; readonly made: Made } | undefined;
}

/** What a keeper is given of a decision. `remove`: nodes that are gone; `unkept`: those that no restart knows. */
export function commitOf(
  revision: number,
  { kept, unkept }: { readonly kept: readonly Node[]; readonly unkept: readonly number[] },
  remove: readonly number[],
  records: Records,
  { policy, applied, request }: Decision,
  changes: readonly Change[],
): Commit {
  const { policyRevision } = records;
  return {
    revision,
    nextIno: records.nextIno,
    put: kept.map((node) => ({
      node,
      base: records.bases.get(node.ino),
      keepBytes: node.madeBy === 'guest' || records.guestWritten.get(node.ino) === true,
    })),
    remove: [...remove, ...unkept],
    ...(policy && { policy: policy.spec }),
    ...(applied && { applied }),
    ...(request && { answered: { ...request, revision, changes: changes.length, policyRevision } }),
  };
}
