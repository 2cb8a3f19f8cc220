/** A YAML document being read: its nodes with their places, and the problems found so far. */
import {
  type Document,
  type ErrorCode,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  parseDocument,
  type Scalar,
  visit,
  type YAMLMap,
  type YAMLSeq,
} from 'yaml';
import { nearest } from './near-miss.ts';
import type { SpecProblem } from './spec-problem.ts';

/** Text of a spec file, at most. */
export const specFileBytes = 16 * 1024 * 1024;
/** Nodes read, at most, aliases followed: a few anchors of anchors ("billion laughs") would else fill the memory. */
const nodesRead = 200_000;
const problemsKept = 1_000;

/** What a syntax error of the YAML library means and how to mend it. Its own messages may quote values. */
const syntax: Readonly<Record<ErrorCode, readonly [what: string, fix: string]>> = {
  ALIAS_PROPS: ['an alias has an anchor or a tag', 'write the alias alone, as *name'],
  BAD_ALIAS: ['this alias names no anchor that stands before it', 'quote the value if it is text that starts with "*"'],
  BAD_DIRECTIVE: ['a directive that YAML does not have', 'quote the value if it is text that starts with "%"'],
  BAD_DQ_ESCAPE: ['an escape that YAML does not have', 'write \\\\ for a backslash, or use single quotes'],
  BAD_INDENT: ['wrongly indented, or a bracket is not closed', 'indent it like its neighbours, with spaces'],
  BAD_PROP_ORDER: ['an anchor or a tag stands in the wrong place', 'write it right before the value'],
  BAD_SCALAR_START: ['a plain value cannot start with this character', 'quote the value'],
  BLOCK_AS_IMPLICIT_KEY: ['a mapping stands where a name must', 'put it on a line of its own, or quote the name'],
  BLOCK_IN_FLOW: ['an indented block stands inside { } or [ ]', 'write the inner value with { } or [ ] as well'],
  DUPLICATE_KEY: ['this key was given before', 'remove one of the two'],
  IMPOSSIBLE: ['this cannot be read as YAML', 'rewrite this line'],
  KEY_OVER_1024_CHARS: ['a key is longer than 1024 characters', 'shorten it'],
  MISSING_CHAR: ['a closing quote, bracket or separator is missing', 'add it, or quote the value'],
  MULTILINE_IMPLICIT_KEY: ['a key goes over several lines', 'is a ":" missing on this line, or a quote open?'],
  MULTIPLE_ANCHORS: ['a value has two anchors', 'keep one'],
  MULTIPLE_DOCS: ['the file has several YAML documents', 'keep one, without "---" after it'],
  MULTIPLE_TAGS: ['a value has two tags', 'remove them'],
  NON_STRING_KEY: ['a key is not text', 'quote it'],
  RESOURCE_EXHAUSTION: ['nested too deeply', 'flatten it'],
  TAB_AS_INDENT: ['indented with a tab', 'indent with spaces'],
  TAG_RESOLVE_FAILED: ['a tag that is not known here', 'remove it; for bytes write { base64: … }'],
  UNEXPECTED_TOKEN: ['something unexpected stands here', 'is a quote, a bracket or a ":" missing before it?'],
  BAD_COLLECTION_TYPE: ['a tag does not fit its value', 'remove the tag'],
};

export interface Entry {
  readonly name: string;
  readonly key: Scalar;
  readonly value: Node | null;
  /** True when the key was written without quotes. */
  readonly plain: boolean;
}

export class SpecDocument {
  readonly file: string;
  readonly problems: SpecProblem[] = [];
  readonly #document: Document.Parsed;
  readonly #lines: readonly string[];
  readonly #counter = new LineCounter();
  #aliases: ReadonlyMap<Node, Node> | undefined;
  #read = 0;

  constructor(text: string, file: string) {
    this.file = file;
    this.#lines = text.split('\n');
    this.#document = parseDocument(text, {
      lineCounter: this.#counter,
      prettyErrors: false,
      schema: 'core',
      uniqueKeys: false,
      stringKeys: false,
      merge: false,
      logLevel: 'error',
    });
    for (const error of [...this.#document.errors, ...this.#document.warnings]) {
      const [what, fix] = syntax[error.code];
      this.#add('error', error.pos[0], '', what, fix);
    }
  }

  get root(): Node | null {
    return this.#document.contents;
  }

  get failed(): boolean {
    return this.problems.some((problem) => problem.severity === 'error');
  }

  error(at: Node | null | undefined, path: string, what: string, fix = ''): void {
    this.#add('error', at?.range?.[0], path, what, fix);
  }

  warn(at: Node | null | undefined, path: string, what: string, fix = ''): void {
    this.#add('warning', at?.range?.[0], path, what, fix);
  }

  /** 1-based line of a node. */
  lineOf(node: Node): number {
    return this.#counter.linePos(node.range?.[0] ?? 0).line;
  }

  /** The node itself, or what an alias stands for; undefined (and a problem) when that is not there or too much. */
  resolve(node: Node | null, path: string): Node | null | undefined {
    if (this.#read > nodesRead) return undefined;
    if (++this.#read > nodesRead) {
      this.error(node, path, `more than ${nodesRead} values, aliases written out`, 'use fewer aliases of aliases');
      return undefined;
    }
    if (node !== null && 'tag' in node && node.tag !== undefined) {
      this.error(node, path, `the tag ${node.tag} means nothing here`, 'remove it; for bytes write { base64: … }');
      return undefined;
    }
    if (node === null || !isAlias(node)) return node;
    const target = this.#targets().get(node);
    if (target === undefined) this.error(node, path, ...syntax.BAD_ALIAS);
    return target;
  }

  /** The mapping there; undefined, and a problem, where it is none. `what` has to stand there. */
  mapAt(written: Node | null, path: string, what: string, fix: string): YAMLMap | undefined {
    const node = this.resolve(written, path);
    if (node === undefined || isMap(node)) return node;
    this.#other(node ?? written, node, path, what, fix);
    return undefined;
  }

  /** As `mapAt`, of a list. */
  listAt(written: Node | null, path: string, what: string, fix: string): YAMLSeq | undefined {
    const node = this.resolve(written, path);
    if (node === undefined || isSeq(node)) return node;
    this.#other(node ?? written, node, path, what, fix);
    return undefined;
  }

  #other(at: Node | null, node: Node | null, path: string, what: string, fix: string): void {
    this.error(at, path, `${kindOf(node)} where ${what} must stand`, fix);
  }

  /** What each alias stands for: the last node before it with that anchor. */
  #targets(): ReadonlyMap<Node, Node> {
    if (this.#aliases !== undefined) return this.#aliases;
    const anchors = new Map<string, Node>();
    const aliases = new Map<Node, Node>();
    visit(this.#document, {
      Node: (_key, node) => {
        if (isAlias(node)) {
          const target = anchors.get(node.source);
          if (target !== undefined) aliases.set(node, target);
        } else if (node.anchor !== undefined) anchors.set(node.anchor, node as Node);
      },
    });
    this.#aliases = aliases;
    return aliases;
  }

  /** Entries of a mapping, each name once. Keys that are no text are problems. */
  entries(map: YAMLMap, path: string): readonly Entry[] {
    const seen = new Map<string, Scalar>();
    const entries: Entry[] = [];
    for (const pair of map.items) {
      const key = pair.key as Node | null;
      const value = pair.value as Node | null;
      if (!isScalar(key) || (key.value === null && !key.source)) {
        this.error(key ?? map, path, 'a key must be text', 'write name: value');
        continue;
      }
      const plain = key.type === 'PLAIN';
      const name = plain && key.source !== undefined ? key.source : textOf(key);
      const earlier = seen.get(name);
      if (earlier !== undefined) {
        const where = `"${name}" was given before, in line ${this.lineOf(earlier)}`;
        this.error(key, join(path, name), where, 'remove one of the two');
        continue;
      }
      seen.set(name, key);
      entries.push({ name, key, value, plain });
    }
    return entries;
  }

  /** As `entries`, for a mapping whose keys are known: others are problems and left out. */
  knownEntries(map: YAMLMap, path: string, known: readonly string[]): readonly Entry[] {
    return this.entries(map, path).filter((entry) => {
      if (known.includes(entry.name)) return true;
      const near = nearest(entry.name, known);
      const fix = near === undefined ? `known keys: ${known.join(', ')}` : `did you mean "${near}"?`;
      this.error(entry.key, join(path, entry.name), `unknown key "${entry.name}"`, fix);
      return false;
    });
  }

  #add(severity: SpecProblem['severity'], offset: number | undefined, path: string, what: string, fix: string): void {
    if (this.problems.length >= problemsKept) return;
    const at = offset === undefined ? { line: 1, col: 1 } : this.#counter.linePos(offset);
    const line = Math.max(1, at.line);
    const column = Math.max(1, at.col);
    const { shown, caret } = this.#shown(line, column);
    this.problems.push({ severity, file: this.file, line, column, path, what, fix, shown, caret });
  }

  /** The line as it may be shown. Outside of sections known to hold no values, all after the key is cut off. */
  #shown(line: number, column: number): { readonly shown: string; readonly caret: number } {
    const text = (this.#lines[line - 1] ?? '').replace(/\r$/, '');
    let section = '';
    for (let i = line; i > 0 && section === ''; i--) {
      section = /^([^\s#][^:]*?)\s*:/.exec(this.#lines[i - 1] ?? '')?.[1] ?? '';
    }
    if (['porthole', 'users', 'groups', 'policy', 'quota', 'ninep'].includes(section))
      return { shown: text, caret: column };
    const kept = /^\s*(?:- +)*(?:[\w.$@+-]+\s*:(?=\s|$))?/.exec(text)?.[0] ?? '';
    if (text.slice(kept.length).trim() === '') return { shown: text, caret: column };
    const shown = kept.trim() === '' ? `${kept}…` : `${kept} …`;
    return { shown, caret: Math.min(column, shown.length) };
  }
}

/** `a.b`, `a["x y"]`, `a[0]` for an index. */
export const join = (path: string, name: string | number): string => {
  if (typeof name === 'number') return `${path}[${name}]`;
  if (!/^[\w-]+$/.test(name)) return `${path}[${JSON.stringify(name.slice(0, 80))}]`;
  return path === '' ? name : `${path}.${name}`;
};

/** A scalar's text: as written for plain ones, so that `1.10` stays `1.10`; '' for null; else its YAML value. */
export const textOf = (scalar: Scalar): string => {
  if (scalar.value === null) return '';
  if (scalar.type === 'PLAIN' && scalar.source !== undefined) return scalar.source;
  return String(scalar.value);
};

/** What a node is, in words. */
export const kindOf = (node: Node | null): string => {
  if (node === null) return 'nothing';
  if (isMap(node)) return 'a mapping';
  if (isSeq(node)) return 'a list';
  if (isScalar(node)) {
    if (node.value === null) return 'nothing';
    if (typeof node.value === 'number' || typeof node.value === 'bigint') return 'a number';
    return typeof node.value === 'boolean' ? 'a boolean' : 'text';
  }
  return 'an alias';
};

export { isMap, isScalar, isSeq, type Node };
