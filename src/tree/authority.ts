/**
 * The one place where a tree changes. Decides every mutation, applies it to the next snapshot, has it kept, and only then
 * publishes it. Everything is synchronous: a mutation is one step that nobody sees the middle of.
 */
import { EIO, EOVERFLOW, S_IFMT, S_IFREG } from '../wire/index.ts';
import { isDirectory } from './access.ts';
import type { AuditSink } from './audit.ts';
import { Auditor } from './auditor.ts';
import type { Way } from './caller.ts';
import { type Change, changesBetween, type Delta, movedWithParent } from './delta.ts';
import { Ledger } from './ledger.ts';
import { type MutationContext, type MutationResult, mutate } from './mutate.ts';
import type { Mutation, Outcome, Upstream } from './mutation.ts';
import { isId, type Node, ROOT_INO, type Time } from './node.ts';
import { placeSpec } from './outside.ts';
import { IntMap } from './persistent.ts';
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
  /** Told when a subscriber threw, which is a bug: the commit stands and the others are told of it. Default: throws it later. */
  readonly listenerThrew?: (error: unknown) => void;
}

function throwLater(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

const FIRST_FREE_INO = 16;

/** What the authority knows beyond the nodes. Immutable, so that a commit that can't be kept leaves it as it was. */
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

/** Owns one tree: everything that changes it goes through `load` and `commit`. */
export class Authority {
  readonly #options: AuthorityOptions;
  readonly #replica = new Replica();
  readonly #auditor: Auditor;
  readonly #listeners = new Set<Listener>();
  /** Replicas that may hold handles of an unlinked node, by ino. */
  readonly #orphans = new Map<number, Set<string>>();
  readonly #holders = new Set<string>();
  readonly #ledger = new Ledger();
  readonly #unpublished: { readonly delta: Delta | 'full'; readonly number: number }[] = [];
  /** Counts what was given to `#unpublished`. */
  #published = 0;
  #publishing = false;
  #records: Records = { nextIno: FIRST_FREE_INO, bases: IntMap.empty(), guestWritten: IntMap.empty() };
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

  /**
   * Sends `full()` and then every commit, in order. `holder` names the replica: unlinked files live while it has them open.
   * A listener that throws is told to `listenerThrew`.
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
   * tree, and what `persist` threw.
   */
  load(spec: Spec): { readonly revision: number; readonly changes: readonly Change[] } {
    const before = this.#replica.policy.spec;
    const policyChanged =
      this.snapshot.node(ROOT_INO) === undefined || JSON.stringify(before) !== JSON.stringify(spec.policy);
    const policy = policyChanged ? new Policy(spec.policy) : this.#replica.policy;
    const draft = new Draft(this.snapshot);
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
    return this.#finish(draft, policyChanged ? policy : undefined, { nextIno, bases, guestWritten });
  }

  /** Decides and applies what a guest asks for. `holder` as in `subscribe`. Never throws for what a guest sends. */
  commit(mutation: Mutation, way: Way, holder: string): Outcome {
    if (mutation.op === 'drop') {
      this.#drop(mutation.ino, holder);
      return { errno: 0, revision: this.snapshot.revision, ino: 0 };
    }
    if (!isId(mutation.caller.uid) || !isId(mutation.caller.gid)) return refused(EOVERFLOW);
    const draft = new Draft(this.snapshot);
    let { nextIno, guestWritten } = this.#records;
    const context: MutationContext = {
      draft,
      replica: this.#replica,
      way,
      now: this.#now(),
      wallMs: this.#options.wallMs(),
      allocate: () => nextIno++,
    };
    const result = mutate(mutation, context);
    if (result.errno === 0 && result.writes !== undefined) guestWritten = guestWritten.set(result.writes, true);
    const errno =
      result.errno === 0
        ? this.#ledger.check(draft, this.#replica.policy, (ino) => guestWritten.get(ino) === true)
        : result.errno;
    if (!this.#record(mutation, way, result, errno)) return refused(EIO);
    return errno === 0 ? this.#settle(draft, result, { ...this.#records, nextIno, guestWritten }) : refused(errno);
  }

  /** False when the log can't keep what it must: then nobody gets a value. */
  #record(mutation: Mutation, way: Way, result: MutationResult, errno: number): boolean {
    const { target } = result;
    if (target === undefined || (errno === 0 && target.madeBy === 'guest')) return true;
    return (
      this.#auditor.record(way, mutation.op, this.#replica, target, mutation.caller, errno) || mutation.op !== 'burn'
    );
  }

  #settle(draft: Draft, result: MutationResult, records: Records): Outcome {
    const unlinked = [...draft.touched].filter((ino) => draft.node(ino)?.parentIno === 0);
    if (this.#holders.size === 0) for (const ino of unlinked) draft.remove(ino);
    let revision: number;
    try {
      ({ revision } = this.#finish(draft, undefined, records, () => {
        for (const ino of unlinked)
          if (this.#holders.size > 0 && !this.#orphans.has(ino)) this.#orphans.set(ino, new Set(this.#holders));
      }));
    } catch {
      return refused(EIO);
    }
    const outcome: Outcome = { errno: 0, revision, ino: result.ino };
    return result.bytes === undefined ? outcome : { ...outcome, bytes: result.bytes };
  }

  /** Where a `FileSystem` in this process sends its mutations. */
  upstream(way: Way, holder: string): Upstream {
    return { submit: (mutation, settle) => settle(this.commit(mutation, way, holder)) };
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
    this.#ledger.add(draft, this.#replica.policy, this.#isGuestWritten);
    this.#replica.apply({
      revision: restored.revision,
      full: true,
      put: [...draft.finish().nodes.values()],
      remove: [],
      changes: [],
      usage: this.#ledger.usage,
    });
  }

  readonly #isGuestWritten = (ino: number): boolean => this.#records.guestWritten.get(ino) === true;

  /** Has the draft kept, becomes it, and publishes it. Throws what `persist` threw; then nothing has changed. */
  #finish(
    draft: Draft,
    policy: Policy | undefined,
    records: Records,
    kept: () => void = () => {},
  ): { revision: number; changes: readonly Change[] } {
    const before = this.snapshot;
    if (draft.touched.size === 0 && policy === undefined) {
      this.#records = records;
      if (draft.filled) this.#become(draft, before.revision, [], [], [], undefined);
      return { revision: before.revision, changes: [] };
    }
    const next = draft.finish();
    const remove = [...draft.touched].filter((ino) => next.node(ino) === undefined);
    const put = [...draft.touched].flatMap((ino) => next.node(ino) ?? []);
    const changes = changesBetween(before, next, draft.touched);
    let { bases, guestWritten } = records;
    for (const ino of remove) {
      bases = bases.delete(ino);
      guestWritten = guestWritten.delete(ino);
    }
    const after = { nextIno: records.nextIno, bases, guestWritten };
    this.#persist(draft.revision, this.#toKeep(before, next, put, policy ?? this.#replica.policy), remove, after);
    this.#records = after;
    kept();
    const onceChanged = this.#onceChanged(draft, next, policy ?? this.#replica.policy);
    this.#become(draft, draft.revision, [...put, ...onceChanged], remove, changes, policy);
    return { revision: draft.revision, changes };
  }

  /**
   * What to keep of what was put, and what not: a node without a name (after a restart nobody can have it open), and what
   * a rule calls `durable: none`. A directory that moves takes what lies below it in or out of such a rule.
   */
  #toKeep(before: Snapshot, next: Snapshot, put: readonly Node[], policy: Policy): { kept: Node[]; unkept: number[] } {
    const concerned = new Map(put.map((node) => [node.ino, node]));
    if (policy.hasVolatileRules) {
      for (const node of put) {
        const old = before.node(node.ino);
        const moved = old !== undefined && (old.parentIno !== node.parentIno || old.name !== node.name);
        if (moved && isDirectory(node)) for (const below of next.descendants(node)) concerned.set(below.ino, below);
      }
    }
    const kept: Node[] = [];
    const unkept: number[] = [];
    for (const node of concerned.values()) {
      const volatile =
        policy.hasVolatileRules && node.madeBy === 'guest' && policy.effective(next.path(node)).durable === 'none';
      if (node.parentIno === 0 || volatile) unkept.push(node.ino);
      else kept.push(node);
    }
    return { kept, unkept };
  }

  #persist(
    revision: number,
    { kept, unkept }: { readonly kept: readonly Node[]; readonly unkept: readonly number[] },
    remove: readonly number[],
    records: Records,
  ): void {
    try {
      this.#options.persist?.({
        revision,
        nextIno: records.nextIno,
        put: kept.map((node) => ({
          node,
          base: records.bases.get(node.ino),
          keepBytes: node.madeBy === 'guest' || records.guestWritten.get(node.ino) === true,
        })),
        remove: [...remove, ...unkept],
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
    this.#ledger.add(draft, policy ?? this.#replica.policy, this.#isGuestWritten);
    const whole = draft.filled;
    const delta: Delta = {
      revision,
      full: whole,
      put: whole ? [...draft.finish().nodes.values()] : put,
      remove: whole ? [] : remove,
      ...(policy === undefined ? {} : { policy: policy.spec }),
      changes,
      usage: this.#ledger.usage,
    };
    // Before our own replica tells its listeners, for they may make the next commit, which has to be published after this.
    this.#unpublished.push({ delta: whole ? 'full' : delta, number: ++this.#published });
    this.#replica.apply(delta);
    this.#publish();
  }

  /** In order to everyone, also when a listener makes the next commit while it is told of this one. */
  #publish(): void {
    if (this.#publishing) return;
    this.#publishing = true;
    for (let next = this.#unpublished.shift(); next !== undefined; next = this.#unpublished.shift()) {
      const delta = next.delta === 'full' ? this.full() : this.#forReplica(next.delta);
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

  /**
   * Untouched nodes whose `once` changes, by a new policy or because a directory above them moved: replicas must drop or
   * get their bytes.
   */
  #onceChanged(draft: Draft, next: Snapshot, policy: Policy): Node[] {
    const before = this.#replica.policy;
    if (!before.hasOnce && !policy.hasOnce) return [];
    const nodes: Node[] = [];
    for (const node of policy === before ? movedWithParent(draft, next) : next.nodes.values()) {
      if (draft.touched.has(node.ino) || node.sizeBytes === 0) continue;
      const old = this.snapshot.node(node.ino)!;
      if (policy.effective(next.path(node)).once !== before.effective(this.snapshot.path(old)).once) nodes.push(node);
    }
    return nodes;
  }

  /** Replicas never hold the value of a `once` file. What a link says is no value: nothing ever burns it. */
  #forReplica(delta: Delta): Delta {
    const { policy, snapshot } = this.#replica;
    const put = delta.put.map((node) =>
      node.bytes !== undefined &&
      node.sizeBytes > 0 &&
      (node.mode & S_IFMT) === S_IFREG &&
      policy.effective(snapshot.path(node)).once
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

  #drop(ino: number, holder: string): void {
    const holders = this.#orphans.get(ino);
    if (holders === undefined || !holders.delete(holder) || holders.size > 0) return;
    this.#orphans.delete(ino);
    if (this.snapshot.node(ino)?.parentIno !== 0) return;
    const draft = new Draft(this.snapshot, this.snapshot.revision);
    draft.remove(ino);
    this.#become(draft, draft.revision, [], [ino], [], undefined);
  }
}

/** Whether every directory above a node was kept. */
function isAnchored(node: Node, known: ReadonlyMap<number, Node>): boolean {
  for (let at: Node | undefined = node; at !== undefined; at = known.get(at.parentIno))
    if (at.ino === ROOT_INO) return true;
  return false;
}

const refused = (errno: number): Outcome => ({ errno, revision: 0, ino: 0 });
