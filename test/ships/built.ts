/** `dist/porthole` as the sources have it now: built if it is older than one of them. */
import { spawnSync } from 'node:child_process';
import { globSync, statSync } from 'node:fs';
import path from 'node:path';

const root = path.resolve(import.meta.dirname, '../..');

export interface Built {
  readonly directory: string;
  readonly executable: string;
}

export function builtExecutable(): Built {
  const built = { directory: path.join(root, 'dist'), executable: path.join(root, 'dist/porthole') };
  const sources = globSync(['src/**/*.ts', 'scripts/build.ts', 'scripts/build/*.ts', 'package*.json'], { cwd: root });
  const changedMs = (file: string): number => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  const newest = Math.max(...sources.map((file) => changedMs(path.join(root, file))));
  if (changedMs(built.executable) <= newest) build();
  return built;
}

/** `to` is a directory, `dist` unless given. */
export function build(to?: string): void {
  const args = ['scripts/build.ts', ...(to === undefined ? [] : ['--output', to])];
  const { status, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
  if (status !== 0) throw new Error(`building the executable failed:\n${stderr}`);
}
