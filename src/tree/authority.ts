/**
 * The one place where a tree changes. Decides every mutation, applies it to the next snapshot, has it kept, and only then
 * publishes it. A decision is one step that nobody sees the middle of, made against the head: what is kept, and what was
 * decided since and is being kept. When that fails, the head goes back to what is kept, and all that built on it is refused.
 */
import { EIO, EOVERFLOW } from '../wire/index.ts';
import { AnsweredRequests, AppliedMutations } from './applied.ts';
import type { AuditSink } from './audit.ts';
import { Auditor } from './auditor.ts';
import type { Way } from './caller.ts';
import type { Answered, Commit, Persist, Restored } from './commit.ts';
import { commitOf, type Decided, type Decision } from './decision.ts';
import { type Change, changesBetween, type Delta } from './delta.ts';
import { nodesToKeep } from './durable.ts';
import {
  applyEdits,
  checkConditions,
  checkRevision,
  checkUnchanged,
  dataRevisionsOf,
  type Edit,
  type EditCondition,
  notKept,
  overQuota,
  TreeError,
} from './edit.ts';
import { Holders } from './holders.ts';
import { Ledger } from './ledger.ts';
import { type MutationContext, type MutationResult, mutate } from './mutate.ts';
import type { Mutation, Outcome, Settle, Upstream } from './mutation.ts';
import { isId, type Node, ROOT_INO, type Time } from './node.ts';
import { onceChanged, withoutOnceValues } from './once.ts';
import { type Placing, placeSpec, reattributeAll, specOfOutside } from './outside.ts';
import { type Gather, Pipeline } from './pipeline.ts';
import { Policy } from './policy.ts';
import { Publisher } from './publisher.ts';
import { noRecords, recordsOf, without } from './records.ts';
import { Replica } from './replica.ts';
import { Draft, Snapshot } from './snapshot.ts';
import type { PolicySpec, Spec } from './spec.ts';
import { changesSpec, specRevisionOf } from './spec-revision.ts';

export interface AuthorityOptions {
  readonly vm: string;
  /** Milliseconds since the epoch. */
  readonly wallMs: () => number;
  /** A collision-resistant digest of a value. */
  readonly digest: (bytes: Uint8Array) => string;
  readonly audit: AuditSink;
  /** Keeps commits before they are published. Those that it can't keep never were: their callers get EIO. */
  readonly persist?: Persist;
  /** Puts off the first commit after a rest until what has come with it is decided too. Default: it is kept at once. */
  readonly gather?: Gather;
  /** What a caller is told of a commit that could not be kept. Default: EIO. */
  readonly errnoOf?: (failure: Error) => number;
  readonly restored?: Restored;
  /**
   * Replicas go on while the keeper of the tree is replaced: what they may have open without a name is kept too, and a
   * subscription that ends says nothing of its holder. `holdersAre` says who is left.
   */
  readonly holdersOutlive?: boolean;
  /** The path of what the host itself keeps current: no spec speaks of it or of what lies below. */
  readonly apart?: string;
  /** Told when a subscriber threw, which is a bug: the commit stands and the others are told of it. Default: throws it later. */
  readonly listenerThrew?: (error: unknown) => void;
}

/** What edits from outside changed. */
export interface Edited {
  readonly revision: number;
  readonly changes: readonly Change[];
  /** Of each path that was edited and is there: the revision of its last change of bytes or entries. */
  readonly dataRevisions: ReadonlyMap<string, number>;
}

/** What the outside changed. */
export interface Loaded {
  readonly revision: number;
  readonly changes: readonly Change[];
  /** Of the commit that last changed the policy: this one, or one before. */
  readonly policyRevision: number;
  /** Resolves when it is kept and published; rejects with what `persist` failed with, and then it never was. */
  readonly durable: Promise<void>;
}

function throwLater(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
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
  readonly #publisher: Publisher;
  /** Replicas, and what they may have open; for what is published. */
  readonly #holders = new Holders((ino) => this.#remove(ino));
  /** Of the head. */
  readonly #ledger = new Ledger();
  readonly #pipeline: Pipeline<Decided>;
  readonly #applied = new AppliedMutations();
  readonly #answered = new AnsweredRequests();
  /** Who waits for a mutation that is decided, by sequence and holder. */
  readonly #unsettled = new Map<string, Settle[]>();
  /** Of the head. */
  #records = noRecords;
  #durableRecords = this.#records;
  /** The highest ever given out: also one that could not be kept is not given out again. */
  #lastRevision = 0;
  #persistFailure: Error | undefined;

  constructor(options: AuthorityOptions) {
    this.#options = options;
    this.#auditor = new Auditor(options.vm, options.audit, options.wallMs);
    this.#publisher = new Publisher(
      (delta) => (delta.full ? this.full() : this.#forReplicas(delta)),
      options.listenerThrew ?? throwLater,
    );
    this.#pipeline = new Pipeline(
      options.persist ?? (() => undefined),
      (error, steps) => this.#rollBack(error, steps),
      options.gather,
    );
    if (options.restored !== undefined) this.#restore(options.restored);
    if (options.holdersOutlive === true) this.#holders.addUnknown();
  }

  /** The tree as it is kept: for exports, explanations and APIs. */
  get replica(): Replica {
    return this.#durable;
  }

  get snapshot(): Snapshot {
    return this.#durable.snapshot;
  }

  /** Of the commit that last changed the policy. */
  get policyRevision(): number {
    return this.#durableRecords.policyRevision;
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
    this.#holders.add(holder);
    const leave = this.#publisher.subscribe(this.full(), told);
    return () => {
      if (leave() && this.#options.holdersOutlive !== true) this.#holders.end(holder);
    };
  }

  /** All others are gone for good: what only they may have open goes, and what is remembered of them. */
  holdersAre(holders: readonly string[]): void {
    const alive = new Set(holders);
    this.#holders.are(alive);
    for (const holder of this.rememberedHolders()) if (!alive.has(holder)) void this.forgetHolder(holder);
  }

  /**
   * Makes the tree what the spec says, in one commit. Throws, and leaves it as it was, when the spec's entries make no
   * tree, and what a `persist` threw that answers at once. TreeError CONDITION_UNMET when what a spec can say of the tree was
   * changed after `ifRevision`.
   */
  load(spec: Spec, ifRevision?: number, request?: string): Loaded {
    const { policy: before, snapshot } = this.#head;
    checkUnchanged(this.#records.specRevision, snapshot.revision, ifRevision);
    const policyChanged = snapshot.node(ROOT_INO) === undefined || !samePolicy(before.spec, spec.policy);
    const policy = policyChanged ? new Policy(spec.policy) : before;
    const place = (placing: Placing): void => placeSpec(spec.entries, placing);
    return this.#fromOutside(policyChanged ? policy : undefined, place, { request });
  }

  /** Replaces the rules alone, and gives what was made outside the owners and modes that they say. Throws as `load`; `ifRevision` is of the policy. */
  setPolicy(spec: PolicySpec, ifRevision?: number, request?: string): Loaded {
    checkRevision('the policy', this.#records.policyRevision, ifRevision);
    const policy = samePolicy(this.#head.policy.spec, spec) ? undefined : new Policy(spec);
    return this.#fromOutside(policy, (placing) => policy && reattributeAll(placing), { request });
  }

  /**
   * Edits by path: all of them, in order and as one commit, when all conditions hold; else nothing. Resolves when it is
   * kept and published. Rejects with a TreeError.
   */
  async edit(edits: readonly Edit[], conditions: readonly EditCondition[] = [], request?: string): Promise<Edited> {
    let loaded: Loaded;
    let dataRevisions: ReadonlyMap<string, number> = new Map();
    try {
      checkConditions(conditions, this.#head.snapshot);
      loaded = this.#fromOutside(
        undefined,
        (placing) => {
          applyEdits(edits, placing);
          const errno = this.#ledger.check(placing.draft, placing.policy, placing.isGuestWritten);
          if (errno !== 0) throw overQuota(edits);
          dataRevisions = dataRevisionsOf(edits, placing.draft.now);
        },
        {
          always: true,
          request,
          dataRevision: () => (edits.length === 1 ? dataRevisions.get(edits[0]!.path) : undefined),
        },
      );
    } catch (error) {
      // What it was decided on has to be kept first.
      const before = error instanceof TreeError ? await this.settled() : undefined;
      throw before === undefined && error !== this.#persistFailure ? error : notKept(before ?? error);
    }
    const { revision, changes, durable } = loaded;
    await durable.catch((error: unknown) => {
      throw notKept(error);
    });
    return { revision, changes, dataRevisions };
  }

  /** What the outside made, as it stands, for another `load`. Values that were burned are empty. */
  outside(): Spec {
    return specOfOutside(this.snapshot, this.#durable.policy);
  }

  /** Resolves when all that was decided until now is answered: with undefined if it is kept, else with why it could not be. */
  settled(): Promise<Error | undefined> {
    if (this.#pipeline.idle) return Promise.resolve(undefined);
    return new Promise((resolve) => this.#enter({ kept: () => resolve(undefined), refused: resolve }));
  }

  /** What a request of this id was answered, if it changed the tree; once `settled`, for one that may be under way. */
  answered(id: string): Answered | undefined {
    return this.#answered.get(id);
  }

  /** `always`: a value counts although it is the one that the outside gave last, if a guest has written another since. */
  #fromOutside(
    policy: Policy | undefined,
    place: (placing: Placing & { readonly isGuestWritten: (ino: number) => boolean }) => void,
    how: {
      readonly always?: boolean;
      readonly request: string | undefined;
      readonly dataRevision?: () => number | undefined;
    },
  ): Loaded {
    const draft = this.#draft();
    let { nextIno, bases, guestWritten } = this.#records;
    const isGuestWritten = (ino: number): boolean => guestWritten.get(ino) === true;
    place({
      draft,
      policy: policy ?? this.#head.policy,
      now: this.#now(),
      allocate: () => nextIno++,
      valueChanged: (ino, bytes) => {
        const digest = this.#options.digest(bytes);
        if (bases.get(ino) === digest && !(how.always === true && isGuestWritten(ino))) return false;
        bases = bases.set(ino, digest);
        guestWritten = guestWritten.delete(ino);
        return true;
      },
      isGuestWritten,
    });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    promise.catch(() => {});
    const policyRevision = policy === undefined ? this.#records.policyRevision : draft.revision;
    const { revision, changes } = this.#enter({
      draft,
      policy,
      records: { ...this.#records, nextIno, bases, guestWritten, policyRevision },
      request: how.request === undefined ? undefined : { id: how.request, dataRevision: how.dataRevision?.() },
      kept: resolve,
      refused: reject,
    });
    return { revision, changes, policyRevision, durable: promise };
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

  /** Whether a mutation took effect, or is decided and being kept. Only the last `APPLIED_KEPT` of a holder are known. */
  hasTaken(holder: string, sequence: number): boolean {
    return this.#applied.get(holder, sequence) !== undefined || this.#unsettled.has(`${sequence} ${holder}`);
  }

  #decide(mutation: Mutation, way: Way, holder: string, sequence: number | undefined, settle: Settle): void {
    if (mutation.op === 'drop') {
      this.#holders.drop(mutation.ino, holder);
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
    if (this.#holders.none && this.#head === this.#durable)
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
        refused: (failure) => settle(refused(this.#errnoOf(failure))),
      });
    } catch (error) {
      if (error !== this.#persistFailure) throw error;
      settle(refused(this.#errnoOf(this.#persistFailure!)));
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
    else this.#enter({ kept: () => settle(outcome), refused: (failure) => settle(refused(this.#errnoOf(failure))) });
  }

  #errnoOf(failure: Error): number {
    return this.#options.errnoOf?.(failure) ?? EIO;
  }

  #restore(restored: Restored): void {
    const { nodes, records } = recordsOf(restored);
    const draft = new Draft(Snapshot.empty, restored.revision);
    for (const node of nodes) draft.put(node);
    this.#lastRevision = restored.revision;
    const specRevision = specRevisionOf(draft.now, records.policyRevision, this.#options.apart);
    this.#records = { ...records, specRevision };
    this.#durableRecords = this.#records;
    const policy = restored.policy && new Policy(restored.policy);
    this.#ledger.add(draft, policy ?? this.#durable.policy, this.#isGuestWritten);
    this.#durable.apply({
      revision: restored.revision,
      full: true,
      put: nodes,
      remove: [],
      ...(policy && { policy: policy.spec }),
      changes: [],
      usage: this.#ledger.usage,
    });
    for (const applied of restored.applied ?? []) this.#applied.add(applied);
    for (const answered of restored.answered ?? []) this.#answered.add(answered);
    for (const node of nodes) if (isUnlinked(node)) this.#holders.holdUnknown(node.ino);
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
    let records = without(decision.records ?? this.#records, remove);
    if (changed && (decision.policy !== undefined || changesSpec(before, next, touched, this.#options.apart)))
      records = { ...records, specRevision: revision };
    const changes = changed && !unkept ? changesBetween(before, next, touched) : [];
    let commit: Commit | undefined;
    if (changed && !unkept) {
      commit = commitOf(
        revision,
        nodesToKeep(before, next, put, policy, this.#options.holdersOutlive === true),
        remove,
        records,
        decision,
        changes,
      );
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

  /** It is kept: becomes what is published. */
  #publishStep({ commit, decision, records, change }: Decided): void {
    if (commit !== undefined) this.#persistFailure = undefined;
    this.#durableRecords = records;
    if (commit?.applied !== undefined) this.#applied.add(commit.applied);
    if (commit?.answered !== undefined) this.#answered.add(commit.answered);
    if (commit?.forgotten !== undefined) this.#applied.forget(commit.forgotten);
    if (change !== undefined) {
      const { delta, made } = change;
      for (const ino of delta.remove) this.#holders.forget(ino);
      const unlinked = delta.full ? [] : delta.put.filter(isUnlinked);
      const unheld = unlinked.filter(({ ino }) => !this.#holders.hold(ino));
      // Before our own replica tells its listeners, for they may make the next commit, which has to be published after this.
      this.#publisher.add(delta);
      this.#durable.apply(delta, made);
      this.#publisher.flush();
      for (const { ino } of unheld) this.#remove(ino);
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

  #forReplicas(delta: Delta): Delta {
    return withoutOnceValues(delta, this.#durable.snapshot, this.#durable.policy);
  }

  #now(): Time {
    const wallMs = this.#options.wallMs();
    const sec = Math.floor(wallMs / 1000);
    return { sec, nsec: Math.min(999_999_999, Math.round((wallMs - sec * 1000) * 1e6)) };
  }

  /** An unlinked node that nobody has open is gone. */
  #remove(ino: number): void {
    const { snapshot } = this.#head;
    if (snapshot.node(ino)?.parentIno !== 0) return;
    const isKept = this.#options.holdersOutlive === true;
    const draft = isKept ? this.#draft() : new Draft(snapshot, snapshot.revision);
    draft.remove(ino);
    this.#enter({ draft, unkept: !isKept, kept: () => {}, refused: () => {}, again: () => this.#remove(ino) });
  }
}

const samePolicy = (a: PolicySpec, b: PolicySpec): boolean => JSON.stringify(a) === JSON.stringify(b);

const isUnlinked = (node: Node): boolean => node.parentIno === 0;

const unlinkedBy = (draft: Draft): Node[] =>
  [...draft.touched].flatMap((ino) => draft.node(ino) ?? []).filter(isUnlinked);

const refused = (errno: number): Outcome => ({ errno, revision: 0, ino: 0 });
