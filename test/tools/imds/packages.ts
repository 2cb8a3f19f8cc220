/**
 * The clouds' own clients out of their Debian packages, unpacked and not installed: installed, they would meddle with the
 * machine at its next boot.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, globSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const packages = ['amazon-ec2-utils', 'cloud-init', 'google-guest-agent'] as const;
const cache = join(import.meta.dirname, '..', '..', '..', '.cache', 'imds-clients');

/** The directory that stands for `/`; fetched once, delete it to have newer ones. */
export const clientsRoot = (): string => {
  const root = join(cache, process.arch);
  if (existsSync(root)) return root;
  mkdirSync(cache, { recursive: true });
  const partial = mkdtempSync(join(cache, 'fetch-'));
  const download = (): unknown =>
    execFileSync('apt-get', ['download', '-qq', ...packages], { cwd: partial, stdio: 'pipe' });
  try {
    try {
      download();
    } catch {
      execFileSync('apt-get', ['update'], { stdio: 'pipe' });
      download();
    }
    for (const deb of globSync(join(partial, '*.deb'))) {
      execFileSync('dpkg-deb', ['-x', deb, join(partial, 'root')]);
    }
    renameSync(join(partial, 'root'), root);
  } finally {
    rmSync(partial, { recursive: true });
  }
  return root;
};
