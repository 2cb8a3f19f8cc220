/** What all façades have in common: a view, a tree of names for one request, and values that are recorded when they are read. */
import { createHash } from 'node:crypto';
import { type AnonymousView, isDirectory } from '../tree/index.ts';
import { ENOENT } from '../wire/index.ts';
import { facadeRows, guestAttributeRows, standingDirectories } from './facade-paths.ts';
import type { FacadeName, Value } from './facade-row.ts';
import { failure, notFound, type Reply, type Request } from './reply.ts';
import { type Directory, growTree, isLeaf, type Leaf, sourceOf, walk } from './virtual-tree.ts';

export interface Facade {
  readonly name: FacadeName;
  /** Undefined: the path is another's. */
  answer(request: Request): Reply | Promise<Reply> | undefined;
}

export class FacadeTree {
  readonly #view: AnonymousView;
  readonly #name: FacadeName;

  constructor(view: AnonymousView, name: FacadeName) {
    this.#view = view;
    this.#name = name;
  }

  get view(): AnonymousView {
    return this.#view;
  }

  /** As it is now. */
  grow(): Directory {
    const rows = facadeRows[this.#name];
    const all = this.#name === 'gce' ? [...rows, ...guestAttributeRows(this.#view)] : rows;
    return growTree(this.#view, all, standingDirectories[this.#name]);
  }

  /** Another whenever what is below may have changed; the same as long as it has not. Reads no values. */
  fingerprint(at: Directory | Leaf): string {
    const hash = createHash('sha256');
    for (const part of this.#versions(at, '')) hash.update(`${part}\n`);
    return hash.digest('hex').slice(0, 16);
  }

  *#versions(at: Directory | Leaf, path: string): Generator<string> {
    if (!isLeaf(at)) {
      for (const [name, child] of at.children) yield* this.#versions(child, `${path}/${name}`);
      return;
    }
    for (const source of [...at.row.from, ...(at.row.also ?? [])]) {
      const node = this.#view.find(sourceOf(source, at.wild));
      yield `${path} ${node?.ino ?? 0} ${node?.dataRevision ?? 0}`;
      if (node === undefined || !isDirectory(node)) continue;
      for (const [name, child] of this.#view.list(node)) yield `${name} ${child.ino} ${child.dataRevision}`;
    }
  }

  /** What is at a path now. A value that is there and not for everybody is told to the audit, and is not there. */
  find(names: readonly string[]): Directory | Leaf | undefined {
    const found = walk(this.grow(), names);
    if (found === undefined) this.#tellRefused(names);
    return found;
  }

  value(leaf: Leaf): Value {
    return leaf.row.value(this.#view, leaf.wild);
  }

  #tellRefused(names: readonly string[]): void {
    for (const row of facadeRows[this.#name]) {
      const parts = row.path.split('/');
      if (parts.length !== names.length) continue;
      let wild: string | undefined;
      const fits = parts.every((part, i) => {
        if (part.startsWith('{')) wild = names[i];
        return part.startsWith('{') || part === names[i];
      });
      if (fits) for (const source of row.from) this.#view.refused(sourceOf(source, wild), ENOENT);
    }
  }
}

/** A value as an answer: 404 where it is not there, 503 where the audit log does not take what must be recorded. */
export const replyOf = (value: Value, answer: (bytes: Uint8Array) => Reply): Reply => {
  if (typeof value !== 'number') return answer(value);
  return value === ENOENT ? notFound : failure(503, 'this cannot be given out now; try again', { 'retry-after': '1' });
};

/** Names in a directory, those of directories with `/`, in order. */
export const listing = (directory: Directory): string[] =>
  [...directory.children]
    .map(([name, child]) => (isLeaf(child) ? name : `${name}/`))
    .toSorted((a, b) => (a < b ? -1 : 1));
