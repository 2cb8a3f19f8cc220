/**
 * A copy of what a part runs, for a user who cannot get to the checkout: root's home directory, where many a checkout lies,
 * is closed to everybody else.
 */

import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, readdirSync, realpathSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { isSea } from 'node:sea';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { buildOfSources, packagesOf, sourcesOf } from './build.ts';
import { type ProcessPartName, processParts } from './parts.ts';
import { commandOf, partEnvironment } from './start.ts';

const checkout = new URL('../../', import.meta.url);
const compileWithinMs = 30_000;

/** A part that takes `--compile`. */
type CopiedPart = 'device';

/** Whether everybody may read what a part runs from here. The executable is where its user has put it, for all to run. */
export const isReadableByAll = (part: ProcessPartName, root: URL = checkout): boolean =>
  isSea() || filesOf(part, root).every(mayBeReadByAll);

/**
 * Copies what a part runs below `directory`, which everybody may search, unless that was done before; takes away what other
 * versions left there. Gives the root of the copy, for `commandOf` and `partEnvironment`.
 */
export const copyPart = (part: CopiedPart, directory: string, root: URL = checkout): URL => {
  const name = `${part}-${buildOfSources(root, part)}`;
  const made = join(directory, name);
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  const names = readdirSync(directory);
  for (const other of names) if (other !== name) rmSync(join(directory, other), { recursive: true });
  const copied = pathToFileURL(`${made}/`);
  if (names.includes(name)) return copied;
  const partial = `${made}.partial`;
  const base = fileURLToPath(root);
  for (const file of filesOf(part, root)) {
    const to = join(partial, relative(base, file));
    mkdirSync(dirname(to), { recursive: true });
    cpSync(file, to, { recursive: true, dereference: true });
  }
  openToAll(partial);
  renameSync(partial, made);
  // What it compiled is kept for those who come; it runs without as well.
  const [program, ...args] = commandOf(part, copied);
  spawnSync(program, [...args, '--compile'], {
    env: partEnvironment(copied),
    stdio: 'ignore',
    timeout: compileWithinMs,
    killSignal: 'SIGKILL',
  });
  openToAll(made);
  return copied;
};

/** Sources, packages, and what says the version. */
const filesOf = (part: ProcessPartName, root: URL): string[] => {
  const sources = [...sourcesOf(new URL(`src/${processParts[part].file}`, root)).keys()];
  const modules = fileURLToPath(new URL('node_modules/', root));
  return [
    fileURLToPath(new URL('package.json', root)),
    ...sources,
    ...packagesOf(root, part).map((name) => join(modules, name)),
  ];
};

const mayBeReadByAll = (named: string): boolean => {
  const file = realpathSync(named);
  if ((statSync(file).mode & 0o004) === 0) return false;
  for (let at = dirname(file); at !== dirname(at); at = dirname(at))
    if ((statSync(at).mode & 0o001) === 0) return false;
  return true;
};

/** Whatever the umask, or the checkout, left of it. */
const openToAll = (path: string): void => {
  const isDirectory = statSync(path).isDirectory();
  chmodSync(path, isDirectory ? 0o755 : 0o644);
  if (isDirectory) for (const name of readdirSync(path)) openToAll(path + sep + name);
};
