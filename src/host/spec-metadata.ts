/** The `metadata` section: mappings are directories, scalars files, lists directories 0, 1, … */
import { Buffer } from 'node:buffer';
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { CHANGES_NAME, limits, type SpecEntry, standing } from '../tree/index.ts';
import {
  type Entry,
  isMap,
  isScalar,
  isSeq,
  join,
  kindOf,
  type Node,
  type SpecDocument,
  textOf,
} from './spec-document.ts';

/** A mapping with exactly one key, and that one of these, is no directory but what the key says. */
export const specialKeys = ['file', 'base64', 'symlink', 'directory'] as const;
type SpecialKey = (typeof specialKeys)[number];

/** Bytes of all values of a tree, at most. */
const totalBytes = 512 * 1024 * 1024;

const text = new TextEncoder();

interface Metadata {
  readonly entries: readonly SpecEntry[];
  /** Absolute paths of the files that `file:` values name, to be watched. */
  readonly references: readonly string[];
}

/** What `file:` values do: give the bytes of a file of this machine, or make the spec wrong. */
export type FileValues = 'read' | 'refused';

export const readMetadata = (document: SpecDocument, node: Node | null, fileValues: FileValues): Metadata => {
  const reader = new MetadataReader(document, fileValues);
  reader.root(node);
  return reader;
};

class MetadataReader implements Metadata {
  readonly entries: SpecEntry[] = [];
  readonly references: string[] = [];
  readonly #document: SpecDocument;
  readonly #fileValues: FileValues;
  #bytes = 0;

  constructor(document: SpecDocument, fileValues: FileValues) {
    this.#document = document;
    this.#fileValues = fileValues;
  }

  root(written: Node | null): void {
    const node = this.#document.resolve(written, 'metadata');
    if (node === undefined || node === null || (isScalar(node) && node.value === null)) return;
    const special = this.#special(node, 'metadata');
    if (special === undefined) this.#children(node, '', 'metadata', 1);
    else if (special.name === 'directory') this.#literal(special.value, '', join('metadata', 'directory'), 1);
    else {
      const what = 'the root must be a directory';
      this.#document.error(
        node,
        'metadata',
        what,
        `for a file named "${special.name}" write { directory: { ${special.name}: … } }`,
      );
    }
  }

  /** One entry of a directory and what is below it. `depth` is the number of names in `at`. */
  #value(written: Node | null, at: string, path: string, depth: number): void {
    const node = this.#document.resolve(written, path);
    if (node === undefined) return;
    if (depth > limits.depth) {
      this.#document.error(node ?? written, path, `deeper than ${limits.depth} directories`, 'flatten it');
      return;
    }
    if (node === null) this.#file(node, at, path, new Uint8Array(0));
    else if (isScalar(node)) {
      const value = textOf(node);
      if (value.isWellFormed()) this.#file(node, at, path, text.encode(value));
      else this.#document.error(node, path, 'the value is not valid Unicode', 'give its bytes: { base64: … }');
    } else {
      const special = this.#special(node, path);
      if (special === undefined) {
        this.entries.push({ path: at, kind: 'directory' });
        this.#children(node, at, path, depth + 1);
      } else this.#specialValue(special, at, join(path, special.name), depth);
    }
  }

  #special(node: Node, path: string): Entry | undefined {
    if (!isMap(node) || node.items.length !== 1) return undefined;
    const [entry] = this.#document.entries(node, path);
    return entry !== undefined && isSpecial(entry.name) ? entry : undefined;
  }

  #specialValue(special: Entry, at: string, path: string, depth: number): void {
    if (special.name === 'directory') {
      this.entries.push({ path: at, kind: 'directory' });
      this.#literal(special.value, at, path, depth + 1);
      return;
    }
    const node = this.#document.resolve(special.value, path);
    if (node === undefined) return;
    if (!isScalar(node) || node.value === null) {
      const fix = `for a directory with an entry "${special.name}" write { directory: { ${special.name}: … } }`;
      this.#document.error(node ?? special.key, path, `${kindOf(node)} where text must stand`, fix);
      return;
    }
    const value = textOf(node);
    if (special.name === 'file') this.#reference(node, value, at, path);
    else if (special.name === 'base64') this.#base64(node, value, at, path);
    else this.#symlink(node, value, at, path);
  }

  #literal(written: Node | null, at: string, path: string, depth: number): void {
    const node = this.#document.resolve(written, path);
    if (node === undefined) return;
    if (isMap(node) || isSeq(node)) this.#children(node, at, path, depth);
    else
      this.#document.error(
        node ?? written,
        path,
        `${kindOf(node)} where a mapping or a list must stand`,
        'an empty directory is {}',
      );
  }

  #children(node: Node, at: string, path: string, depth: number): void {
    if (isSeq(node)) {
      for (const [i, item] of node.items.entries())
        this.#value(item as Node | null, `${at}/${i}`, join(path, i), depth);
      return;
    }
    if (!isMap(node)) {
      this.#document.error(node, path, `${kindOf(node)} where the root directory must stand`, 'write name: value');
      return;
    }
    for (const entry of this.#document.entries(node, path)) {
      const child = join(path, entry.name);
      const wrong = wrongName(entry, at === '');
      if (wrong !== undefined) this.#document.error(entry.key, child, ...wrong);
      else {
        this.#value(entry.value, `${at}/${entry.name}`, child, depth);
        this.#checkStanding(entry, `${at}/${entry.name}`, child);
      }
    }
  }

  /** What every tree has as a directory can't be anything else. What was placed at `at` itself is the first entry of that path. */
  #checkStanding(entry: Entry, at: string, path: string): void {
    if (!standing.some((directory) => directory.path === at)) return;
    const placed = this.entries.find((one) => one.path === at);
    if (placed === undefined || placed.kind === 'directory') return;
    const name = entry.name;
    this.#document.error(
      entry.key,
      path,
      `"${name}" is a directory that every tree has`,
      `write ${name}: {} or leave it out`,
    );
  }

  #file(node: Node | null, at: string, path: string, bytes: Uint8Array): void {
    if (bytes.length > limits.valueBytes) {
      const what = `the value has ${bytes.length} bytes; ${limits.valueBytes} (1 MiB) are allowed`;
      this.#document.error(node, path, what, 'split it into several files');
      return;
    }
    const before = this.#bytes;
    this.#bytes += bytes.length;
    if (this.#bytes <= totalBytes) this.entries.push({ path: at, kind: 'file', bytes });
    else if (before <= totalBytes)
      this.#document.error(node, path, `all values together have more than ${totalBytes} bytes`);
  }

  #reference(node: Node, name: string, at: string, path: string): void {
    if (name === '' || name.includes('\0')) {
      this.#document.error(node, path, 'this names no file', 'write a path, relative to this file or absolute');
      return;
    }
    if (this.#fileValues === 'refused') {
      this.#document.error(node, path, 'a value cannot come from a file of the host here', 'give it as text or base64');
      return;
    }
    const target = resolve(dirname(this.#document.file), name);
    this.references.push(target);
    const bytes = readBounded(target);
    if (typeof bytes !== 'string') this.#file(node, at, path, bytes);
    else
      this.#document.error(
        node,
        path,
        `reading ${JSON.stringify(target)} failed: ${bytes}`,
        'the path is relative to this file',
      );
  }

  #base64(node: Node, value: string, at: string, path: string): void {
    const packed = value.replaceAll(/\s+/g, '');
    const bytes = Buffer.from(packed, 'base64');
    if (bytes.toString('base64').replaceAll('=', '') === packed.replace(/={1,2}$/, ''))
      this.#file(node, at, path, new Uint8Array(bytes));
    else
      this.#document.error(
        node,
        path,
        'this is not base64',
        'as from "base64 FILE": A-Z, a-z, 0-9, + and /, padded with =',
      );
  }

  #symlink(node: Node, target: string, at: string, path: string): void {
    const bytes = text.encode(target).length;
    if (target === '') this.#document.error(node, path, 'a symlink must lead somewhere', 'write its target');
    else if (target.includes('\0') || !target.isWellFormed())
      this.#document.error(node, path, 'a target cannot hold a NUL or broken Unicode');
    else if (bytes > limits.symlinkBytes)
      this.#document.error(node, path, `the target has ${bytes} bytes; ${limits.symlinkBytes} are allowed`);
    else this.entries.push({ path: at, kind: 'symlink', target });
  }
}

const isSpecial = (name: string): name is SpecialKey => (specialKeys as readonly string[]).includes(name);

/** Why a name cannot be one of a file, or undefined. */
const wrongName = (entry: Entry, atTop: boolean): [what: string, fix: string] | undefined => {
  const { name, plain } = entry;
  if (name === '') return ['a name cannot be empty', 'give it a name'];
  if (name === '.' || name === '..') return [`"${name}" cannot be the name of a file`, 'choose another name'];
  if (name.includes('/'))
    return [`a name cannot hold "/": ${JSON.stringify(name.slice(0, 80))}`, 'nest mappings instead'];
  if (name.includes('\0')) return ['a name cannot hold a NUL character', 'remove it'];
  if (!name.isWellFormed()) return ['a name must be valid Unicode', 'remove the lone surrogate'];
  const bytes = text.encode(name).length;
  if (bytes > limits.nameBytes) return [`the name has ${bytes} bytes; ${limits.nameBytes} are allowed`, 'shorten it'];
  if (name === '<<' && plain)
    return ['merge keys are not part of YAML 1.2', 'write the entries out, or "<<" in quotes for a file of that name'];
  if (atTop && name === CHANGES_NAME)
    return [`"${name}" is the stream of changes that every tree has`, 'choose another name'];
  return undefined;
};

/** The bytes of a regular file, or in words why not. One byte more than allowed at most. Never waits (FIFOs). */
const readBounded = (path: string): Uint8Array | string => {
  let fd: number | undefined;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    const stat = fstatSync(fd);
    if (!stat.isFile()) return 'it is not a regular file';
    if (stat.size > limits.valueBytes) return `it has ${stat.size} bytes; ${limits.valueBytes} (1 MiB) are allowed`;
    const buffer = new Uint8Array(limits.valueBytes + 1);
    let length = 0;
    for (let n = 1; n > 0 && length < buffer.length; length += n)
      n = readSync(fd, buffer, length, buffer.length - length, null);
    return buffer.slice(0, length);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return 'there is no such file';
    if (code === 'EACCES' || code === 'EPERM') return 'not allowed';
    if (code === 'EISDIR') return 'it is a directory';
    return code ?? String(error);
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
};
