/** Who uses how much of the quota. Counts what guests made, and what was made outside and a guest has written. */
import { EDQUOT, ENOSPC } from '../wire/index.ts';
import { isDirectory } from './access.ts';
import type { Usage } from './delta.ts';
import { type Node, ROOT_INO, samePlace } from './node.ts';
import type { Policy } from './policy.ts';
import type { Draft, Snapshot } from './snapshot.ts';
import type { Quota } from './spec.ts';

/** No uid may take more than a quarter of any limit of the VM. */
export const UID_SHARE = 4;

interface Account {
  bytes: number;
  nodes: number;
}

/** What one node was counted as. */
interface Entry {
  readonly uid: number;
  readonly bytes: number;
  readonly nodes: number;
}

interface Growth {
  readonly total: Account;
  readonly byUid: ReadonlyMap<number, Account>;
  /** Growth of what lies under each directory (or is the file) that a rule gives a quota. */
  readonly byRule: ReadonlyMap<number, Account>;
}

const nothing: Entry = { uid: 0, bytes: 0, nodes: 0 };

/** Tells of a file made outside whether the bytes that it has in a draft are a guest's. */
type GuestWritten = (ino: number) => boolean;

/** Bytes and nodes of the VM, of each uid, and of what lies under each path that a rule bounds. */
export class Ledger {
  #total: Account = { bytes: 0, nodes: 0 };
  readonly #byUid = new Map<number, Account>();
  /** What counts, by ino: a file made outside begins to count when a guest writes it, and ends when the outside does. */
  readonly #entries = new Map<number, Entry>();
  /** What lies under each path that a rule bounds, by ino; found out when first asked for. */
  readonly #underRule = new Map<number, Account>();
  /** Nodes without a name, which are below no directory and yet count where they were. */
  readonly #unlinked = new Set<number>();
  #policy: Policy | undefined;

  get usage(): Usage {
    return { ...this.#total };
  }

  /** 0, ENOSPC when the draft grows past the VM's quota, EDQUOT when it grows past a uid's share or a rule's quota. */
  check(draft: Draft, policy: Policy, guestWritten: GuestWritten): number {
    const { quota } = policy.spec;
    const { total, byUid, byRule } = this.#growth(draft, policy, guestWritten);
    if (grown(total, this.#total, quota)) return ENOSPC;
    const share = { bytes: Math.floor(quota.bytes / UID_SHARE), nodes: Math.floor(quota.nodes / UID_SHARE) };
    for (const [uid, growth] of byUid) if (grown(growth, this.#byUid.get(uid), share)) return EDQUOT;
    for (const [ino, growth] of byRule) {
      if (growth.bytes <= 0 && growth.nodes <= 0) continue;
      const quota = policy.effective(draft.now.ruledPath(draft.node(ino)!)).quota!;
      if (grown(growth, this.#under(draft.base, policy, ino), { ...unbounded, ...quota })) return EDQUOT;
    }
    return 0;
  }

  /** Counts what the draft changed. `policy` is the one that holds after it. */
  add(draft: Draft, policy: Policy, guestWritten: GuestWritten): void {
    const { total, byUid, byRule } = this.#growth(draft, policy, guestWritten);
    this.#total = sum(this.#total, total);
    for (const [uid, growth] of byUid) {
      const account = sum(this.#byUid.get(uid), growth);
      if (account.bytes === 0 && account.nodes === 0) this.#byUid.delete(uid);
      else this.#byUid.set(uid, account);
    }
    if (policy !== this.#policy || movesDirectory(draft)) this.#underRule.clear();
    this.#policy = policy;
    for (const [ino, growth] of byRule) {
      const known = this.#underRule.get(ino);
      if (known !== undefined) this.#underRule.set(ino, sum(known, growth));
    }
    for (const ino of draft.touched) {
      const entry = entryOf(draft.node(ino), guestWritten);
      if (entry === nothing) this.#entries.delete(ino);
      else this.#entries.set(ino, entry);
      if (draft.node(ino) === undefined) this.#underRule.delete(ino);
      if (draft.node(ino)?.parentIno === 0) this.#unlinked.add(ino);
      else this.#unlinked.delete(ino);
    }
  }

  #growth(draft: Draft, policy: Policy, guestWritten: GuestWritten): Growth {
    const total = { bytes: 0, nodes: 0 };
    const byUid = new Map<number, Account>();
    const byRule = new Map<number, Account>();
    const moves = policy.hasQuotas && movesDirectory(draft);
    const count = (node: Node | undefined, entry: Entry, sign: 1 | -1) => {
      if (entry === nothing) return;
      addTo(byUid, entry.uid, entry, sign);
      total.bytes += sign * entry.bytes;
      total.nodes += sign * entry.nodes;
      if (!policy.hasQuotas || moves || node === undefined) return;
      const snapshot = sign === 1 ? draft.now : draft.base;
      for (const ino of bounding(snapshot, policy, node)) {
        // A directory does not count against its own quota of nodes.
        addTo(byRule, ino, ino === node.ino ? { ...entry, nodes: 0 } : entry, sign);
      }
    };
    for (const ino of draft.touched) {
      count(draft.base.node(ino), this.#entries.get(ino) ?? nothing, -1);
      count(draft.node(ino), entryOf(draft.node(ino), guestWritten), 1);
    }
    if (moves) this.#growthByMoves(draft, policy, guestWritten, byRule);
    return { total, byUid, byRule };
  }

  /** A directory that moves takes all below it from the quotas that it leaves to those that it comes under. */
  #growthByMoves(draft: Draft, policy: Policy, guestWritten: GuestWritten, byRule: Map<number, Account>): void {
    const after = draft.now;
    for (const touched of draft.touched) {
      const node = draft.node(touched);
      if (node === undefined) continue;
      for (const ino of bounding(after, policy, node)) {
        if (byRule.has(ino)) continue;
        addTo(
          byRule,
          ino,
          this.#count(after, policy, ino, (at) => entryOf(at, guestWritten)),
          1,
        );
        addTo(byRule, ino, this.#under(draft.base, policy, ino), -1);
      }
    }
  }

  #under(snapshot: Snapshot, policy: Policy, ino: number): Account {
    let account = this.#underRule.get(ino);
    if (account === undefined) {
      account = this.#count(snapshot, policy, ino, (node) => this.#entries.get(node.ino) ?? nothing);
      this.#underRule.set(ino, account);
    }
    return account;
  }

  #count(snapshot: Snapshot, policy: Policy, ino: number, entryAt: (node: Node) => Entry): Account {
    const account = { bytes: 0, nodes: 0 };
    const top = snapshot.node(ino);
    if (top === undefined) return account;
    const add = (node: Node): void => {
      const entry = entryAt(node);
      account.bytes += entry.bytes;
      if (node.ino !== ino) account.nodes += entry.nodes;
    };
    for (const node of snapshot.descendants(top)) add(node);
    for (const unlinked of this.#unlinked) {
      const node = snapshot.node(unlinked);
      if (node?.parentIno !== 0 || node === top) continue;
      for (const bound of bounding(snapshot, policy, node)) if (bound === ino) add(node);
    }
    return account;
  }
}

function entryOf(node: Node | undefined, guestWritten: GuestWritten): Entry {
  if (node === undefined) return nothing;
  const ofGuest = node.madeBy === 'guest';
  if (!ofGuest && !guestWritten(node.ino)) return nothing;
  return { uid: node.uid, bytes: node.sizeBytes, nodes: ofGuest ? 1 : 0 };
}

const unbounded: Quota = { bytes: Number.POSITIVE_INFINITY, nodes: Number.POSITIVE_INFINITY };

const sum = (a: Account | undefined, b: Account): Account => ({
  bytes: (a?.bytes ?? 0) + b.bytes,
  nodes: (a?.nodes ?? 0) + b.nodes,
});

function addTo(accounts: Map<number, Account>, key: number, { bytes, nodes }: Account, sign: 1 | -1): void {
  accounts.set(key, sum(accounts.get(key), { bytes: sign * bytes, nodes: sign * nodes }));
}

const grown = (growth: Account, used: Account | undefined, limit: Quota): boolean =>
  (growth.bytes > 0 && growth.bytes + (used?.bytes ?? 0) > limit.bytes) ||
  (growth.nodes > 0 && growth.nodes + (used?.nodes ?? 0) > limit.nodes);

/** The node itself and the directories above it, as far as rules give them a quota: an unlinked one counts where it was. */
function* bounding(snapshot: Snapshot, policy: Policy, node: Node): Generator<number> {
  for (let at: Node | undefined = node; at !== undefined; ) {
    if (policy.effective(snapshot.ruledPath(at)).quota !== undefined) yield at.ino;
    if (at.ino === ROOT_INO) return;
    at = at.parentIno === 0 ? snapshot.lastDirectory(at) : snapshot.node(at.parentIno);
  }
}

/** Whether a directory that may have something below it gets another path. */
function movesDirectory(draft: Draft): boolean {
  for (const ino of draft.touched) {
    const before = draft.base.node(ino);
    const now = draft.node(ino);
    if (before === undefined || now === undefined || !isDirectory(before)) continue;
    if (!samePlace(before, now)) return true;
  }
  return false;
}
