/** A tree as it stands, as entries of a spec file. */

import { CHANGES_NAME, type Node, type Replica, ROOT_INO } from '../tree/index.ts';
import { S_IFDIR, S_IFLNK, S_IFMT } from '../wire/index.ts';
import { type ExportEntry, exportYaml } from './export-yaml.ts';
import { isAtOrBelow } from './tree-history.ts';
import { statusPath } from './vm-statistics.ts';

/** The tree as YAML, as `entriesOf` tells it. */
export const exportReplica = (replica: Replica): string =>
  exportYaml({ entries: [...entriesOf(replica)], policy: replica.policy.spec });

/**
 * What lies at and below a path, parents first; `/.changes` and what the host itself writes under `/instance/status` left
 * out.
 */
export function* entriesOf({ snapshot }: Replica, below = '/'): Generator<ExportEntry> {
  const root = snapshot.resolve(below);
  const above: ExportEntry[] = [];
  // What is not asked for is left out, but for the directories that lead there.
  for (let at = root; at !== undefined && at.ino !== ROOT_INO; at = snapshot.node(at.parentIno))
    if (at !== root) above.unshift({ path: snapshot.path(at), kind: 'directory' });
  yield* above;
  for (const node of root === undefined ? [] : snapshot.descendants(root)) {
    const path = snapshot.path(node);
    if (node.ino === ROOT_INO || path === `/${CHANGES_NAME}` || isAtOrBelow(path, statusPath)) continue;
    yield toEntry(node, path);
  }
}

const toEntry = (node: Node, path: string): ExportEntry => {
  const note = noteOf(node);
  const type = node.mode & S_IFMT;
  const bytes = node.bytes ?? new Uint8Array(0);
  if (type === S_IFDIR) return { path, kind: 'directory', ...note };
  if (type !== S_IFLNK) return { path, kind: 'file', bytes, ...note };
  return { path, kind: 'symlink', target: new TextDecoder().decode(bytes), ...note };
};

/** What a spec file cannot say of a node. */
const noteOf = (node: Node): { readonly note?: string } => {
  const notes: string[] = [];
  if (node.madeBy === 'guest') {
    const mode = (node.mode & 0o7777).toString(8).padStart(4, '0');
    notes.push(`made in the guest by ${node.uid}:${node.gid}, mode ${mode}`);
  }
  if (node.burned) notes.push('once: it has been read');
  return notes.length === 0 ? {} : { note: notes.join('; ') };
};
