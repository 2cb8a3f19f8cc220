/** The disk that `porthole image build debian` makes, built once while its inputs are the same: an operator's are always new. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, globSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';

const root = path.join(import.meta.dirname, '../..');
const images = path.join(root, 'images/debian');
const cache = path.join(root, '.cache/debian-disk');

const hashOf = (files: readonly string[]): string => {
  const hash = createHash('sha256');
  for (const file of files) hash.update(readFileSync(file));
  return hash.digest('hex').slice(0, 16);
};

/** Path of the qcow2. */
export const debianDisk = (): string => {
  const recipe = [path.join(images, 'recipe.ts'), path.join(images, 'mmdebstrap.ts')];
  const directory = path.join(cache, hashOf([...recipe, ...globSync(path.join(images, 'vm/*')).toSorted()]));
  if (!existsSync(directory)) {
    mkdirSync(cache, { recursive: true });
    const work = mkdtempSync(path.join(cache, 'build-'));
    // Nothing but these says what packages there are.
    const packages = path.join(cache, `packages-${hashOf(recipe)}.tar`);
    const { status, stderr } = spawnSync(process.execPath, [recipe[0]!, work], {
      encoding: 'utf8',
      env: { ...process.env, PORTHOLE_DEBIAN_PACKAGES: packages },
    });
    if (status === 0) renameSync(work, directory);
    else rmSync(work, { recursive: true });
    assert.equal(status, 0, stderr);
  }
  const image = JSON.parse(readFileSync(path.join(directory, 'image.json'), 'utf8')) as { readonly disk: string };
  return path.join(directory, image.disk);
};
