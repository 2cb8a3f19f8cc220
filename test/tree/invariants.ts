/** What must hold of a tree after every commit, whatever a guest asked for. */
import assert from 'node:assert/strict';
import {
  type Authority,
  isDirectory,
  limits,
  type Node,
  type Replica,
  ROOT_INO,
  type Usage,
} from '../../src/tree/index.ts';
import { S_IFMT, S_IFREG } from '../../src/wire/index.ts';

/** Every named node is its directory's entry, nothing lies in itself, sizes are the bytes', nothing is too deep. */
export function checkTree(replica: Replica, { holdsOnceBytes }: { readonly holdsOnceBytes: boolean }): void {
  const { snapshot, policy } = replica;
  const named = new Set<number>([ROOT_INO]);
  for (const node of snapshot.nodes.values()) {
    assert.ok(Number.isSafeInteger(node.ino) && node.ino > 0, `ino ${node.ino}`);
    if (node.bytes !== undefined) assert.equal(node.sizeBytes, node.bytes.length, snapshot.path(node));
    assert.ok(Number.isInteger(node.uid) && Number.isInteger(node.gid) && Number.isInteger(node.mode));
    assert.ok(node.revision <= snapshot.revision && node.dataRevision <= node.revision);
    if (node.parentIno === 0) continue;
    let depth = 0;
    for (let at = node; at.ino !== ROOT_INO; depth++) {
      const parent = snapshot.node(at.parentIno);
      assert.ok(parent !== undefined && isDirectory(parent), `${snapshot.path(node)} lies in no directory`);
      assert.ok(depth <= limits.depth, 'too deep, or in itself');
      at = parent;
    }
    if (node.ino !== ROOT_INO) {
      assert.equal(snapshot.child(node.parentIno, node.name)?.ino, node.ino, snapshot.path(node));
      assert.ok(node.name.isWellFormed() && node.name !== '' && !/[/\0]/.test(node.name));
    }
    named.add(node.ino);
    const { once } = policy.effective(snapshot.path(node));
    if (!holdsOnceBytes && once && node.sizeBytes > 0 && (node.mode & S_IFMT) === S_IFREG)
      assert.equal(node.bytes, undefined, 'a replica holds a once value');
  }
  for (const node of snapshot.nodes.values())
    for (const [name, ino] of snapshot.entries(node.ino)) {
      const child = snapshot.node(ino);
      assert.equal(child?.name, name);
      assert.equal(child?.parentIno, node.ino);
    }
  const reached = [...snapshot.descendants(snapshot.node(ROOT_INO)!)].map((node) => node.ino);
  assert.deepEqual(new Set(reached), named);
}

/** What the ledger must say, counted anew. `guestWritten` are files made outside whose bytes a guest wrote. */
export function recount(authority: Authority, guestWritten: ReadonlySet<number>): Usage {
  const usage = { bytes: 0, nodes: 0 };
  for (const node of authority.snapshot.nodes.values()) {
    if (node.madeBy === 'guest') usage.nodes++;
    if (node.madeBy === 'guest' || guestWritten.has(node.ino)) usage.bytes += node.sizeBytes;
  }
  return usage;
}

/** Nodes by ino, comparable by value. `once` values are left out, for replicas never hold them. */
export function nodesOf(replica: Replica): Map<number, Node> {
  const nodes = new Map<number, Node>();
  for (const node of replica.snapshot.nodes.values()) {
    const { once } = replica.policy.effective(replica.snapshot.path(node));
    nodes.set(node.ino, once && node.sizeBytes > 0 ? { ...node, bytes: undefined } : node);
  }
  return nodes;
}
