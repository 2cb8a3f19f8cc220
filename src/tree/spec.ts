/** What the outside says a tree is: content, policy, names, quota. Plain data, so that it can be sent and stored. */

/** A whole tree, as the outside gives it to `Authority.load`. */
export interface Spec {
  readonly entries: readonly SpecEntry[];
  readonly policy: PolicySpec;
}

/** The rules, and the names and limits that go with them. */
export interface PolicySpec {
  readonly rules: readonly Rule[];
  /** User names to uids, for `explain` and for messages. */
  readonly users: Readonly<Record<string, number>>;
  readonly groups: Readonly<Record<string, Group>>;
  readonly quota: Quota;
  /** As whom a 9P attach counts that names no uid, which is the mount's own. Undefined: nobody. */
  readonly ninepMountUid?: number | undefined;
}

/** A group of the guest, by number. */
export interface Group {
  readonly gid: number;
  /** uids of the members, decided by us; undefined: membership is left to the guest's kernel. */
  readonly members?: readonly number[] | undefined;
}

/** Limits of what guests may create under the whole tree. */
export interface Quota {
  readonly bytes: number;
  readonly nodes: number;
}

/** Parents come before children. `path` is absolute and normalised: `/secrets/db`. */
export type SpecEntry =
  | { readonly path: string; readonly kind: 'directory' }
  | { readonly path: string; readonly kind: 'file'; readonly bytes: Uint8Array }
  | { readonly path: string; readonly kind: 'symlink'; readonly target: string };

/** One rule: a glob and the keys it sets. Each key of a node comes from the most specific rule that sets that key. */
export interface Rule {
  /** Absolute; `*` and `?` match within one name, `**` any number of names. */
  readonly path: string;
  readonly owner?: number;
  readonly group?: number;
  /** Permission bits, 0 to 07777. */
  readonly mode?: number;
  readonly acl?: readonly RuleAclEntry[];
  /** Whether the guest's root passes as on a disk. Default allow. */
  readonly root?: 'allow' | 'deny';
  /** `host`: read and write bits are shown to all, so that every attempt is decided and audited outside. Default kernel. */
  readonly decide?: 'kernel' | 'host';
  readonly hidden?: boolean;
  /** Absolute paths of executables that alone may pass. */
  readonly program?: readonly string[];
  /** systemd units that alone may pass. */
  readonly unit?: readonly string[];
  readonly once?: boolean;
  readonly writeOnce?: boolean;
  /** Milliseconds since the epoch; before `fromMs` and from `untilMs` on, access is refused. */
  readonly fromMs?: number;
  readonly untilMs?: number;
  /** How old a cut-off host's copy may be before reads are refused. */
  readonly maxStaleMs?: number;
  readonly facade?: boolean;
  readonly durable?: 'cluster' | 'host' | 'none';
  /** Limits of what lies under the path. */
  readonly quota?: Partial<Quota>;
  /** Where the rule was written, for people: `web.yaml:12`. */
  readonly source?: string;
}

/** A named user or group of an ACL. */
export interface RuleAclEntry {
  readonly tag: 'user' | 'group';
  readonly id: number;
  /** 0 to 7. */
  readonly permissions: number;
}

/** Limits that hold for every tree, whatever its quota. */
export const limits = {
  valueBytes: 1024 * 1024,
  nameBytes: 255,
  depth: 64,
  symlinkBytes: 4095,
  /** Seconds before and after 1970 that a time can be. */
  timeSeconds: 2 ** 40,
  aclEntries: 64,
} as const;

/** What a spec without a `quota` has. */
export const defaultQuota: Quota = { bytes: 16 * 1024 * 1024, nodes: 10_000 };
