/** Which Porthole this is. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { getAsset, isSea } from 'node:sea';
import { fileURLToPath } from 'node:url';

export interface Version {
  /** As package.json has it. */
  readonly version: string;
  /** The git commit, 12 hex digits, with `+changes` where the sources differ from it; undefined outside a repository. */
  readonly commit?: string;
}

/** Asks git when run from a checkout; the executable knows it from its build. */
export const thisVersion = (): Version =>
  isSea() ? (JSON.parse(getAsset('version.json', 'utf8')) as Version) : versionOf(new URL('../../', import.meta.url));

/** The version of the checkout at `root`. */
export const versionOf = (root: URL): Version => {
  const { version } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8')) as { readonly version: string };
  try {
    const described = execFileSync('git', ['describe', '--always', '--exclude=*', '--abbrev=12', '--dirty=+changes'], {
      cwd: fileURLToPath(root),
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return { version, commit: described.trim() };
  } catch {
    return { version };
  }
};

/** For people: `0.1.0 (commit 0123456789ab)`. */
export const versionText = ({ version, commit }: Version): string =>
  commit === undefined ? version : `${version} (commit ${commit})`;
