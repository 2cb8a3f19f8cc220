/** One revision of a tree, immutable, and the draft that makes the next one. */
import { S_IFDIR, S_IFMT } from '../wire/index.ts';
import type { Delta } from './delta.ts';
import { type Node, ROOT_INO, samePlace } from './node.ts';
import { IntMap, NameMap } from './persistent.ts';

/** A tree as of one commit. Snapshots share what did not change between them. */
export class Snapshot {
  static readonly empty = new Snapshot(0, IntMap.empty(), IntMap.empty());
  readonly revision: number;
  readonly nodes: IntMap<Node>;
  /** Entries of each directory that has any, by the directory's ino. */
  readonly directories: IntMap<NameMap>;

  constructor(revision: number, nodes: IntMap<Node>, directories: IntMap<NameMap>) {
    this.revision = revision;
    this.nodes = nodes;
    this.directories = directories;
  }

  node(ino: number): Node | undefined {
    return this.nodes.get(ino);
  }

  entries(directoryIno: number): NameMap {
    return this.directories.get(directoryIno) ?? NameMap.empty;
  }

  child(directoryIno: number, name: string): Node | undefined {
    const ino = this.directories.get(directoryIno)?.get(name);
    return ino === undefined ? undefined : this.nodes.get(ino);
  }

  /** The path by which rules are found: an unlinked node's is the one that it had. */
  ruledPath(node: Node): string {
    return node.lastPath ?? this.path(node);
  }

  /** The lowest directory that is left of those that an unlinked node was in. */
  lastDirectory({ lastPath = '/' }: Node): Node {
    let directory = this.nodes.get(ROOT_INO)!;
    for (const name of lastPath.split('/').slice(1, -1)) {
      const next = this.child(directory.ino, name);
      if (next === undefined || (next.mode & S_IFMT) !== S_IFDIR) break;
      directory = next;
    }
    return directory;
  }

  /** Absolute path of a node; an unlinked one's is the one that it had, or its last name, with ` (deleted)`, as in /proc. */
  path(node: Node): string {
    if (node.ino === ROOT_INO) return '/';
    if (node.lastPath !== undefined) return `${node.lastPath} (deleted)`;
    let path = '';
    let at: Node | undefined = node;
    while (at !== undefined && at.ino !== ROOT_INO) {
      path = `/${at.name}${path}`;
      if (at.parentIno === 0) return `${path} (deleted)`;
      at = this.nodes.get(at.parentIno);
    }
    return path;
  }

  /** The node at a normalised absolute path. */
  resolve(path: string): Node | undefined {
    let node = this.nodes.get(ROOT_INO);
    for (const name of path.split('/')) {
      if (name === '') continue;
      node = node === undefined ? undefined : this.child(node.ino, name);
    }
    return node;
  }

  /** The node and all below it, parents first. */
  *descendants(node: Node): Generator<Node> {
    yield node;
    if ((node.mode & S_IFMT) !== S_IFDIR) return;
    for (const [, ino] of this.entries(node.ino)) yield* this.descendants(this.nodes.get(ino)!);
  }

  /** Of what `descendants` tells, what comes after where the names lead from the node, be there something or not. */
  *descendantsAfter(node: Node, names: readonly string[]): Generator<Node> {
    const [first, ...rest] = names;
    for (const [name, ino] of this.entries(node.ino)) {
      if (first !== undefined && name < first) continue;
      const child = this.nodes.get(ino)!;
      yield* name === first ? this.descendantsAfter(child, rest) : this.descendants(child);
    }
  }
}

/** Changes on top of a snapshot. Keeps the directory entries in step with the nodes' `parentIno` and `name`. */
export class Draft {
  #nodes: IntMap<Node>;
  #directories: IntMap<NameMap>;
  readonly base: Snapshot;
  readonly revision: number;
  readonly #touched = new Set<number>();
  #filled = false;

  constructor(base: Snapshot, revision: number = base.revision + 1) {
    this.base = base;
    this.revision = revision;
    this.#nodes = base.nodes;
    this.#directories = base.directories;
  }

  /** The way back from a snapshot to one that it was made from, by steps that touched these inode numbers. */
  static back(from: Snapshot, to: Snapshot, touched: Iterable<number>): Draft {
    const draft = new Draft(from, to.revision);
    draft.#nodes = to.nodes;
    draft.#directories = to.directories;
    for (const ino of touched) draft.#touched.add(ino);
    return draft;
  }

  /** The draft as it stands, for look-ups. */
  get now(): Snapshot {
    return this.at(this.revision);
  }

  at(revision: number): Snapshot {
    return new Snapshot(revision, this.#nodes, this.#directories);
  }

  node(ino: number): Node | undefined {
    return this.#nodes.get(ino);
  }

  child(directoryIno: number, name: string): Node | undefined {
    const ino = this.#directories.get(directoryIno)?.get(name);
    return ino === undefined ? undefined : this.#nodes.get(ino);
  }

  entryCount(directoryIno: number): number {
    return this.#directories.get(directoryIno)?.size ?? 0;
  }

  /** Adds a node or replaces the one of the same ino, moving its entry if its name or parent changed. */
  put(node: Node): void {
    const before = this.#nodes.get(node.ino);
    this.#touched.add(node.ino);
    this.#nodes = this.#nodes.set(node.ino, node);
    if (before !== undefined && samePlace(before, node)) return;
    if (before !== undefined) this.#unname(before);
    if (node.parentIno !== 0 && node.ino !== ROOT_INO) {
      const entries = this.#directories.get(node.parentIno) ?? NameMap.empty;
      this.#directories = this.#directories.set(node.parentIno, entries.set(node.name, node.ino));
    }
  }

  /** Replaces a node by one that differs in nothing that anybody was told of (a restored node gets its bytes back). */
  refill(node: Node): void {
    this.#nodes = this.#nodes.set(node.ino, node);
    this.#filled = true;
  }

  get filled(): boolean {
    return this.#filled;
  }

  remove(ino: number): void {
    const before = this.#nodes.get(ino);
    if (before === undefined) return;
    this.#touched.add(ino);
    this.#unname(before);
    this.#nodes = this.#nodes.delete(ino);
    this.#directories = this.#directories.delete(ino);
  }

  #unname(node: Node): void {
    if (node.parentIno === 0 || node.ino === ROOT_INO) return;
    const entries = this.#directories.get(node.parentIno);
    if (entries === undefined || entries.get(node.name) !== node.ino) return;
    const rest = entries.delete(node.name);
    this.#directories =
      rest.size === 0 ? this.#directories.delete(node.parentIno) : this.#directories.set(node.parentIno, rest);
  }

  /** Inode numbers that were put or removed. */
  get touched(): ReadonlySet<number> {
    return this.#touched;
  }

  finish(): Snapshot {
    return this.now;
  }
}

/** The snapshot after a delta. Nodes of a full delta may come in any order; a rename over another frees the name first. */
export function applyDelta(base: Snapshot, delta: Delta): Snapshot {
  const draft = new Draft(delta.full ? Snapshot.empty : base, delta.revision);
  for (const ino of delta.remove) draft.remove(ino);
  for (const node of delta.put) if (node.parentIno === 0) draft.put(node);
  for (const node of delta.put) if (node.parentIno !== 0) draft.put(node);
  return draft.finish();
}
