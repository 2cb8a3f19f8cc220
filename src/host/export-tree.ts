/** A tree as it stands, as entries of a spec file. */

import { CHANGES_NAME, type Node, type Replica, ROOT_INO } from '../tree/index.ts';
import { S_IFDIR, S_IFLNK, S_IFMT } from '../wire/index.ts';
import { type ExportEntry, type ExportedTree, exportYaml } from './export-yaml.ts';
import { isAtOrBelow } from './tree-history.ts';
import { statusPath } from './vm-statistics.ts';

/**
 * The tree, or what lies at and below a path, as YAML; `/.changes` and what the host itself writes under `/instance/status` left
 * out.
 */
export const exportReplica = (replica: Replica, below = '/'): string => {
  const { snapshot, policy } = replica;
  const root = snapshot.resolve(below);
  const entries: ExportEntry[] = [];
  // What is not asked for is left out, but for the directories that lead there.
  for (let at = root; at !== undefined && at.ino !== ROOT_INO; at = snapshot.node(at.parentIno))
    if (at !== root) entries.unshift({ path: snapshot.path(at), kind: 'directory' });
  for (const node of root === undefined ? [] : snapshot.descendants(root)) {
    const path = snapshot.path(node);
    if (node.ino === ROOT_INO || path === `/${CHANGES_NAME}` || isAtOrBelow(path, statusPath)) continue;
    entries.push(toEntry(node, path));
  }
  const tree: ExportedTree = { entries, ...(below === '/' && { policy: policy.spec }) };
  return exportYaml(tree);
};

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
