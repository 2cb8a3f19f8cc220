/** Programs that make a Debian, and Debian itself in a directory. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';

/** What it said. Throws with its words when it failed. */
export function run(
  command: string,
  args: readonly string[],
  options: { readonly cwd?: string; readonly input?: string } = {},
): string {
  const result = spawnSync(command, args, { ...options, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (result.error) throw new Error(`images/debian: starting ${command} failed: ${result.error.message}`);
  if (result.status !== 0) throw new Error(`images/debian: ${command} ${args.join(' ')} failed:\n${result.stderr}`);
  return result.stdout;
}

/** This machine's release of Debian, from where this machine gets its packages. `without`: paths of files that are left out. */
export function installDebian(root: string, packages: readonly string[], without: readonly string[] = []): void {
  const suite = /^VERSION_CODENAME=(.+)$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1];
  if (suite === undefined) throw new Error('images/debian: this machine does not say which Debian it is');
  const sources = ['/etc/apt/sources.list.d/debian.sources', '/etc/apt/sources.list'].filter((file) =>
    existsSync(file),
  );
  run('mmdebstrap', [
    '--quiet',
    '--variant=minbase',
    '--aptopt=APT::Install-Recommends "false"',
    ...without.map((path) => `--dpkgopt=path-exclude=${path}`),
    `--include=${packages.join(',')}`,
    suite,
    root,
    ...sources,
  ]);
}
