/** One path of a cloud's API, and which paths of the tree it shows. */
import { type AnonymousView, isDirectory } from '../tree/index.ts';
import { ENOENT } from '../wire/index.ts';
import { sourceOf } from './virtual-tree.ts';

export const facadeNames = ['ec2', 'gce', 'openstack', 'nocloud'] as const;

export type FacadeName = (typeof facadeNames)[number];

/** Bytes, or ENOENT, or EIO where the audit log does not take the record. */
export type Value = Uint8Array | number;

export interface FacadeRow {
  /** Below the façade's base, without a first slash. `{name}` is any name that the source has there. */
  readonly path: string;
  /** Paths of the tree. */
  readonly from: readonly string[];
  /** Further paths on which the value depends. */
  readonly also?: readonly string[];
  /** For the docs: what is made of the sources, where it is not simply the first that is there. */
  readonly made?: string;
  /** What the wildcard stands for, where it is not the names in the source's directory. */
  readonly wilds?: (view: AnonymousView) => readonly string[];
  /** GCE: left out when a directory above is asked for as a whole. */
  readonly aside?: true;
  /** GCE: written into JSON as it stands. */
  readonly raw?: true;
  readonly isThere: (view: AnonymousView, wild: string | undefined) => boolean;
  readonly value: (view: AnonymousView, wild: string | undefined) => Value;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The bytes of a file that is there for everybody. */
export const bytesAt = (view: AnonymousView, path: string): Value => {
  const node = view.find(path);
  return node === undefined || isDirectory(node) ? ENOENT : view.read(node);
};

/** Its text, less blanks at the ends; undefined when it is not there. */
export const textAt = (view: AnonymousView, ...paths: readonly string[]): string | undefined => {
  for (const path of paths) {
    const bytes = bytesAt(view, path);
    if (typeof bytes !== 'number') return decoder.decode(bytes).trim();
  }
  return undefined;
};

/** The files of a directory by name, as texts. */
export const textsIn = (view: AnonymousView, path: string): Record<string, string> => {
  const directory = view.find(path);
  if (directory === undefined || !isDirectory(directory)) return {};
  return Object.fromEntries(
    view.list(directory).flatMap(([name, node]) => {
      const bytes = isDirectory(node) ? ENOENT : view.read(node);
      return typeof bytes === 'number' ? [] : [[name, decoder.decode(bytes)] as const];
    }),
  );
};

const isFile = (view: AnonymousView, path: string): boolean => {
  const node = view.find(path);
  return node !== undefined && !isDirectory(node);
};

interface Extras {
  readonly also?: readonly string[];
  readonly aside?: true;
  readonly wilds?: (view: AnonymousView) => readonly string[];
}

/** The first of the files that is there, as it is. */
export const file = (path: string, from: string | readonly string[], extras: Extras = {}): FacadeRow => {
  const sources = typeof from === 'string' ? [from] : from;
  return {
    path,
    from: sources,
    ...extras,
    isThere: (view, wild) => sources.some((source) => isFile(view, sourceOf(source, wild))),
    value: (view, wild) => {
      for (const source of sources) {
        const bytes = bytesAt(view, sourceOf(source, wild));
        if (bytes !== ENOENT) return bytes;
      }
      return ENOENT;
    },
  };
};

/** Made from what the sources say, where one of them is there. ENOENT when `make` gives undefined. */
export const made = (
  path: string,
  from: readonly string[],
  words: string,
  make: (view: AnonymousView, wild: string | undefined) => string | undefined,
  extras: Extras & { readonly raw?: true } = {},
): FacadeRow => ({
  path,
  from,
  made: words,
  ...extras,
  isThere: (view, wild) => from.length === 0 || from.some((source) => view.find(sourceOf(source, wild)) !== undefined),
  value: (view, wild) => {
    const text = make(view, wild);
    return text === undefined ? ENOENT : encoder.encode(text);
  },
});
