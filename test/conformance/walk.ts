/** How a kernel walks a path, for ways in that have no kernel: name by name, through symlinks, up to 40 of them. */
import {
  EEXIST,
  ELOOP,
  ENAMETOOLONG,
  ENOENT,
  ENOTDIR,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
} from '../../src/wire/index.ts';
import type { PathName, Stat } from './driver.ts';

const PATH_MAX = 4096;
const MAX_LINKS = 40;

export interface Walkable<N extends object> {
  /** The root, or an errno. */
  top(): N | number;
  /** The node of that name, `.` and `..` included, or an errno. */
  lookup(parent: N, name: string): N | number;
  readlink(node: N): Uint8Array | number;
  modeOf(node: N): number;
}

export const typeOf = (mode: number): Stat['type'] => {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return 'file';
    case S_IFDIR:
      return 'directory';
    case S_IFLNK:
      return 'symlink';
    default:
      return 'other';
  }
};

/** Where the bytes of a name that is no UTF-8 go: lone surrogates, which no name may hold. */
const SURROGATE = 0xdc00;

export function nameText(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return [...bytes].map((byte) => String.fromCharCode(byte < 0x80 ? byte : SURROGATE + byte)).join('');
  }
}

/** The bytes that `nameText` was given. */
export function nameBytes(text: string): Uint8Array {
  if (text.isWellFormed()) return new TextEncoder().encode(text);
  return Uint8Array.from(text, (char) => char.charCodeAt(0) & 0xff);
}

interface Walked {
  readonly names: string[];
  /** It ends as only a directory's may. */
  readonly slash: boolean;
}

const split = (text: string): string[] => text.split('/').filter((name) => name !== '');

function namesOf(path: PathName): Walked | number {
  const text = typeof path === 'string' ? path : nameText(path);
  if (text === '') return ENOENT;
  if (nameBytes(text).length >= PATH_MAX) return ENAMETOOLONG;
  return { names: split(text), slash: text.endsWith('/') };
}

/** What a path names. Absolute symlinks lead out of the tree: ENOENT. */
export function resolve<N extends object>(tree: Walkable<N>, path: PathName, follow: boolean): N | number {
  const walked = namesOf(path);
  return typeof walked === 'number' ? walked : walk(tree, walked, follow);
}

function walk<N extends object>(tree: Walkable<N>, { names, slash }: Walked, follow: boolean): N | number {
  let at = tree.top();
  let links = 0;
  let directory = slash;
  const rest = [...names];
  while (typeof at !== 'number' && rest.length > 0) {
    if (typeOf(tree.modeOf(at)) !== 'directory') return ENOTDIR;
    const next: N | number = tree.lookup(at, rest.shift()!);
    if (typeof next === 'number') return next;
    const last = rest.length === 0;
    if (typeOf(tree.modeOf(next)) !== 'symlink' || (last && !follow && !directory)) {
      at = next;
      continue;
    }
    if (++links > MAX_LINKS) return ELOOP;
    const target = tree.readlink(next);
    if (typeof target === 'number') return target;
    const text = nameText(target);
    if (text.startsWith('/')) return ENOENT;
    if (last) directory ||= text.endsWith('/');
    rest.unshift(...split(text));
  }
  if (typeof at !== 'number' && directory && typeOf(tree.modeOf(at)) !== 'directory') return ENOTDIR;
  return at;
}

export interface Place<N> {
  readonly parent: N;
  readonly name: string;
  readonly slash: boolean;
}

/** The directory that a path's last name is in. */
export function parentOf<N extends object>(tree: Walkable<N>, path: PathName): Place<N> | number {
  const walked = namesOf(path);
  if (typeof walked === 'number') return walked;
  const name = walked.names.pop();
  if (name === undefined) return EEXIST;
  const parent = walk(tree, { names: walked.names, slash: true }, true);
  return typeof parent === 'number' ? parent : { parent, name, slash: walked.slash };
}
