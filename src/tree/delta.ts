/** What one commit changed, for replicas, stores and watchers. */
import type { Node } from './node.ts';
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
}

export interface Change {
  readonly ino: number;
  readonly path: string;
  readonly what: 'created' | 'changed' | 'attributes' | 'removed';
}
