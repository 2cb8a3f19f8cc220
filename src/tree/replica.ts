/** A tree as it is served: the current snapshot and policy, and what follows from both for each node. */
import { EACCES, R_OK, S_IFDIR, S_IFLNK, S_IFMT, W_OK, X_OK } from '../wire/index.ts';
import { decide, isDirectory, refusedBySpecialKey } from './access.ts';
import type { Caller, Way } from './caller.ts';
import { asDifference, type Change, type Delta, keepingSame, type Usage } from './delta.ts';
import { type Node, ROOT_INO, samePlace } from './node.ts';
import { type Effective, grantsEntries, Policy } from './policy.ts';
import { applyDelta, Snapshot } from './snapshot.ts';
import { defaultQuota } from './spec.ts';
import { Unlinked } from './unlinked.ts';

/**
 * How a node's bytes and attributes may be cached by a kernel that all its users share.
 * `shared`: the same for every caller at any time, bytes fixed for one `dataRevision`: cache for ever by version.
 * `private`: the answer depends on who or when; bytes fixed for one `dataRevision`: never cache.
 * `mutable`: guests may write it: never cache, one identity for its whole life.
 */
export type Caching = 'shared' | 'private' | 'mutable';

/** What follows for a node from the policy and from where it is. */
export interface Facts {
  readonly effective: Effective;
  readonly caching: Caching;
  /** Type and permission bits as guests are shown them. */
  readonly shownMode: number;
  /** A directory made outside in which no rule lets guests create, whatever the default mode shows. */
  readonly entriesLocked: boolean;
  /** Everybody may read it at any time, whoever else may write it: its bytes may lie where they are decided no more. */
  readonly readableByAll: boolean;
  /** Each open for reading is recorded: made outside, and not readable by the whole world at any time. */
  readonly readsAudited: boolean;
}

/** A change with what it takes to judge later who may be told of it. Holds no values. */
export interface RememberedChange {
  readonly change: Change;
  /** As it was at the change's path, without its bytes. */
  readonly node: Node;
  /** The directories above that path, nearest first. */
  readonly above: readonly Node[];
}

/** What applying a delta gives. */
export interface Made {
  readonly snapshot: Snapshot;
  readonly policy: Policy;
}

/** Inode number of `/.changes`. */
export const CHANGES_INO = 2;

const DEFAULT_MAX_STALE_MS = 3_600_000;

const noPolicy = new Policy({ rules: [], users: {}, groups: {}, quota: defaultQuota });

export class Replica {
  readonly unlinked = new Unlinked();
  #snapshot = Snapshot.empty;
  #policy = noPolicy;
  #cutOffSinceMs: number | undefined;
  #usage: Usage = { bytes: 0, nodes: 0 };
  /** By ino; dropped when a directory or the policy changes, for both decide about all that lies below. */
  #facts = new Map<number, Facts>();
  #asked: Node | undefined;
  #answered: Facts | undefined;
  readonly #listeners = new Set<(delta: Delta, before: Snapshot) => void>();

  get snapshot(): Snapshot {
    return this.#snapshot;
  }

  get policy(): Policy {
    return this.#policy;
  }

  get usage(): Usage {
    return this.#usage;
  }

  /** Seconds since this replica last knew that it was up to date; 0 while it is connected. */
  ageSeconds(nowMs: number): number {
    return this.#cutOffSinceMs === undefined ? 0 : Math.max(0, Math.round((nowMs - this.#cutOffSinceMs) / 1000));
  }

  /** Tells since when (monotonic milliseconds) no commits can arrive, or that they arrive again. */
  set cutOffSinceMs(sinceMs: number | undefined) {
    this.#cutOffSinceMs = sinceMs;
  }

  /**
   * Becomes the next revision, and tells the listeners. A full delta comes first, and again from every later host daemon.
   * `made`: what applying it gives, by whoever has made that already.
   */
  apply(told: Delta, made?: Made): void {
    const before = this.#snapshot;
    const again = made === undefined && told.full && before.nodes.size > 0;
    const next = again ? keepingSame(before, told) : told;
    this.#snapshot = made?.snapshot ?? applyDelta(before, next);
    const delta = again ? asDifference(before, this.#snapshot, next) : next;
    this.#usage = delta.usage;
    if (delta.policy !== undefined) this.#policy = made?.policy ?? new Policy(delta.policy);
    let all = delta.full || delta.policy !== undefined;
    for (const node of delta.put) {
      this.#facts.delete(node.ino);
      if (all || !isDirectory(node)) continue;
      const old = before.node(node.ino);
      all = old !== undefined && !samePlaceAndRights(old, node);
    }
    for (const ino of delta.remove) this.#facts.delete(ino);
    if (all) this.#facts.clear();
    this.#asked = undefined;
    for (const listener of this.#listeners) listener(delta, before);
  }

  /** Becomes what another is. The listeners are not told. */
  become({ snapshot, policy, usage }: Pick<Replica, 'snapshot' | 'policy' | 'usage'>): void {
    this.#snapshot = snapshot;
    this.#policy = policy;
    this.#usage = usage;
    this.#facts.clear();
    this.#asked = undefined;
  }

  onApply(listener: (delta: Delta, before: Snapshot) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  facts(node: Node): Facts {
    // One request asks several times of one node.
    if (node === this.#asked) return this.#answered!;
    let facts = this.#facts.get(node.ino);
    if (facts === undefined) {
      facts = this.#deduce(node);
      if (this.#snapshot.node(node.ino) === node) this.#facts.set(node.ino, facts);
    }
    this.#asked = node;
    this.#answered = facts;
    return facts;
  }

  #deduce(node: Node): Facts {
    const path = this.#snapshot.ruledPath(node);
    const effective = this.#policy.effective(path);
    const forAll = this.#seenByAll(node) && !effective.special && !node.burned;
    const readableByAll = forAll && allClasses(node, 0o4);
    return {
      effective,
      // How old a value is depends on when it is asked for.
      caching: caching(node, forAll && (isDirectory(node) || effective.maxStaleMs === undefined)),
      shownMode: shownMode(node, effective),
      entriesLocked: node.madeBy === 'outside' && isDirectory(node) && !grantsEntries(effective, path),
      readableByAll,
      // Burning records itself.
      readsAudited: node.madeBy === 'outside' && node.ino !== CHANGES_INO && !effective.once && !readableByAll,
    };
  }

  /** Whether everybody may search all directories above it, at any time. */
  #seenByAll(node: Node): boolean {
    if (node.ino === ROOT_INO) return true;
    const parent = this.#snapshot.node(node.parentIno);
    return parent !== undefined && this.facts(parent).caching === 'shared';
  }

  /** 0 or EACCES for any of R_OK, W_OK, X_OK, by mode, ACL and rules; search permission above it is not asked for. */
  decide(way: Way, node: Node, caller: Caller, mask: number, wallMs: number): number {
    const { effective, entriesLocked } = this.facts(node);
    if (entriesLocked && (mask & W_OK) !== 0) return EACCES;
    return decide(this.#policy, way, node, effective, caller, mask, wallMs);
  }

  /**
   * The same for who has the node open already: by mode and ACL for what was made outside, which for what guests made count at
   * open only, as POSIX has it; by the special keys of rules for both.
   */
  decideOpened(way: Way, node: Node, opener: Caller, mask: number, wallMs: number): number {
    if (node.madeBy === 'outside') return this.decide(way, node, opener, mask, wallMs);
    return refusedBySpecialKey(this.facts(node).effective, way, opener, wallMs) === undefined ? 0 : EACCES;
  }

  /** A host that is cut off gives out what it has for so long only: `maxStale`, an hour for what is not for all. */
  isTooOld(node: Node, nowMs: number): boolean {
    const ageSeconds = this.ageSeconds(nowMs);
    if (ageSeconds === 0 || node.madeBy === 'guest') return false;
    const { effective, caching } = this.facts(node);
    const maxStaleMs =
      effective.maxStaleMs ?? (caching === 'private' ? DEFAULT_MAX_STALE_MS : Number.POSITIVE_INFINITY);
    return ageSeconds * 1000 > maxStaleMs;
  }

  /** Whether the caller is not told that a node exists: a rule says `hidden`, and it may not read it. */
  hides(way: Way, node: Node, caller: Caller, wallMs: number): boolean {
    return this.facts(node).effective.hidden && this.decide(way, node, caller, R_OK, wallMs) !== 0;
  }

  /**
   * Whether a change may be told to a caller: it can reach the path, and may read what is there or list the directory, for
   * else it would learn a name. What is no longer at that path (removed, moved) is judged as it was there: a move to a
   * public place tells nobody of the private one.
   */
  visible(way: Way, { change, node, above }: RememberedChange, caller: Caller, wallMs: number): boolean {
    const there = this.#snapshot.node(change.ino);
    const stays = there !== undefined && this.#snapshot.path(there) === change.path;
    const judged = stays ? there : node;
    const effective = stays ? this.facts(there).effective : this.#policy.effective(change.path);
    let known = decide(this.#policy, way, judged, effective, caller, R_OK, wallMs) === 0;
    if (!known && effective.hidden) return false;
    let path = change.path;
    for (const old of above) {
      path = path.slice(0, Math.max(1, path.lastIndexOf('/')));
      const directory = this.#snapshot.node(old.ino) ?? old;
      const rights = this.#policy.effective(path);
      const lists = decide(this.#policy, way, directory, rights, caller, R_OK, wallMs) === 0;
      if (rights.hidden && !lists) return false;
      known ||= old === above[0] && lists;
      if (!known || decide(this.#policy, way, directory, rights, caller, X_OK, wallMs) !== 0) return false;
    }
    return known;
  }

  /**
   * Whether the caller may search every directory above a node. Where the guest's kernel checks, it has done so for what
   * guests made, and better than we can (a process may hold a directory open whose ancestors it can't search).
   */
  reachable(way: Way, node: Node, caller: Caller, wallMs: number, alsoGuestMade = !way.kernelChecks): boolean {
    let at = node;
    while (at.ino !== ROOT_INO && at.parentIno !== 0) {
      const parent = this.#snapshot.node(at.parentIno);
      if (parent === undefined) return false;
      const facts = this.facts(parent);
      if (facts.caching === 'shared') return true;
      if (
        (alsoGuestMade || parent.madeBy === 'outside') &&
        decide(this.#policy, way, parent, facts.effective, caller, X_OK, wallMs) !== 0
      )
        return false;
      at = parent;
    }
    return true;
  }
}

function caching(node: Node, forAll: boolean): Caching {
  if (node.madeBy === 'guest') return 'mutable';
  const type = node.mode & S_IFMT;
  if (type === S_IFDIR) return forAll && allClasses(node, 0o1) ? 'shared' : 'private';
  if (type === S_IFLNK) return forAll ? 'shared' : 'private';
  if (node.ino === CHANGES_INO) return 'private';
  if (writable(node)) return 'mutable';
  return forAll && allClasses(node, 0o4) ? 'shared' : 'private';
}

/** Whether each of owner, group, other and every ACL entry grants `mask`, so that nobody's answer differs. */
function allClasses(node: Node, mask: number): boolean {
  const { mode, acl } = node;
  if ((mode & mask) === 0 || ((mode >> 3) & mask) === 0 || ((mode >> 6) & mask) === 0) return false;
  return (
    acl === undefined ||
    [acl.groupObj, ...[...acl.users, ...acl.groups].map((entry) => entry.permissions)].every(
      (bits) => (bits & mask) !== 0,
    )
  );
}

/** Whether a write bit of what was made outside applies to anybody. */
function writable(node: Node): boolean {
  if ((node.mode & 0o222) !== 0) return true;
  return (
    node.acl !== undefined && [...node.acl.users, ...node.acl.groups].some((entry) => (entry.permissions & 2) !== 0)
  );
}

function shownMode(node: Node, effective: Effective): number {
  const type = node.mode & S_IFMT;
  if (node.burned) return type;
  if (!effective.hostDecides || type === S_IFLNK) return node.mode;
  return node.mode | (type === S_IFDIR ? 0o777 : 0o666);
}

const samePlaceAndRights = (a: Node, b: Node): boolean =>
  samePlace(a, b) &&
  a.madeBy === b.madeBy &&
  a.mode === b.mode &&
  a.uid === b.uid &&
  a.gid === b.gid &&
  a.acl === b.acl;
