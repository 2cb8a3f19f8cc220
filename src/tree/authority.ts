/**
 * The one place where a tree changes. Decides every mutation, applies it to the next snapshot, has it kept, and only then
 * publishes it. Everything is synchronous: a mutation is one step that nobody sees the middle of.
 */
import { EIO } from '../wire/index.ts';
import type { AuditSink } from './audit.ts';
import { Auditor } from './auditor.ts';
import type { Way } from './caller.ts';
import { type Change, changesBetween, type Delta } from './delta.ts';
import { Ledger } from './ledger.ts';
import { type MutationContext, type MutationResult, mutate } from './mutate.ts';
import type { Mutation, Outcome, Upstream } from './mutation.ts';
import { type Node, ROOT_INO, type Time } from './node.ts';
import { placeSpec } from './outside.ts';
import { Policy } from './policy.ts';
import { Replica } from './replica.ts';
import { Draft, Snapshot } from './snapshot.ts';
import type { Spec } from './spec.ts';

/** What has to be kept of a node, beyond the node itself. */
export interface Kept {
  readonly node: Node;
  /** Digest of the value that the outside last gave this file. */
  readonly base: string | undefined;
  /** The bytes are not the outside's: they must be kept with the node. Else the spec gives them again. */
  readonly keepBytes: boolean;
}

/** One commit for whoever keeps the tree. */
export interface Commit {
  readonly revision: number;
  /** Counter of inode numbers: the next one to give out. */
  readonly nextIno: number;
  readonly put: readonly Kept[];
  readonly remove: readonly number[];
}

/** What was kept, as it is given back after a restart. `bytes` are undefined where `keepBytes` was false. */
export interface Restored {
  readonly revision: number;
  readonly nextIno: number;
  readonly nodes: readonly Kept[];
}

export interface AuthorityOptions {
  readonly vm: string;
  /** Milliseconds since the epoch. */
  readonly wallMs: () => number;
  /** A collision-resistant digest of a value. */
  readonly digest: (bytes: Uint8Array) => string;
  readonly audit: AuditSink;
  /** Keeps a commit before it is published. When it throws, the commit never was: the caller gets EIO. */
  readonly persist?: (commit: Commit) => void;
  readonly restored?: Restored;
}

const FIRST_FREE_INO = 16;

export class Authority {
  readonly #options: AuthorityOptions;
  readonly #replica = new Replica();
  readonly #auditor: Auditor;
  readonly #listeners = new Set<(delta: Delta) => void>();
  /** Digest of the value that the outside last gave a file, by ino. */
  readonly #bases = new Map<number, string>();
  /** Files made outside whose bytes a guest wrote. */
  readonly #guestWritten = new Set<number>();
  /** Replicas that may hold handles of an unlinked node, by ino. */
  readonly #orphans = new Map<number, Set<string>>();
  readonly #holders = new Set<string>();
  readonly #ledger = new Ledger((node) => this.#guestWritten.has(node.ino));
  readonly #unpublished: Delta[] = [];
  #nextIno = FIRST_FREE_INO;
  #persistFailure: Error | undefined;

  constructor(options: AuthorityOptions) {
    this.#options = options;
    this.#auditor = new Auditor(options.vm, options.audit, options.wallMs);
    if (options.restored !== undefined) this.#restore(options.restored);
  }

  /** The tree as it stands: for exports, explanations and APIs. */
  get replica(): Replica {
    return this.#replica;
  }

  get snapshot(): Snapshot {
    return this.#replica.snapshot;
  }

  /** Why the last commit could not be kept, or undefined. */
  get persistFailure(): Error | undefined {
    return this.#persistFailure;
  }

  /** Everything, as the first delta of a replica. */
  full(): Delta {
    const { snapshot, policy, usage } = this.#replica;
    return this.#forReplica({
      revision: snapshot.revision,
      full: true,
      put: [...snapshot.nodes.values()],
      remove: [],
      policy: policy.spec,
      changes: [],
      usage,
    });
  }

  /** Sends `full()` and then every commit. `holder` names the replica: unlinked files live while it has them open. */
  subscribe(holder: string, listener: (delta: Delta) => void): () => void {
    const stripped = (delta: Delta) => listener(delta.full ? delta : this.#forReplica(delta));
    this.#holders.add(holder);
    stripped(this.full());
    this.#listeners.add(stripped);
    return () => {
      this.#listeners.delete(stripped);
      this.#holders.delete(holder);
      for (const ino of [...this.#orphans.keys()]) this.#drop(ino, holder);
    };
  }

  /** Makes the tree what the spec says, in one commit, or leaves it as it was and throws what `persist` threw. */
  load(spec: Spec): { readonly revision: number; readonly changes: readonly Change[] } {
    const before = this.#replica.policy.spec;
    const policyChanged =
      this.snapshot.node(ROOT_INO) === undefined || JSON.stringify(before) !== JSON.stringify(spec.policy);
    const policy = policyChanged ? new Policy(spec.policy) : this.#replica.policy;
    const draft = new Draft(this.snapshot);
    const bases = new Map<number, string>();
    let nextIno = this.#nextIno;
    placeSpec(spec.entries, {
      draft,
      policy,
      now: this.#now(),
      allocate: () => nextIno++,
      valueChanged: (ino, bytes) => {
        const digest = this.#options.digest(bytes);
        bases.set(ino, digest);
        return this.#bases.get(ino) !== digest;
      },
    });
    for (const ino of draft.touched)
      if (bases.has(ino) && bases.get(ino) !== this.#bases.get(ino)) this.#guestWritten.delete(ino);
    const rebased = [...bases].filter(([ino, digest]) => this.#bases.get(ino) !== digest);
    const previous = rebased.map(([ino]) => [ino, this.#bases.get(ino)] as const);
    for (const [ino, digest] of rebased) this.#bases.set(ino, digest);
    const nextInoBefore = this.#nextIno;
    this.#nextIno = nextIno;
    try {
      return this.#finish(draft, policyChanged ? policy : undefined);
    } catch (error) {
      this.#nextIno = nextInoBefore;
      for (const [ino, digest] of previous) {
        if (digest === undefined) this.#bases.delete(ino);
        else this.#bases.set(ino, digest);
      }
      throw error;
    }
  }

  /** Decides and applies what a guest asks for. `holder` as in `subscribe`. Never throws for what a guest sends. */
  commit(mutation: Mutation, way: Way, holder: string): Outcome {
    if (mutation.op === 'drop') {
      this.#drop(mutation.ino, holder);
      return { errno: 0, revision: this.snapshot.revision, ino: 0 };
    }
    const draft = new Draft(this.snapshot);
    const context: MutationContext = {
      draft,
      replica: this.#replica,
      way,
      now: this.#now(),
      wallMs: this.#options.wallMs(),
      allocate: () => this.#nextIno++,
    };
    const result = mutate(mutation, context);
    const written =
      result.errno === 0 && result.writes !== undefined && !this.#guestWritten.has(result.writes)
        ? result.writes
        : undefined;
    if (written !== undefined) this.#guestWritten.add(written);
    const errno = result.errno !== 0 ? result.errno : this.#ledger.check(draft, this.#replica.policy);
    const outcome = this.#record(mutation, way, result, errno) ? this.#settle(draft, result, errno) : refused(EIO);
    if (outcome.errno !== 0 && written !== undefined) this.#guestWritten.delete(written);
    return outcome;
  }

  /** False when the log can't keep what it must: then nobody gets a value. */
  #record(mutation: Mutation, way: Way, result: MutationResult, errno: number): boolean {
    const { target } = result;
    if (target === undefined || (errno === 0 && target.madeBy === 'guest')) return true;
    return (
      this.#auditor.record(way, mutation.op, this.#replica, target, mutation.caller, errno) || mutation.op !== 'burn'
    );
  }

  #settle(draft: Draft, result: MutationResult, errno: number): Outcome {
    if (errno !== 0) return refused(errno);
    for (const ino of draft.touched) this.#orphan(draft, ino);
    try {
      const { revision } = this.#finish(draft, undefined);
      const outcome: Outcome = { errno: 0, revision, ino: result.ino };
      return result.bytes === undefined ? outcome : { ...outcome, bytes: result.bytes };
    } catch {
      return refused(EIO);
    }
  }

  /** Where a `FileSystem` in this process sends its mutations. */
  upstream(way: Way, holder: string): Upstream {
    return { submit: (mutation, settle) => settle(this.commit(mutation, way, holder)) };
  }

  #restore(restored: Restored): void {
    this.#nextIno = Math.max(restored.nextIno, FIRST_FREE_INO);
    const draft = new Draft(Snapshot.empty, restored.revision);
    for (const { node, base, keepBytes } of restored.nodes) {
      draft.put(node);
      if (base !== undefined) this.#bases.set(node.ino, base);
      if (keepBytes && node.madeBy === 'outside') this.#guestWritten.add(node.ino);
    }
    const snapshot = draft.finish();
    this.#ledger.add(draft);
    const put = [...snapshot.nodes.values()];
    this.#replica.apply({
      revision: restored.revision,
      full: true,
      put,
      remove: [],
      changes: [],
      usage: this.#ledger.usage,
    });
  }

  /** Has the draft kept, becomes it, and publishes it. */
  #finish(draft: Draft, policy: Policy | undefined): { revision: number; changes: readonly Change[] } {
    const before = this.snapshot;
    if (draft.touched.size === 0 && policy === undefined) {
      if (draft.filled) this.#become(draft, before.revision, [], [], [], undefined);
      return { revision: before.revision, changes: [] };
    }
    const next = draft.finish();
    const remove = [...draft.touched].filter((ino) => next.node(ino) === undefined);
    const put = [...draft.touched].flatMap((ino) => next.node(ino) ?? []);
    const changes = changesBetween(before, next, draft.touched);
    this.#persist(draft.revision, put, remove);
    const onceChanged = policy === undefined ? [] : this.#onceChanged(next, policy, draft.touched);
    for (const ino of remove) {
      this.#bases.delete(ino);
      this.#guestWritten.delete(ino);
    }
    this.#become(draft, draft.revision, [...put, ...onceChanged], remove, changes, policy);
    return { revision: draft.revision, changes };
  }

  /** What has no name is not kept: after a restart nobody can have it open. */
  #persist(revision: number, put: readonly Node[], remove: readonly number[]): void {
    const named = put.filter((node) => node.parentIno !== 0);
    const unnamed = put.filter((node) => node.parentIno === 0).map((node) => node.ino);
    try {
      this.#options.persist?.({
        revision,
        nextIno: this.#nextIno,
        put: named.map((node) => ({
          node,
          base: this.#bases.get(node.ino),
          keepBytes: node.madeBy === 'guest' || this.#guestWritten.has(node.ino),
        })),
        remove: [...remove, ...unnamed],
      });
      this.#persistFailure = undefined;
    } catch (error) {
      this.#persistFailure = error instanceof Error ? error : new Error(String(error));
      throw error;
    }
  }

  #become(
    draft: Draft,
    revision: number,
    put: readonly Node[],
    remove: readonly number[],
    changes: readonly Change[],
    policy: Policy | undefined,
  ): void {
    const next = draft.finish();
    this.#ledger.add(draft);
    const whole = draft.filled;
    const delta: Delta = {
      revision,
      full: whole,
      put: whole ? [...next.nodes.values()] : put,
      remove: whole ? [] : remove,
      ...(policy === undefined ? {} : { policy: policy.spec }),
      changes,
      usage: this.#ledger.usage,
    };
    this.#replica.apply(delta);
    this.#publish(whole ? this.full() : delta);
  }

  /** In order to everyone, also when a listener makes the next commit while it is told of this one. */
  #publish(delta: Delta): void {
    this.#unpublished.push(delta);
    if (this.#unpublished.length > 1) return;
    while (this.#unpublished.length > 0) {
      const next = this.#unpublished[0]!;
      try {
        for (const listener of this.#listeners) listener(next);
      } finally {
        this.#unpublished.shift();
      }
    }
  }

  /** Nodes whose `once` the new policy turns on or off: replicas must drop or get their bytes. */
  #onceChanged(next: Snapshot, policy: Policy, touched: ReadonlySet<number>): Node[] {
    const nodes: Node[] = [];
    for (const node of next.nodes.values()) {
      if (touched.has(node.ino)) continue;
      const path = next.path(node);
      if (policy.effective(path).once !== this.#replica.policy.effective(path).once) nodes.push(node);
    }
    return nodes;
  }

  /** Replicas never hold the value of a `once` node. */
  #forReplica(delta: Delta): Delta {
    const { policy, snapshot } = this.#replica;
    const put = delta.put.map((node) =>
      node.bytes !== undefined && node.sizeBytes > 0 && policy.effective(snapshot.path(node)).once
        ? { ...node, bytes: undefined }
        : node,
    );
    return { ...delta, put };
  }

  #now(): Time {
    const wallMs = this.#options.wallMs();
    const sec = Math.floor(wallMs / 1000);
    return { sec, nsec: Math.min(999_999_999, Math.round((wallMs - sec * 1000) * 1e6)) };
  }

  /** An unlinked file lives on for the replicas that are there; with none it goes with the same commit. */
  #orphan(draft: Draft, ino: number): void {
    const node = draft.node(ino);
    if (node === undefined || node.parentIno !== 0) return;
    if (this.#holders.size === 0) draft.remove(ino);
    else if (!this.#orphans.has(ino)) this.#orphans.set(ino, new Set(this.#holders));
  }

  #drop(ino: number, holder: string): void {
    const holders = this.#orphans.get(ino);
    if (holders === undefined || !holders.delete(holder) || holders.size > 0) return;
    this.#orphans.delete(ino);
    const draft = new Draft(this.snapshot, this.snapshot.revision);
    draft.remove(ino);
    this.#become(draft, draft.revision, [], [ino], [], undefined);
  }
}

const refused = (errno: number): Outcome => ({ errno, revision: 0, ino: 0 });
