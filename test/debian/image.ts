/**
 * The disk that `porthole image build debian` makes, built once while its inputs are the same: an operator's are always new.
 * Run as a program it builds, holding a lock, so that any number of tests may ask at once.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, globSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';

const root = path.join(import.meta.dirname, '../..');
const cache = path.join(root, '.cache/debian-disk');
const recipe = path.join(root, 'images/debian/recipe.ts');
/** What the packages depend on; and what the rest does, the agent among it. */
const packageInputs = ['images/debian/vm-packages.ts', 'images/debian/mmdebstrap.ts'];
const inputs = [
  ...packageInputs,
  'images/debian/recipe.ts',
  'images/debian/vm/*',
  'systemd/porthole-agent.service',
  'src/**/*.ts',
  'scripts/build.ts',
  'scripts/build/*.ts',
  'package-lock.json',
];

const hashOf = (patterns: readonly string[]): string => {
  const hash = createHash('sha256');
  const files = globSync([...patterns], { cwd: root }).filter((file) => !file.endsWith('.test.ts'));
  for (const file of files.toSorted()) hash.update(`${file}\n`).update(readFileSync(path.join(root, file)));
  return hash.digest('hex').slice(0, 16);
};

const directoryOfNow = (): string => path.join(cache, hashOf(inputs));

/** Path of the qcow2. */
export const debianDisk = (): string => {
  const directory = directoryOfNow();
  if (!existsSync(directory)) {
    mkdirSync(cache, { recursive: true });
    run('flock', [path.join(cache, 'lock'), process.execPath, import.meta.filename]);
  }
  const image = JSON.parse(readFileSync(path.join(directory, 'image.json'), 'utf8')) as { readonly disk: string };
  return path.join(directory, image.disk);
};

const run = (command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env): void => {
  const { status, stderr } = spawnSync(command, args, { encoding: 'utf8', env });
  if (status !== 0) throw new Error(`making the Debian disk failed: ${stderr}`);
};

const build = (): void => {
  const directory = directoryOfNow();
  if (existsSync(directory)) return;
  const work = mkdtempSync(path.join(cache, 'build-'));
  try {
    const packages = path.join(cache, `packages-${hashOf(packageInputs)}.tar`);
    run(process.execPath, [recipe, work], { ...process.env, PORTHOLE_DEBIAN_PACKAGES: packages });
    // Each is large, and of sources that are no more.
    for (const name of readdirSync(cache))
      if (![path.basename(work), path.basename(packages), 'lock'].includes(name))
        rmSync(path.join(cache, name), { recursive: true });
    renameSync(work, directory);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
};

if (import.meta.main) build();
