/** A tree as a spec file: what `parseSpec` reads back to the same entries and policy. */
import { Buffer } from 'node:buffer';
import { Document, Pair, Scalar, YAMLMap } from 'yaml';
import { defaultQuota, type PolicySpec, type Rule, type SpecEntry } from '../tree/index.ts';
import { specialKeys } from './spec-metadata.ts';
import { writeDuration, writeSize } from './spec-units.ts';

/**
 * `note` becomes a comment: what a spec cannot say, such as who made a file in the guest. A spec's nodes are made outside,
 * so a tree that is loaded from an export has the owners and modes that its policy gives.
 */
export type ExportEntry = SpecEntry & { readonly note?: string };

/** What is to be written. */
export interface ExportedTree {
  /** Parents before children. */
  readonly entries: readonly ExportEntry[];
  readonly policy?: PolicySpec;
}

/** The text of a spec file. RangeError when an entry comes before its directory. */
export const exportYaml = (tree: ExportedTree): string => {
  const document = new Document<YAMLMap>();
  const root = new YAMLMap();
  root.add(new Pair(new Scalar('porthole'), new Scalar(1)));
  root.add(new Pair(new Scalar('metadata'), toMetadata(tree.entries)));
  if (tree.policy !== undefined) {
    for (const [key, value] of Object.entries(toSections(tree.policy))) {
      root.add(new Pair(new Scalar(key), document.createNode(value)));
    }
  }
  document.contents = root;
  return document.toString({ lineWidth: 0, minContentWidth: 0 });
};

/** The sections that `parsePolicy` reads back to the same policy. */
export const exportPolicyYaml = (policy: PolicySpec): string => {
  const sections = toSections(policy);
  return new Document(Object.keys(sections).length === 0 ? { policy: [] } : sections).toString({
    lineWidth: 0,
    minContentWidth: 0,
  });
};

const toMetadata = (entries: readonly ExportEntry[]): YAMLMap => {
  const root = new YAMLMap();
  const directories = new Map<string, YAMLMap>([['', root]]);
  for (const entry of entries) {
    const slash = entry.path.lastIndexOf('/');
    const parent = directories.get(entry.path.slice(0, slash));
    if (parent === undefined) throw new RangeError(`"${entry.path}" comes before its directory`);
    const key = text(entry.path.slice(slash + 1));
    if (entry.note !== undefined) key.commentBefore = ` ${entry.note}`;
    if (entry.kind === 'directory') {
      const map = new YAMLMap();
      directories.set(entry.path, map);
      parent.add(new Pair(key, map));
    } else {
      parent.add(new Pair(key, entry.kind === 'file' ? toFile(entry.bytes) : special('symlink', entry.target)));
    }
  }
  // A directory whose one entry has the name of a special key is written so that it stays a directory.
  const isDirectory = new Set(directories.values());
  const guarded = (map: YAMLMap): YAMLMap => {
    for (const pair of map.items as Pair<Scalar<string>, Scalar | YAMLMap>[]) {
      if (pair.value instanceof YAMLMap && isDirectory.has(pair.value)) pair.value = guarded(pair.value);
    }
    const only = map.items.length === 1 ? (map.items[0]!.key as Scalar<string>).value : undefined;
    return only !== undefined && (specialKeys as readonly string[]).includes(only) ? wrapped('directory', map) : map;
  };
  return guarded(root);
};

const toFile = (bytes: Uint8Array): Scalar | YAMLMap => {
  const value = decodeUtf8(bytes);
  return value === undefined ? special('base64', Buffer.from(bytes).toString('base64')) : text(value);
};

/** The text that these are the bytes of; undefined for what is none, or has control characters. */
const decodeUtf8 = (bytes: Uint8Array): string | undefined => {
  try {
    const value = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    return /[^\P{Cc}\t\r\n]/u.test(value) ? undefined : value;
  } catch {
    return undefined;
  }
};

/** Lines of printable text that a block can hold as they are. */
const blockText = /^[!-~¡-퟿][ -~¡-퟿]*(\n([!-~¡-퟿][ -~¡-퟿]*)?)*\n$/;

const text = (value: string): Scalar<string> => {
  const scalar = new Scalar(value);
  if (value.length < 100_000 && blockText.test(value)) scalar.type = 'BLOCK_LITERAL';
  else if (!/^[\w./@+=,:-]+( [\w./@+=,:-]+)*$/.test(value)) scalar.type = 'QUOTE_DOUBLE';
  return scalar;
};

const wrapped = (key: string, value: Scalar | YAMLMap): YAMLMap => {
  const map = new YAMLMap();
  map.add(new Pair(new Scalar(key), value));
  return map;
};

const special = (key: (typeof specialKeys)[number], value: string): YAMLMap => {
  const map = wrapped(key, text(value));
  map.flow = true;
  return map;
};

const toSections = (policy: PolicySpec): Record<string, unknown> => {
  const isRoot = ([name, id]: readonly [string, number]): boolean => name === 'root' && id === 0;
  const users = Object.entries(policy.users).filter((user) => !isRoot(user));
  const groups = Object.entries(policy.groups).filter(
    ([name, group]) => !(isRoot([name, group.gid]) && !group.members),
  );
  const { bytes, nodes } = policy.quota;
  const isDefault = bytes === defaultQuota.bytes && nodes === defaultQuota.nodes;
  return {
    ...(users.length > 0 && { users: Object.fromEntries(users) }),
    ...(groups.length > 0 && {
      groups: Object.fromEntries(
        groups.map(([name, { gid, members }]) => [name, members ? { gid, members: [...members] } : gid]),
      ),
    }),
    ...(policy.rules.length > 0 && { policy: policy.rules.map(toRule) }),
    ...(!isDefault && { quota: { bytes: writeSize(bytes), nodes } }),
    ...(policy.ninepMountUid !== undefined && { ninep: { mountUser: policy.ninepMountUid } }),
  };
};

const octal = (mode: number): Scalar => {
  const scalar = new Scalar(mode.toString(8).padStart(4, '0'));
  scalar.type = 'QUOTE_DOUBLE';
  return scalar;
};

const letters = (permissions: number): string =>
  ['r', 'w', 'x'].map((letter, i) => ((permissions & (4 >> i)) === 0 ? '-' : letter)).join('');

const toRule = (rule: Rule): Record<string, unknown> => {
  const { source: _source, mode, acl, fromMs, untilMs, maxStaleMs, quota, ...same } = rule;
  return {
    ...same,
    ...(mode !== undefined && { mode: octal(mode) }),
    ...(acl !== undefined && { acl: acl.map(({ tag, id, permissions }) => `${tag}:${id}:${letters(permissions)}`) }),
    ...(fromMs !== undefined && { from: new Date(fromMs).toISOString() }),
    ...(untilMs !== undefined && { until: new Date(untilMs).toISOString() }),
    ...(maxStaleMs !== undefined && { maxStale: writeDuration(maxStaleMs) }),
    ...(quota !== undefined && {
      quota: {
        ...(quota.bytes !== undefined && { bytes: writeSize(quota.bytes) }),
        ...(quota.nodes !== undefined && { nodes: quota.nodes }),
      },
    }),
  };
};
