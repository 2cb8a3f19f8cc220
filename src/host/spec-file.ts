/** Reads the YAML file of `porthole serve` into a `Spec`. `docs/spec-file.md` is its reference. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { PolicySpec, Spec } from '../tree/index.ts';
import { seedEntries } from './cloud-init-seed.ts';
import { type Entry, isMap, isScalar, kindOf, SpecDocument, specFileBytes, textOf } from './spec-document.ts';
import { type FileValues, readMetadata } from './spec-metadata.ts';
import { type PolicySections, readPolicy } from './spec-policy.ts';
import { SpecError, type SpecProblem } from './spec-problem.ts';

const policyKeyNames: readonly string[] = ['users', 'groups', 'policy', 'quota', 'ninep'];
/** The sections of a spec file. */
export const topKeyNames: readonly string[] = ['porthole', 'metadata', ...policyKeyNames];

/** What reading a spec file gave. */
export interface LoadedSpec {
  /** Undefined when there is an error among the problems. */
  readonly spec: Spec | undefined;
  /** In order of their lines. */
  readonly problems: readonly SpecProblem[];
  /** Absolute paths of the files that the spec's values come from, found before an error too. */
  readonly references: readonly string[];
}

/** Reads a spec file and the files it refers to. Never throws for what a file says. */
export const loadSpec = (file: string): LoadedSpec => {
  let text: string;
  try {
    const bytes = readFileSync(file);
    if (bytes.length > specFileBytes)
      return failed(file, `the file has ${bytes.length} bytes; ${specFileBytes} are allowed`);
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return failed(file, 'there is no such file');
    if (code === 'ERR_ENCODING_INVALID_ENCODED_DATA') return failed(file, 'the file is not UTF-8 text');
    if (code === 'EISDIR') return failed(file, 'this is a directory; give the spec file in it');
    if (code === 'EACCES') return failed(file, `uid ${process.getuid?.()} may not read it`);
    return failed(file, `reading the file failed: ${code ?? String(error)}`);
  }
  return parseSpec(text, file);
};

/** As `loadSpec`, or a `SpecError`. */
export const loadSpecOrThrow = (file: string): LoadedSpec & { readonly spec: Spec } => {
  const { spec, ...loaded } = loadSpec(file);
  if (spec === undefined) throw new SpecError(loaded.problems);
  return { ...loaded, spec };
};

/** Reads the text of a spec file; `file` is what problems name and what `file:` values are relative to. */
export const parseSpec = (text: string, file: string, fileValues: FileValues = 'read'): LoadedSpec => {
  const read = readSections(text, file, topKeyNames, 'start with "porthole: 1" and "metadata:"');
  if ('problems' in read) return read;
  const { document, sections } = read;
  checkVersion(document, sections.get('porthole'));
  const metadata = readMetadata(document, sections.get('metadata')?.value ?? null, fileValues);
  const policy = readPolicy(document, policySections(sections));
  return finish(document, withSeed(document, { entries: metadata.entries, policy }), metadata.references);
};

/** What is wrong is left as it is: nothing is made of it. */
const withSeed = (document: SpecDocument, spec: Spec): Spec =>
  document.failed ? spec : { ...spec, entries: [...spec.entries, ...seedEntries(spec)] };

/** What reading the text of a policy gave. */
export interface LoadedPolicy {
  /** Undefined when there is an error among the problems. */
  readonly policy: PolicySpec | undefined;
  readonly problems: readonly SpecProblem[];
}

/** Reads the sections of a policy alone (`policyKeyNames`); `name` is what problems call the text. */
export const parsePolicy = (text: string, name: string): LoadedPolicy => {
  const read = readSections(text, name, policyKeyNames, 'write "policy:" and below it a list of rules');
  if ('problems' in read) return { policy: undefined, problems: read.problems };
  const policy = readPolicy(read.document, policySections(read.sections));
  const { spec, problems } = finish(read.document, { entries: [], policy }, []);
  return { policy: spec?.policy, problems };
};

/** The sections of a document by their names, or why there are none. */
const readSections = (
  text: string,
  file: string,
  names: readonly string[],
  fix: string,
): { readonly document: SpecDocument; readonly sections: ReadonlyMap<string, Entry> } | LoadedSpec => {
  let document: SpecDocument;
  try {
    document = new SpecDocument(text, file);
  } catch (error) {
    if (error instanceof RangeError) return failed(file, 'the YAML is nested too deeply');
    throw error;
  }
  if (document.failed) return finish(document, undefined, []);
  const { root } = document;
  if (!isMap(root)) {
    document.error(
      root,
      '',
      `${kindOf(root)} where ${names === topKeyNames ? 'the spec' : 'a mapping'} must stand`,
      fix,
    );
    return finish(document, undefined, []);
  }
  const sections = new Map<string, Entry>();
  for (const entry of document.knownEntries(root, '', names)) sections.set(entry.name, entry);
  return { document, sections };
};

const policySections = (sections: ReadonlyMap<string, Entry>): PolicySections => ({
  users: sections.get('users'),
  groups: sections.get('groups'),
  policy: sections.get('policy'),
  quota: sections.get('quota'),
  ninep: sections.get('ninep'),
});

const checkVersion = (document: SpecDocument, entry: Entry | undefined): void => {
  if (entry === undefined) {
    document.error(
      document.root,
      'porthole',
      'the version of the format is missing',
      'write "porthole: 1" in the first line',
    );
    return;
  }
  const node = document.resolve(entry.value, 'porthole');
  if (node === undefined || (isScalar(node) && textOf(node) === '1')) return;
  document.error(node ?? entry.key, 'porthole', 'this version of the format is not known here', 'write "porthole: 1"');
};

const finish = (document: SpecDocument, spec: Spec | undefined, references: readonly string[]): LoadedSpec => {
  const problems = document.problems.toSorted((a, b) => a.line - b.line || a.column - b.column);
  return {
    spec: document.failed ? undefined : spec,
    problems,
    references: [...new Set(references)].map((path) => resolve(path)),
  };
};

const failed = (file: string, what: string): LoadedSpec => ({
  spec: undefined,
  problems: [{ severity: 'error', file, line: 0, column: 0, path: '', what, fix: '', shown: '', caret: 0 }],
  references: [],
});
