/** Which software a part runs, so that a process can tell whether another one of that part runs the same. */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { getAsset, isSea } from 'node:sea';
import { fileURLToPath } from 'node:url';
import { type ProcessPartName, processParts } from './parts.ts';

const digits = 12;

/** What `buildOf` says of a part: the version, and a digest of the code, the native module and Node. */
export const buildText = (version: string, code: Iterable<string | Uint8Array>): string => {
  const hash = createHash('sha256').update(process.version);
  for (const piece of code) hash.update(piece);
  return `${version}+${hash.digest('hex').slice(0, digits)}`;
};

/**
 * As `0.1.0+1a2b3c4d5e6f`: the version of the package and a digest of what runs. The executable has it from its build; a
 * checkout reads the sources of the part, as they stand now.
 */
export const buildOf = (part: ProcessPartName): string =>
  isSea()
    ? (JSON.parse(getAsset('builds.json', 'utf8')) as Record<ProcessPartName, string>)[part]
    : buildOfSources(new URL('../../', import.meta.url), part);

/** The same of a checkout elsewhere. */
export const buildOfSources = (root: URL, part: ProcessPartName): string => {
  const { version, dependencies } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8')) as {
    readonly version: string;
    readonly dependencies: object;
  };
  const sources = sourcesOf(new URL(`src/${processParts[part].file}`, root));
  const code = [...sources.keys()].toSorted().flatMap((file) => [file, sources.get(file)!]);
  const base = fileURLToPath(root);
  return buildText(version, [
    JSON.stringify(dependencies),
    ...code.map((text) => (text.startsWith(base) ? text.slice(base.length) : text)),
  ]);
};

/** The file and all of ours that it imports, with their texts. */
export const sourcesOf = (entry: URL): ReadonlyMap<string, string> => {
  const found = new Map<string, string>();
  const add = (url: URL): void => {
    const file = fileURLToPath(url);
    if (found.has(file)) return;
    const text = readFileSync(file, 'utf8');
    found.set(file, text);
    for (const [, specifier] of text.matchAll(/^(?:import|export|\}).* from '(\.{1,2}\/[^']+\.ts)';$/gm))
      add(new URL(specifier!, url));
  };
  add(entry);
  return found;
};

/** The packages that a part imports, with those that these cannot do without on this machine. */
export const packagesOf = (root: URL, part: ProcessPartName): string[] => {
  const found = new Set<string>();
  const add = (name: string): void => {
    const manifest = new URL(`node_modules/${name}/package.json`, root);
    if (found.has(name) || !existsSync(manifest)) return;
    found.add(name);
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(manifest, 'utf8')) as {
      readonly dependencies?: object;
      readonly optionalDependencies?: object;
    };
    for (const needed of Object.keys({ ...dependencies, ...optionalDependencies })) add(needed);
  };
  for (const text of sourcesOf(new URL(`src/${processParts[part].file}`, root)).values())
    for (const [, specifier] of text.matchAll(/^(?:import|export|\}).* from '([^'.:]+)';$/gm)) add(specifier!);
  return [...found];
};
