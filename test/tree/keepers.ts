/** Keepers of commits for tests, and who asks for changes. */
import assert from 'node:assert/strict';
import {
  ANSWERED_KEPT,
  type Answered,
  AppliedMutations,
  type Caller,
  type Commit,
  type Kept,
  type PolicySpec,
  type Restored,
} from '../../src/tree/index.ts';

export const root: Caller = { uid: 0, gid: 0, pid: 1 };
export const app: Caller = { uid: 1000, gid: 1000, pid: 2 };
export const other: Caller = { uid: 1001, gid: 1001, pid: 3 };

/** Keeps commits as a store does: a node's bytes only where it is told to keep them. */
export class Keeper {
  readonly nodes = new Map<number, Kept>();
  revision = 0;
  nextIno = 0;
  works = true;

  readonly persist = (commits: readonly Commit[]): void => {
    if (!this.works) throw new Error('the disk is full');
    for (const commit of commits) this.#keep(commit);
  };

  #keep(commit: Commit): void {
    assert.ok(commit.revision > this.revision, 'revisions only rise');
    assert.ok(commit.nextIno >= this.nextIno);
    ({ revision: this.revision, nextIno: this.nextIno } = commit);
    for (const ino of commit.remove) this.nodes.delete(ino);
    for (const kept of commit.put)
      this.nodes.set(kept.node.ino, kept.keepBytes ? kept : { ...kept, node: { ...kept.node, bytes: undefined } });
  }

  get restored(): Restored {
    return { revision: this.revision, nextIno: this.nextIno, nodes: [...this.nodes.values()] };
  }

  get guestWritten(): Set<number> {
    return new Set(
      [...this.nodes].filter(([, { node, keepBytes }]) => keepBytes && node.madeBy === 'outside').map(([ino]) => ino),
    );
  }
}

/** All that is kept of a tree, as a store keeps it that no spec stands behind. */
export class KeptTree {
  readonly nodes = new Map<number, Kept>();
  revision = 0;
  nextIno = 0;
  policy: PolicySpec | undefined;
  policyRevision = 0;
  readonly applied = new AppliedMutations();
  /** Oldest first. */
  answered: readonly Answered[] = [];

  keep(commit: Commit): void {
    assert.ok(commit.revision > this.revision || commit.forgotten !== undefined, 'revisions only rise');
    assert.ok(commit.nextIno >= this.nextIno);
    ({ revision: this.revision, nextIno: this.nextIno } = commit);
    for (const ino of commit.remove) this.nodes.delete(ino);
    for (const kept of commit.put) this.nodes.set(kept.node.ino, kept);
    if (commit.forgotten !== undefined) this.applied.forget(commit.forgotten);
    if (commit.applied !== undefined) this.applied.add(commit.applied);
    if (commit.answered !== undefined) this.answered = [...this.answered, commit.answered].slice(-ANSWERED_KEPT);
    if (commit.policy === undefined) return;
    this.policy = commit.policy;
    this.policyRevision = commit.revision;
  }

  static from(restored: Restored): KeptTree {
    const tree = new KeptTree();
    for (const kept of restored.nodes) tree.nodes.set(kept.node.ino, kept);
    for (const applied of restored.applied ?? []) tree.applied.add(applied);
    ({ revision: tree.revision, nextIno: tree.nextIno, policy: tree.policy } = restored);
    tree.policyRevision = restored.policyRevision ?? 0;
    tree.answered = restored.answered ?? [];
    return tree;
  }

  get restored(): Restored {
    return {
      revision: this.revision,
      nextIno: this.nextIno,
      nodes: [...this.nodes.values()],
      ...(this.policy && { policy: this.policy }),
      policyRevision: this.policyRevision,
      applied: [...this.applied.holders()].flatMap((holder) => [...this.applied.of(holder)]),
      answered: this.answered,
    };
  }
}

/** Answers when it is told to. */
export class SlowKeeper extends KeptTree {
  #batch: { readonly commits: readonly Commit[]; readonly answer: PromiseWithResolvers<void> } | undefined;

  readonly persist = (commits: readonly Commit[]): Promise<void> => {
    assert.equal(this.#batch, undefined, 'one batch at a time');
    assert.ok(commits.length > 0);
    const answer = Promise.withResolvers<void>();
    this.#batch = { commits, answer };
    return answer.promise;
  };

  /** What is being kept. */
  get batch(): readonly Commit[] {
    return this.#batch?.commits ?? [];
  }

  /** Keeps the batch and says so. */
  succeed(): void {
    const answer = this.#batch?.answer;
    this.land();
    answer?.resolve();
  }

  fail(): void {
    const answer = this.#batch?.answer;
    this.#batch = undefined;
    answer?.reject(new Error('the disk is full'));
  }

  /** Keeps the batch, but nobody will hear of it. */
  land(): void {
    const commits = this.batch;
    this.#batch = undefined;
    for (const commit of commits) this.keep(commit);
  }

  /** Loses the batch, and nobody will hear of it. */
  lose(): void {
    this.#batch = undefined;
  }
}
