/** What callers may do all over one tree, the way to each node included. Nodes that are alike are decided once. */
import { R_OK, S_IFDIR, S_IFLNK, S_IFMT, W_OK, X_OK } from '../wire/index.ts';
import { type Caller, ways } from './caller.ts';
import { type Node, ROOT_INO } from './node.ts';
import type { Effective } from './policy.ts';
import type { Replica } from './replica.ts';

/** Of a directory, `read` is to list it, `write` to create and remove in it, `search` to pass through it; no other node has that. */
export type Right = 'see' | 'read' | 'write' | 'search';

const bits: Readonly<Record<Right, number>> = { see: 1, read: 2, write: 4, search: 8 };
const passes = bits.see | bits.search;
const rights = Object.keys(bits) as Right[];

/** Rights as words, in a fixed order. */
export const rightsOf = (all: number): readonly Right[] => rights.filter((right) => (all & bits[right]) !== 0);

/** Nodes for which all callers have the same rights share one. */
export interface Rights {
  readonly id: number;
  /** By caller. */
  readonly bits: Uint8Array;
}

/** For a tree that does not change meanwhile. */
export class TreeRights {
  readonly #replica: Replica;
  readonly #callers: readonly Caller[];
  readonly #wallMs: number;
  readonly #byIno = new Map<number, Rights>();
  readonly #byForm = new Map<string, Rights>();
  readonly #special = new Map<Effective, number>();
  #decided = 0;

  /** Callers come by a way that proves all that is said of them. */
  constructor(replica: Replica, callers: readonly Caller[], wallMs: number) {
    this.#replica = replica;
    this.#callers = callers;
    this.#wallMs = wallMs;
  }

  /** How often it had to decide: what it has cost so far. */
  get decided(): number {
    return this.#decided;
  }

  of(node: Node): Rights {
    const known = this.#byIno.get(node.ino);
    if (known !== undefined) return known;
    const parent = node.ino === ROOT_INO ? undefined : this.#replica.snapshot.node(node.parentIno);
    const above = parent && this.of(parent);
    const form = `${above?.id ?? ''} ${this.#formOf(node)}`;
    let found = this.#byForm.get(form);
    if (found === undefined) {
      found = { id: this.#byForm.size, bits: this.#decide(node, above) };
      this.#byForm.set(form, found);
    }
    this.#byIno.set(node.ino, found);
    return found;
  }

  /** Everything that a decision depends on, but for the caller and the way there. */
  #formOf(node: Node): string {
    const { effective, entriesLocked } = this.#replica.facts(node);
    let special = 0;
    if (effective.special || effective.writeOnce) {
      special = this.#special.get(effective) ?? this.#special.size + 1;
      this.#special.set(effective, special);
    }
    const { madeBy, mode, uid, gid, acl, burned, sizeBytes } = node;
    return `${madeBy} ${mode} ${uid} ${gid} ${burned} ${entriesLocked} ${special} ${sizeBytes > 0} ${acl === undefined ? '' : JSON.stringify(acl)}`;
  }

  #decide(node: Node, above: Rights | undefined): Uint8Array {
    const found = new Uint8Array(this.#callers.length);
    for (const [i, caller] of this.#callers.entries())
      if (above === undefined || (above.bits[i]! & passes) === passes) found[i] = this.#ownBits(node, caller);
    this.#decided += found.length;
    return found;
  }

  #ownBits(node: Node, caller: Caller): number {
    const may = (mask: number): boolean => this.#replica.decide(ways.agent, node, caller, mask, this.#wallMs) === 0;
    const { effective } = this.#replica.facts(node);
    const reads = may(R_OK);
    if (effective.hidden && !reads) return 0;
    const type = node.mode & S_IFMT;
    let all = bits.see | (reads ? bits.read : 0);
    if (type === S_IFLNK) return all;
    if (type === S_IFDIR) {
      if (may(X_OK)) all |= bits.search;
      if (may(W_OK | X_OK)) all |= bits.write;
    } else if (may(W_OK) && !(effective.writeOnce && node.sizeBytes > 0)) all |= bits.write;
    return all;
  }
}
