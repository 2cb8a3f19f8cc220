/**
 * The one place where a tree changes. Decides every mutation, applies it to the next snapshot, has it kept, and only then
 * publishes it. A decision is one step that nobody sees the middle of, made against the head: what is kept, and what was
 * decided since and is being kept. When that fails, the head goes back to what is kept, and all that built on it is refused.
 */
import { EIO, EOVERFLOW } from '../wire/index.ts';
import { AppliedMutations } from './applied.ts';
import type { AuditSink } from './audit.ts';
import { Auditor } from './auditor.ts';
import type { Way } from './caller.ts';
import type { Applied, Commit, Persist, Restored } from './commit.ts';
import { type Change, changesBetween, type Delta } from './delta.ts';
import { nodesToKeep } from './durable.ts';
import { Ledger } from './ledger.ts';
import { type MutationContext, type MutationResult, mutate } from './mutate.ts';
import type { Mutation, Outcome, Settle, Upstream } from './mutation.ts';
import { isId, type Node, ROOT_INO, type Time } from './node.ts';
import { onceChanged, withoutOnceValues } from './once.ts';
import { placeSpec } from './outside.ts';
import { IntMap } from './persistent.ts';
import { Pipeline, type Step } from './pipeline.ts';
import { Policy } from './policy.ts';
import { type Made, Replica } from './replica.ts';
import { Draft, Snapshot } from './snapshot.ts';
import type { Spec } from './spec.ts';

export interface AuthorityOptions {
  readonly vm: string;
  /** Milliseconds since the epoch. */
  readonly wallMs: () => number;
  /** A collision-resistant digest of a value. */
  readonly digest: (bytes: Uint8Array) => string;
  readonly audit: AuditSink;
  /** Keeps commits before they are published. Those that it can't keep never were: their callers get EIO. */
  readonly persist?: Persist;
  readonly restored?: Restored;
  /** Told when a subscriber threw, which is a bug: the commit stands and the others are told of it. Default: throws it later. */
  readonly listenerThrew?: (error: unknown) => void;
}

/** What the outside changed. */
export interface Loaded {
  readonly revision: number;
  readonly changes: readonly Change[];
  /** Resolves when it is kept and published; rejects with what `persist` failed with, and then it never was. */
  readonly durable: Promise<void>;
}

function throwLater(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

const FIRST_FREE_INO = 16;

/** What the authority knows beyond the nodes. Immutable, so that what can't be kept leaves it as it was. */
interface Records {
  /** The next inode number to give out. */
  readonly nextIno: number;
  /** Digest of the value that the outside last gave a file or symlink, by ino. */
  readonly bases: IntMap<string>;
  /** Files made outside whose bytes a guest wrote, by ino. */
  readonly guestWritten: IntMap<true>;
}

interface Listener {
  readonly told: (delta: Delta) => void;
  /** It has been told of everything up to this number of `#published`. */
  readonly since: number;
}

/** A decision that is to become the head. */
interface Decision {
  /** Made from the head; undefined when nothing changes and only the order counts. */
  readonly draft?: Draft;
  readonly policy?: Policy | undefined;
  readonly records?: Records;
  /** Nobody has to keep it: a restart knows nothing of what it is about. */
  readonly unkept?: boolean;
  readonly applied?: Applied | undefined;
  readonly forgotten?: string;
  readonly kept: () => void;
  readonly refused: (failure: Error) => void;
  /** Does again what does not depend on what could not be kept. */
  readonly again?: () => void;
}

/** A decision in its place in the order. */
interface Decided extends Step {
  readonly decision: Decision;
  readonly touched: ReadonlySet<number>;
  readonly records: Records;
  /** Undefined when nothing changes. */
  change: { readonly delta: Delta; readonly made: Made } | undefined;
}

const untouched: ReadonlySet<number> = new Set();

/** Owns one tree: everything that changes it goes through `load` and `commit`. */
export class Authority {
  readonly #options: AuthorityOptions;
  /** What is kept and published. */
  readonly #durable = new Replica();
  /** With what is decided and not kept yet: another than `#durable` once a keeper has not answered at once. */
  #head = this.#durable;
  readonly #auditor: Auditor;
  readonly #listeners = new Set<Listener>();
  /** Replicas that may hold handles of an unlinked node, by ino; for what is published. */
  readonly #orphans = new Map<number, Set<string>>();
  readonly #holders = new Set<string>();
  /** Of the head. */
  readonly #ledger = new Ledger();
  readonly #pipeline: Pipeline<Decided>;
  readonly #applied = new AppliedMutations();
  /** Who waits for a mutation that is decided, by sequence and holder. */
  readonly #unsettled = new Map<string, Settle[]>();
  readonly #unpublished: { readonly delta: Delta | 'full'; readonly number: number }[] = [];
  /** Counts what was given to `#unpublished`. */
  #published = 0;
  #publishing = false;
  /** Of the head. */
  #records: Records = { nextIno: FIRST_FREE_INO, bases: IntMap.empty(), guestWritten: IntMap.empty() };
  #durableRecords = this.#records;
  /** The highest ever given out: also one that could not be kept is not given out again. */
  #lastRevision = 0;
  #persistFailure: Error | undefined;

  constructor(options: AuthorityOptions) {
    this.#options = options;
    this.#auditor = new Auditor(options.vm, options.audit, options.wallMs);
    this.#pipeline = new Pipeline(options.persist ?? (() => undefined), (error, steps) => this.#rollBack(error, steps));
    if (options.restored !== undefined) this.#restore(options.restored);
  }

  /** The tree as it is kept: for exports, explanations and APIs. */
  get replica(): Replica {
    return this.#durable;
  }

  get snapshot(): Snapshot {
    return this.#durable.snapshot;
  }

  /** Why the last commit could not be kept, or undefined. */
  get persistFailure(): Error | undefined {
    return this.#persistFailure;
  }

  /** Everything, as the first delta of a replica. */
  full(): Delta {
    const { snapshot, policy, usage } = this.#durable;
    return this.#forReplicas({
      revision: snapshot.revision,
      full: true,
      put: [...snapshot.nodes.values()],
      remove: [],
      policy: policy.spec,
      changes: [],
      usage,
    });
  }

  /**
   * Sends `full()` and then every commit, in order, once it is kept. `holder` names the replica: unlinked files live while
   * it has them open. A listener that throws is told to `listenerThrew`.
   */
  subscribe(holder: string, told: (delta: Delta) => void): () => void {
    const listener: Listener = { told, since: this.#published };
    this.#holders.add(holder);
    told(this.full());
    this.#listeners.add(listener);
    return () => {
      if (!this.#listeners.delete(listener)) return;
      this.#holders.delete(holder);
      for (const ino of [...this.#orphans.keys()]) this.#drop(ino, holder);
    };
  }

  /**
   * Makes the tree what the spec says, in one commit. Throws, and leaves it as it was, when the spec's entries make no
   * tree, and what a `persist` threw that answers at once.
   */
  load(spec: Spec): Loaded {
    const { policy: before, snapshot } = this.#head;
    const policyChanged =
      snapshot.node(ROOT_INO) === undefined || JSON.stringify(before.spec) !== JSON.stringify(spec.policy);
    const policy = policyChanged ? new Policy(spec.policy) : before;
    const draft = this.#draft();
    let { nextIno, bases, guestWritten } = this.#records;
    placeSpec(spec.entries, {
      draft,
      policy,
      now: this.#now(),
      allocate: () => nextIno++,
      valueChanged: (ino, bytes) => {
        const digest = this.#options.digest(bytes);
        if (bases.get(ino) === digest) return false;
        bases = bases.set(ino, digest);
        guestWritten = guestWritten.delete(ino);
        return true;
      },
    });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    promise.catch(() => {});
    const { revision, changes } = this.#enter({
      draft,
      policy: policyChanged ? policy : undefined,
      records: { nextIno, bases, guestWritten },
      kept: resolve,
      refused: reject,
    });
    return { revision, changes, durable: promise };
  }

  /**
   * Decides and applies what a guest asks for, and settles it once it is kept: in the same turn where the keeper answers at
   * once. `holder` as in `subscribe`. A holder that sends a mutation again, because it got no answer, gives it the same
   * `sequence`; undefined: it never does. Never throws for what a guest sends.
   */
  commit(mutation: Mutation, way: Way, holder: string, sequence: number | undefined, settle: Settle): void {
    if (sequence === undefined) return this.#decide(mutation, way, holder, undefined, settle);
    const outcome = this.#applied.get(holder, sequence);
    if (outcome !== undefined) return settle(outcome);
    const key = `${sequence} ${holder}`;
    const others = this.#unsettled.get(key);
    if (others !== undefined) {
      others.push(settle);
      return;
    }
    const waiting = [settle];
    this.#unsettled.set(key, waiting);
    this.#decide(mutation, way, holder, sequence, (outcome) => {
      this.#unsettled.delete(key);
      for (const settle of waiting) settle(outcome);
    });
  }

  #decide(mutation: Mutation, way: Way, holder: string, sequence: number | undefined, settle: Settle): void {
    if (mutation.op === 'drop') {
      this.#drop(mutation.ino, holder);
      return this.#answer({ errno: 0, revision: this.#head.snapshot.revision, ino: 0 }, settle);
    }
    if (!isId(mutation.caller.uid) || !isId(mutation.caller.gid)) return this.#answer(refused(EOVERFLOW), settle);
    const draft = this.#draft();
    let { nextIno, guestWritten } = this.#records;
    const context: MutationContext = {
      draft,
      replica: this.#head,
      way,
      now: this.#now(),
      wallMs: this.#options.wallMs(),
      allocate: () => nextIno++,
    };
    const result = mutate(mutation, context);
    if (result.errno === 0 && result.writes !== undefined) guestWritten = guestWritten.set(result.writes, true);
    const errno =
      result.errno === 0
        ? this.#ledger.check(draft, this.#head.policy, (ino) => guestWritten.get(ino) === true)
        : result.errno;
    if (!this.#record(mutation, way, result, errno)) return this.#answer(refused(EIO), settle);
    if (errno !== 0) return this.#answer(refused(errno), settle);
    // Nobody can have it open. One that subscribes while this is being kept could.
    if (this.#holders.size === 0 && this.#head === this.#durable)
      for (const node of unlinkedBy(draft)) draft.remove(node.ino);
    const revision = draft.touched.size === 0 ? this.#head.snapshot.revision : draft.revision;
    const outcome: Outcome = {
      errno: 0,
      revision,
      ino: result.ino,
      ...(result.bytes !== undefined && { bytes: result.bytes }),
    };
    try {
      this.#enter({
        draft,
        records: { ...this.#records, nextIno, guestWritten },
        applied: sequence === undefined ? undefined : { holder, sequence, outcome },
        kept: () => settle(outcome),
        refused: () => settle(refused(EIO)),
      });
    } catch (error) {
      if (error !== this.#persistFailure) throw error;
      settle(refused(EIO));
    }
  }

  /** Forgets the applied mutations of a holder that is gone for good. Resolves, or rejects, as `Loaded.durable`. */
  forgetHolder(holder: string): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    promise.catch(() => {});
    this.#enter({ forgotten: holder, kept: resolve, refused: reject });
    return promise;
  }

  /** Of whom applied mutations are remembered. */
  rememberedHolders(): string[] {
    return [...this.#applied.holders()];
  }

  /** Where a `FileSystem` in this process sends its mutations. */
  upstream(way: Way, holder: string): Upstream {
    return { submit: (mutation, settle) => this.commit(mutation, way, holder, undefined, settle) };
  }

  /** False when the log can't keep what it must: then nobody gets a value. */
  #record(mutation: Mutation, way: Way, result: MutationResult, errno: number): boolean {
    const { target } = result;
    if (target === undefined || (errno === 0 && target.madeBy === 'guest')) return true;
    return this.#auditor.record(way, mutation.op, this.#head, target, mutation.caller, errno) || mutation.op !== 'burn';
  }

  /** Answers what changes nothing, after all that was decided before: it may follow from that. */
  #answer(outcome: Outcome, settle: Settle): void {
    if (this.#pipeline.idle) settle(outcome);
    else this.#enter({ kept: () => settle(outcome), refused: () => settle(refused(EIO)) });
  }

  #restore(restored: Restored): void {
    const draft = new Draft(Snapshot.empty, restored.revision);
    let { bases, guestWritten } = this.#records;
    const known = new Map(restored.nodes.map(({ node }) => [node.ino, node]));
    for (const { node, base, keepBytes } of restored.nodes) {
      // What lay below something that was not kept went with it.
      if (!isAnchored(node, known)) continue;
      draft.put(node);
      if (base !== undefined) bases = bases.set(node.ino, base);
      if (keepBytes && node.madeBy === 'outside') guestWritten = guestWritten.set(node.ino, true);
    }
    this.#records = { nextIno: Math.max(restored.nextIno, FIRST_FREE_INO), bases, guestWritten };
    this.#durableRecords = this.#records;
    this.#lastRevision = restored.revision;
    const policy = restored.policy && new Policy(restored.policy);
    this.#ledger.add(draft, policy ?? this.#durable.policy, this.#isGuestWritten);
    this.#durable.apply({
      revision: restored.revision,
      full: true,
      put: [...draft.finish().nodes.values()],
      remove: [],
      ...(policy && { policy: policy.spec }),
      changes: [],
      usage: this.#ledger.usage,
    });
    for (const applied of restored.applied ?? []) this.#applied.add(applied);
  }

  readonly #isGuestWritten = (ino: number): boolean => this.#records.guestWritten.get(ino) === true;

  /** The next revision of the head. */
  #draft(): Draft {
    return new Draft(this.#head.snapshot, this.#lastRevision + 1);
  }

  /**
   * Makes a decision the head, has it kept, and publishes it once it is. Throws what a `persist` threw that answers at
   * once; then nothing has changed.
   */
  #enter(decision: Decision): { readonly revision: number; readonly changes: readonly Change[] } {
    const { draft, unkept = false, forgotten } = decision;
    const before = this.#head.snapshot;
    const policy = decision.policy ?? this.#head.policy;
    const changed = draft !== undefined && (draft.touched.size > 0 || decision.policy !== undefined);
    const revision = changed ? draft.revision : before.revision;
    const touched = draft?.touched ?? untouched;
    const next = draft === undefined ? before : draft.at(revision);
    const remove = [...touched].filter((ino) => next.node(ino) === undefined);
    const put = [...touched].flatMap((ino) => next.node(ino) ?? []);
    const records = without(decision.records ?? this.#records, remove);
    let commit: Commit | undefined;
    if (changed && !unkept) {
      commit = this.#commitOf(revision, nodesToKeep(before, next, put, policy), remove, records, decision);
    } else if (forgotten !== undefined) {
      commit = { revision, nextIno: records.nextIno, put: [], remove: [], forgotten };
    }
    const step: Decided = {
      commit,
      decision,
      touched,
      records,
      change: undefined,
      kept: () => this.#guarded(() => this.#publishStep(step)),
    };
    let isKept: boolean;
    try {
      isKept = this.#pipeline.enter(step);
    } catch (error) {
      this.#persistFailure = error instanceof Error ? error : new Error(String(error));
      throw this.#persistFailure;
    }
    if (!isKept && this.#head === this.#durable) {
      this.#head = new Replica();
      this.#head.become(this.#durable);
    }
    this.#lastRevision = Math.max(this.#lastRevision, revision);
    this.#records = records;
    const changes = changed && !unkept ? changesBetween(before, next, touched) : [];
    if (draft !== undefined && (changed || draft.filled)) {
      const judgedAnew = unkept ? [] : onceChanged(draft, next, this.#head.policy, policy);
      this.#ledger.add(draft, policy, this.#isGuestWritten);
      const delta: Delta = {
        revision,
        full: draft.filled,
        put: draft.filled ? [...next.nodes.values()] : [...put, ...judgedAnew],
        remove: draft.filled ? [] : remove,
        ...(decision.policy === undefined ? {} : { policy: policy.spec }),
        changes,
        usage: this.#ledger.usage,
      };
      step.change = { delta, made: { snapshot: next, policy } };
      if (this.#head !== this.#durable) this.#head.apply(delta, step.change.made);
    }
    if (isKept) this.#publishStep(step);
    return { revision, changes };
  }

  #commitOf(
    revision: number,
    { kept, unkept }: { readonly kept: readonly Node[]; readonly unkept: readonly number[] },
    remove: readonly number[],
    records: Records,
    { policy, applied }: Decision,
  ): Commit {
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
    };
  }

  /** It is kept: becomes what is published. */
  #publishStep({ commit, decision, records, change }: Decided): void {
    if (commit !== undefined) this.#persistFailure = undefined;
    this.#durableRecords = records;
    if (commit?.applied !== undefined) this.#applied.add(commit.applied);
    if (commit?.forgotten !== undefined) this.#applied.forget(commit.forgotten);
    if (change !== undefined) {
      const { delta, made } = change;
      for (const ino of delta.remove) this.#orphans.delete(ino);
      const unlinked = delta.full ? [] : delta.put.filter(isUnlinked);
      for (const { ino } of unlinked)
        if (this.#holders.size > 0 && !this.#orphans.has(ino)) this.#orphans.set(ino, new Set(this.#holders));
      // Before our own replica tells its listeners, for they may make the next commit, which has to be published after this.
      this.#unpublished.push({ delta: delta.full ? 'full' : delta, number: ++this.#published });
      this.#durable.apply(delta, made);
      this.#publish();
      for (const { ino } of unlinked) if (!this.#orphans.has(ino)) this.#remove(ino);
    }
    decision.kept();
  }

  /** Goes back to what is kept: the steps were the head's, and never were. */
  #rollBack(error: unknown, steps: readonly Decided[]): void {
    const failure = error instanceof Error ? error : new Error(String(error));
    this.#persistFailure = failure;
    const touched = new Set(steps.flatMap((step) => [...step.touched]));
    this.#records = { ...this.#durableRecords, nextIno: this.#records.nextIno };
    const { snapshot, policy } = this.#durable;
    this.#ledger.add(Draft.back(this.#head.snapshot, snapshot, touched), policy, this.#isGuestWritten);
    this.#head.become(this.#durable);
    for (const { decision } of steps) decision.again?.();
    for (const { decision } of steps) this.#guarded(() => decision.refused(failure));
  }

  #guarded(run: () => void): void {
    try {
      run();
    } catch (error) {
      (this.#options.listenerThrew ?? throwLater)(error);
    }
  }

  /** In order to everyone, also when a listener makes the next commit while it is told of this one. */
  #publish(): void {
    if (this.#publishing) return;
    this.#publishing = true;
    for (let next = this.#unpublished.shift(); next !== undefined; next = this.#unpublished.shift()) {
      const delta = next.delta === 'full' ? this.full() : this.#forReplicas(next.delta);
      for (const { told, since } of this.#listeners) {
        if (since >= next.number) continue;
        try {
          told(delta);
        } catch (error) {
          (this.#options.listenerThrew ?? throwLater)(error);
        }
      }
    }
    this.#publishing = false;
  }

  #forReplicas(delta: Delta): Delta {
    return withoutOnceValues(delta, this.#durable.snapshot, this.#durable.policy);
  }

  #now(): Time {
    const wallMs = this.#options.wallMs();
    const sec = Math.floor(wallMs / 1000);
    return { sec, nsec: Math.min(999_999_999, Math.round((wallMs - sec * 1000) * 1e6)) };
  }

  #drop(ino: number, holder: string): void {
    const holders = this.#orphans.get(ino);
    if (holders === undefined || !holders.delete(holder) || holders.size > 0) return;
    this.#orphans.delete(ino);
    this.#remove(ino);
  }

  /** An unlinked node that nobody has open is gone. */
  #remove(ino: number): void {
    const { snapshot } = this.#head;
    if (snapshot.node(ino)?.parentIno !== 0) return;
    const draft = new Draft(snapshot, snapshot.revision);
    draft.remove(ino);
    this.#enter({ draft, unkept: true, kept: () => {}, refused: () => {}, again: () => this.#remove(ino) });
  }
}

const isUnlinked = (node: Node): boolean => node.parentIno === 0;

const unlinkedBy = (draft: Draft): Node[] =>
  [...draft.touched].flatMap((ino) => draft.node(ino) ?? []).filter(isUnlinked);

/** What is known of nodes that are gone goes with them. */
function without(records: Records, inos: readonly number[]): Records {
  let { bases, guestWritten } = records;
  for (const ino of inos) {
    bases = bases.delete(ino);
    guestWritten = guestWritten.delete(ino);
  }
  return { nextIno: records.nextIno, bases, guestWritten };
}

/** Whether every directory above a node was kept. */
function isAnchored(node: Node, known: ReadonlyMap<number, Node>): boolean {
  for (let at: Node | undefined = node; at !== undefined; at = known.get(at.parentIno))
    if (at.ino === ROOT_INO) return true;
  return false;
}

const refused = (errno: number): Outcome => ({ errno, revision: 0, ino: 0 });
