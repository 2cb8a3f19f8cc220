/** A façade's own tree of names, made from the rows of its table for one request: what is not there for everybody is not in it. */
import type { AnonymousView } from '../tree/index.ts';
import type { FacadeRow } from './facade-row.ts';

/** A value of a façade. */
export interface Leaf {
  readonly row: FacadeRow;
  /** What the wildcard of the row's path stands for. */
  readonly wild: string | undefined;
}

export interface Directory {
  readonly children: ReadonlyMap<string, Directory | Leaf>;
}

export const isLeaf = (node: Directory | Leaf): node is Leaf => 'row' in node;

interface Growing {
  readonly children: Map<string, Growing | Leaf>;
}

const WILD = /^\{([a-z]+)\}$/;

/** What the wildcard of a row can stand for: the names that are shown in the directory where its source has it. */
const wildNames = (view: AnonymousView, row: FacadeRow): readonly (string | undefined)[] => {
  const wild = row.path.split('/').find((name) => WILD.test(name));
  if (wild === undefined) return [undefined];
  if (row.wilds !== undefined) return row.wilds(view);
  const names = new Set<string>();
  for (const source of row.from) {
    const at = source.indexOf(`/${wild}`);
    const directory = at < 0 ? undefined : view.find(source.slice(0, at) || '/');
    if (directory === undefined || directory.bytes !== undefined) continue;
    for (const [name] of view.list(directory)) names.add(name);
  }
  return [...names];
};

/** The source's path with the wildcard filled in. */
export const sourceOf = (source: string, wild: string | undefined): string =>
  wild === undefined ? source : source.replace(/\{[a-z]+\}/, () => wild);

/** Rows that come first win where two give the same name. */
export const growTree = (view: AnonymousView, rows: readonly FacadeRow[], standing: readonly string[]): Directory => {
  const root: Growing = { children: new Map() };
  for (const row of rows) {
    for (const wild of wildNames(view, row)) {
      if (!row.isThere(view, wild)) continue;
      const names = row.path.split('/').map((part) => (WILD.test(part) ? wild! : part));
      plant(root, names, { row, wild });
    }
  }
  for (const path of standing) directoryAt(root, path.split('/'));
  return root;
};

const plant = (root: Growing, names: readonly string[], leaf: Leaf): void => {
  const directory = directoryAt(root, names.slice(0, -1));
  const last = names.at(-1)!;
  if (directory?.children.has(last) === false) directory.children.set(last, leaf);
};

/** Made where it is not there; undefined where a value is in the way. */
const directoryAt = (root: Growing, names: readonly string[]): Growing | undefined => {
  let at = root;
  for (const name of names) {
    let next = at.children.get(name);
    if (next === undefined) {
      next = { children: new Map() };
      at.children.set(name, next);
    }
    if (isLeaf(next)) return undefined;
    at = next;
  }
  return at;
};

/** What is at a path, or undefined. */
export const walk = (root: Directory, names: readonly string[]): Directory | Leaf | undefined => {
  let at: Directory | Leaf | undefined = root;
  for (const name of names) {
    if (at === undefined || isLeaf(at)) return undefined;
    at = at.children.get(name);
  }
  return at;
};
