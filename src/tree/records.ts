/** What an authority knows beyond the nodes. */
import type { Restored } from './commit.ts';
import { type Node, ROOT_INO } from './node.ts';
import { IntMap } from './persistent.ts';

/** Immutable, so that what can't be kept leaves it as it was. */
export interface Records {
  /** The next inode number to give out. */
  readonly nextIno: number;
  /** Digest of the value that the outside last gave a file or symlink, by ino. */
  readonly bases: IntMap<string>;
  /** Files made outside whose bytes a guest wrote, by ino. */
  readonly guestWritten: IntMap<true>;
  /** Of the commit that last changed the policy. */
  readonly policyRevision: number;
  /** Of the commit that last changed what a spec can say. */
  readonly specRevision: number;
}

const FIRST_FREE_INO = 16;

/** Of a tree that has nothing. */
export const noRecords: Records = {
  nextIno: FIRST_FREE_INO,
  bases: IntMap.empty(),
  guestWritten: IntMap.empty(),
  policyRevision: 0,
  specRevision: 0,
};

/** What is known of nodes that are gone goes with them. */
export function without(records: Records, inos: readonly number[]): Records {
  let { bases, guestWritten } = records;
  for (const ino of inos) {
    bases = bases.delete(ino);
    guestWritten = guestWritten.delete(ino);
  }
  return { ...records, bases, guestWritten };
}

/** What was kept, without what lay below something that was not: that went with it. */
export function recordsOf(restored: Restored): { readonly nodes: readonly Node[]; readonly records: Records } {
  let { bases, guestWritten } = noRecords;
  const known = new Map(restored.nodes.map(({ node }) => [node.ino, node]));
  const nodes: Node[] = [];
  for (const { node, base, keepBytes } of restored.nodes) {
    // One without a name lies nowhere: it was kept because somebody may have it open.
    if (node.parentIno !== 0 && !isAnchored(node, known)) continue;
    nodes.push(node);
    if (base !== undefined) bases = bases.set(node.ino, base);
    if (keepBytes && node.madeBy === 'outside') guestWritten = guestWritten.set(node.ino, true);
  }
  const nextIno = Math.max(restored.nextIno, FIRST_FREE_INO);
  const policyRevision = restored.policyRevision ?? 0;
  return { nodes, records: { nextIno, bases, guestWritten, policyRevision, specRevision: 0 } };
}

/** Whether every directory above a node was kept. */
function isAnchored(node: Node, known: ReadonlyMap<number, Node>): boolean {
  for (let at: Node | undefined = node; at !== undefined; at = known.get(at.parentIno))
    if (at.ino === ROOT_INO) return true;
  return false;
}
