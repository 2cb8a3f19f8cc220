/** Who uses how much of the quota. Counts what guests made, and what was made outside and a guest has written. */
import { EDQUOT, ENOSPC } from '../wire/index.ts';
import type { Usage } from './delta.ts';
import { type Node, ROOT_INO } from './node.ts';
import type { Policy } from './policy.ts';
import type { Draft, Snapshot } from './snapshot.ts';
import type { Quota } from './spec.ts';

/** No uid may take more than a quarter of any limit of the VM. */
export const UID_SHARE = 4;

interface Account {
  bytes: number;
  nodes: number;
}

export class Ledger {
  readonly #guestWritten: (node: Node) => boolean;
  #total: Account = { bytes: 0, nodes: 0 };
  readonly #byUid = new Map<number, Account>();

  constructor(guestWritten: (node: Node) => boolean) {
    this.#guestWritten = guestWritten;
  }

  get usage(): Usage {
    return { ...this.#total };
  }

  /** 0, ENOSPC when the draft grows past the VM's quota, EDQUOT when it grows past a uid's share or a rule's quota. */
  check(draft: Draft, policy: Policy): number {
    const { quota } = policy.spec;
    const { total, byUid } = this.#difference(draft);
    if (grown(total, this.#total, quota)) return ENOSPC;
    for (const [uid, growth] of byUid) {
      const share = { bytes: Math.floor(quota.bytes / UID_SHARE), nodes: Math.floor(quota.nodes / UID_SHARE) };
      if (grown(growth, this.#byUid.get(uid), share)) return EDQUOT;
    }
    return total.bytes > 0 || total.nodes > 0 ? this.#checkRules(draft, policy) : 0;
  }

  /** Counts what the draft changed. */
  add(draft: Draft): void {
    const { total, byUid } = this.#difference(draft);
    this.#total = { bytes: this.#total.bytes + total.bytes, nodes: this.#total.nodes + total.nodes };
    for (const [uid, growth] of byUid) {
      const account = this.#byUid.get(uid) ?? { bytes: 0, nodes: 0 };
      account.bytes += growth.bytes;
      account.nodes += growth.nodes;
      if (account.bytes === 0 && account.nodes === 0) this.#byUid.delete(uid);
      else this.#byUid.set(uid, account);
    }
  }

  #bytes(node: Node): number {
    return node.madeBy === 'guest' || this.#guestWritten(node) ? node.sizeBytes : 0;
  }

  #difference(draft: Draft): { total: Account; byUid: Map<number, Account> } {
    const total = { bytes: 0, nodes: 0 };
    const byUid = new Map<number, Account>();
    const count = (node: Node | undefined, sign: 1 | -1) => {
      if (node === undefined) return;
      const bytes = sign * this.#bytes(node);
      const nodes = node.madeBy === 'guest' ? sign : 0;
      if (bytes === 0 && nodes === 0) return;
      const account = byUid.get(node.uid) ?? { bytes: 0, nodes: 0 };
      account.bytes += bytes;
      account.nodes += nodes;
      byUid.set(node.uid, account);
      total.bytes += bytes;
      total.nodes += nodes;
    };
    for (const ino of draft.touched) {
      count(draft.base.node(ino), -1);
      count(draft.node(ino), 1);
    }
    return { total, byUid };
  }

  /** Rules with a quota bound what lies under the directory that they name. */
  #checkRules(draft: Draft, policy: Policy): number {
    if (!policy.hasQuotas) return 0;
    const after = draft.now;
    const bounded = new Map<number, Partial<Quota>>();
    for (const ino of draft.touched) {
      let at = after.node(ino);
      while (at !== undefined && at.parentIno !== 0) {
        const quota = policy.effective(after.path(at)).quota;
        if (quota !== undefined) bounded.set(at.ino, quota);
        if (at.ino === ROOT_INO) break;
        at = after.node(at.parentIno);
      }
    }
    for (const [ino, quota] of bounded) {
      const now = this.#under(after, ino);
      const before = this.#under(draft.base, ino);
      if (now.bytes > before.bytes && now.bytes > (quota.bytes ?? Number.POSITIVE_INFINITY)) return EDQUOT;
      if (now.nodes > before.nodes && now.nodes > (quota.nodes ?? Number.POSITIVE_INFINITY)) return EDQUOT;
    }
    return 0;
  }

  #under(snapshot: Snapshot, ino: number): Account {
    const account = { bytes: 0, nodes: 0 };
    const top = snapshot.node(ino);
    if (top === undefined) return account;
    for (const node of snapshot.descendants(top)) {
      account.bytes += this.#bytes(node);
      if (node.madeBy === 'guest' && node.ino !== ino) account.nodes++;
    }
    return account;
  }
}

const grown = (growth: Account, used: Account | undefined, limit: Quota): boolean =>
  (growth.bytes > 0 && growth.bytes + (used?.bytes ?? 0) > limit.bytes) ||
  (growth.nodes > 0 && growth.nodes + (used?.nodes ?? 0) > limit.nodes);
