/** What whoever keeps a tree is given for each commit, and gives back after a restart. */
import type { Outcome } from './mutation.ts';
import type { Node } from './node.ts';
import type { PolicySpec } from './spec.ts';

/** What has to be kept of a node, beyond the node itself. */
export interface Kept {
  readonly node: Node;
  /** Digest of the value that the outside last gave this file. */
  readonly base: string | undefined;
  /** The bytes are not the outside's: they must be kept with the node. Else the spec gives them again, where there is one. */
  readonly keepBytes: boolean;
}

/** A mutation that took effect: the same sequence of the same holder is answered from it and not applied again. */
export interface Applied {
  readonly holder: string;
  readonly sequence: number;
  readonly outcome: Outcome;
}

/** How many applied mutations are remembered of each holder: more than it can have under way. */
export const APPLIED_KEPT = 64;

/** A request from outside that changed the tree, as it was answered: a repeat whose answer was lost gets the same. */
export interface Answered {
  /** Whoever asks gives no two requests the same. */
  readonly id: string;
  readonly revision: number;
  /** How many paths it changed. */
  readonly changes: number;
  readonly policyRevision: number;
  /** Of the one path that was edited, if it is there; else undefined. */
  readonly dataRevision: number | undefined;
}

/** How many answered requests are remembered: more than there can be under way when an answer is lost. */
export const ANSWERED_KEPT = 4096;

/** One commit for whoever keeps the tree. */
export interface Commit {
  /** Higher than that of every commit before, or the same where it is about holders alone. Some are left out. */
  readonly revision: number;
  /** Counter of inode numbers: the next one to give out. */
  readonly nextIno: number;
  readonly put: readonly Kept[];
  readonly remove: readonly number[];
  /** The policy, when it changed. */
  readonly policy?: PolicySpec;
  /** To be kept with the last `APPLIED_KEPT` of its holder. */
  readonly applied?: Applied;
  /** To be kept with the last `ANSWERED_KEPT`. */
  readonly answered?: Answered;
  /** A holder that is gone for good: what is kept of it can go. */
  readonly forgotten?: string;
}

/**
 * What was kept, as it is given back after a restart. `bytes` may be undefined where `keepBytes` was false: the next `load`
 * gives them again.
 */
export interface Restored {
  readonly revision: number;
  readonly nextIno: number;
  readonly nodes: readonly Kept[];
  /** Where it is kept; else the next `load` gives it. */
  readonly policy?: PolicySpec;
  /** Of the commit that last brought a policy. */
  readonly policyRevision?: number;
  /** Oldest first. */
  readonly applied?: readonly Applied[];
  /** Oldest first. */
  readonly answered?: readonly Answered[];
}

/**
 * Keeps commits: all of them or none. One that answers at once has kept them when it returns, and throws when it could
 * not. One that answers later returns a promise, and is not called again before that is settled; what it may not have been able
 * to tell (whether they are kept) is for it to find out before it keeps more.
 */
export type Persist = (commits: readonly Commit[]) => void | Promise<void>;
