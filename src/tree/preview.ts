/** What a policy would change: the tree as it would be under it, and who would gain or lose what. Nothing is changed. */
import type { Caller } from './caller.ts';
import type { Node, Time } from './node.ts';
import { reattribute } from './outside.ts';
import { Policy } from './policy.ts';
import { Replica } from './replica.ts';
import { type Right, type Rights, rightsOf, TreeRights } from './rights.ts';
import { Draft, type Snapshot } from './snapshot.ts';
import type { PolicySpec } from './spec.ts';

/**
 * Callers that neither a rule nor what guests own tells apart: what one of them may do, all may. What is undefined is an
 * id, program or unit of which nothing is said.
 */
export interface CallerClass {
  /** All of them. Undefined: any uid that nobody speaks of. */
  readonly uids: readonly number[] | undefined;
  /** Is in one of these groups, as the guest says. */
  readonly gids: readonly number[] | undefined;
  /** Runs one of these. */
  readonly programs: readonly string[] | undefined;
  readonly units: readonly string[] | undefined;
}

/** What a class of callers, by its index, gains or loses at a path. */
export interface RightsChange {
  readonly callers: readonly number[];
  readonly gained: readonly Right[];
  readonly lost: readonly Right[];
}

/** Nodes, or decisions, between two turns of others. */
const nodesInTurn = 256;
const decidedInTurn = 2048;
/** Classes of callers of one comparison. A guest decides how many uids own what it made. */
export const CLASSES_COMPARED = 256;

/** The tree under another policy. Yields where others may have a turn; `replica` must stay as it is. */
export function* underPolicy(replica: Replica, spec: PolicySpec, now: Time): Generator<undefined, Replica> {
  const policy = new Policy(spec);
  const draft = new Draft(replica.snapshot, replica.snapshot.revision);
  let count = 0;
  for (const node of replica.snapshot.nodes.values()) {
    if (node.madeBy === 'outside') reattribute({ draft, policy, now }, node);
    if (++count % nodesInTurn === 0) yield undefined;
  }
  const changed = new Replica();
  changed.become({ snapshot: draft.finish(), policy, usage: replica.usage });
  return changed;
}

/** The classes of callers, one caller of each, and how many classes there are beyond those. */
export interface Callers {
  readonly classes: readonly CallerClass[];
  readonly callers: readonly Caller[];
  readonly leftOut: number;
}

/** Everybody whom one of the policies, or what guests made, tells apart; root and anybody else first. */
export function* callersOf(snapshot: Snapshot, policies: readonly PolicySpec[]): Generator<undefined, Callers> {
  const users: Sayings<number> = new Map([[0, new Set(['root'])]]);
  // What is made outside is the group's 0 unless a rule says otherwise.
  const groups: Sayings<number> = new Map([[0, new Set(['default'])]]);
  sayRules(policies, users, groups);
  let count = 0;
  for (const { madeBy, uid, gid, acl } of snapshot.nodes.values()) {
    if (madeBy === 'guest') {
      for (const id of [uid, ...(acl?.users ?? []).map((entry) => entry.id)]) say(users, id, `owner ${id}`);
      for (const id of [gid, ...(acl?.groups ?? []).map((entry) => entry.id)]) say(groups, id, `owner ${id}`);
    }
    if (++count % nodesInTurn === 0) yield undefined;
  }
  sayMembers(policies, users, groups);
  const people: Pick<CallerClass, 'uids' | 'gids'>[] = [
    { uids: undefined, gids: undefined },
    ...alike(users).map((uids) => ({ uids, gids: undefined })),
    ...alike(groups).map((gids) => ({ uids: undefined, gids })),
  ];
  const programs = [undefined, ...alike(named(policies, 'program'))];
  const units = [undefined, ...alike(named(policies, 'unit'))];
  const classes: CallerClass[] = [];
  for (const program of programs)
    for (const unit of units)
      for (const who of people) {
        if (classes.length === CLASSES_COMPARED) break;
        classes.push({ ...who, programs: program, units: unit });
      }
  const others = { uid: freeId(users), gid: freeId(groups) };
  const callers = classes.map(
    (one): Caller => ({
      uid: one.uids?.[0] ?? others.uid,
      gid: one.gids?.[0] ?? others.gid,
      pid: 0,
      groups: [],
      program: one.programs?.[0],
      unit: one.units?.[0],
    }),
  );
  return { classes, callers, leftOut: programs.length * units.length * people.length - classes.length };
}

type Sayings<K> = Map<K, Set<string>>;

const say = <K>(sayings: Sayings<K>, key: K, what: string): void => {
  const all = sayings.get(key);
  if (all === undefined) sayings.set(key, new Set([what]));
  else all.add(what);
};

const sayRules = (policies: readonly PolicySpec[], users: Sayings<number>, groups: Sayings<number>): void => {
  for (const [policy, { rules }] of policies.entries())
    for (const [i, { owner, group, acl }] of rules.entries()) {
      if (owner !== undefined) say(users, owner, `owner ${policy}.${i}`);
      if (group !== undefined) say(groups, group, `group ${policy}.${i}`);
      for (const { tag, id, permissions } of acl ?? [])
        say(tag === 'user' ? users : groups, id, `acl ${policy}.${i} ${permissions}`);
    }
};

/** A list of members says something where its group does. */
const sayMembers = (policies: readonly PolicySpec[], users: Sayings<number>, groups: Sayings<number>): void => {
  for (const [policy, spec] of policies.entries())
    for (const { gid, members } of Object.values(spec.groups)) {
      if (members === undefined || !groups.has(gid)) continue;
      say(groups, gid, `members ${policy}`);
      for (const uid of members) say(users, uid, `member ${policy}.${gid}`);
    }
};

const named = (policies: readonly PolicySpec[], key: 'program' | 'unit'): Sayings<string> => {
  const found: Sayings<string> = new Map();
  for (const [policy, { rules }] of policies.entries())
    for (const [i, rule] of rules.entries()) for (const name of rule[key] ?? []) say(found, name, `${policy}.${i}`);
  return found;
};

/** Keys of which the same is said, together. */
const alike = <K>(sayings: Sayings<K>): K[][] => {
  const found = new Map<string, K[]>();
  for (const [key, all] of sayings) {
    const what = [...all].toSorted().join();
    const others = found.get(what);
    if (others === undefined) found.set(what, [key]);
    else others.push(key);
  }
  return [...found.values()];
};

/** An id of nobody that anything is said of: 65534, which means that on most systems, or one below. */
const freeId = (taken: ReadonlyMap<number, unknown>): number => {
  let id = 65_534;
  while (taken.has(id)) id--;
  return id;
};

/** Two trees of the same nodes, for the same callers. */
export class Comparison {
  readonly #after: Replica;
  readonly #rights: readonly [TreeRights, TreeRights];
  readonly #found = new Map<string, readonly RightsChange[]>();
  #turnAt = decidedInTurn;

  constructor(before: Replica, after: Replica, callers: readonly Caller[], wallMs: number) {
    this.#after = after;
    this.#rights = [new TreeRights(before, callers, wallMs), new TreeRights(after, callers, wallMs)];
  }

  /** Whether it is time that others have their turn. */
  isLong(): boolean {
    const decided = this.#rights[0].decided + this.#rights[1].decided;
    if (decided < this.#turnAt) return false;
    this.#turnAt = decided + decidedInTurn;
    return true;
  }

  /** Of a node of the tree before. Empty where nobody gains or loses anything. */
  changesOf(node: Node): readonly RightsChange[] {
    const before = this.#rights[0].of(node);
    const after = this.#rights[1].of(this.#after.snapshot.node(node.ino)!);
    const key = `${before.id} ${after.id}`;
    let changes = this.#found.get(key);
    if (changes === undefined) this.#found.set(key, (changes = changesBetween(before, after)));
    return changes;
  }
}

const changesBetween = (before: Rights, after: Rights): RightsChange[] => {
  const found = new Map<number, number[]>();
  for (const [caller, old] of before.bits.entries()) {
    const gained = after.bits[caller]! & ~old;
    const lost = old & ~after.bits[caller]!;
    if (gained === 0 && lost === 0) continue;
    const both = (gained << 8) | lost;
    const callers = found.get(both);
    if (callers === undefined) found.set(both, [caller]);
    else callers.push(caller);
  }
  return [...found].map(([both, callers]) => ({ callers, gained: rightsOf(both >> 8), lost: rightsOf(both & 0xff) }));
};
