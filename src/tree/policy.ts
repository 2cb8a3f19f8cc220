/** The rules of a spec, compiled: what they say of a path, and which rule is the more specific. */
import { Glob, namesOf } from './glob.ts';
import { RuleIndex } from './rule-index.ts';
import type { Group, PolicySpec, Quota, Rule, RuleAclEntry } from './spec.ts';

/** Whether a rule's path is a pattern. */
export const isPattern = (rule: Rule): boolean => /[*?]/.test(rule.path);

/** Keys of a rule that say something of a node, with the rule that each came from. */
export type RuleKey = Exclude<keyof Rule, 'path' | 'source'>;

/** What the rules say of one path: each key from the most specific rule that sets it. Shared by all paths that the same rules match. */
export interface Effective {
  readonly owner: number | undefined;
  readonly group: number | undefined;
  readonly mode: number | undefined;
  readonly acl: readonly RuleAclEntry[] | undefined;
  readonly rootDenied: boolean;
  readonly hostDecides: boolean;
  readonly hidden: boolean;
  readonly program: readonly string[] | undefined;
  readonly unit: readonly string[] | undefined;
  readonly once: boolean;
  readonly writeOnce: boolean;
  readonly fromMs: number;
  readonly untilMs: number;
  readonly maxStaleMs: number | undefined;
  readonly facade: boolean;
  readonly durable: 'cluster' | 'host' | 'none' | undefined;
  readonly quota: Partial<Quota> | undefined;
  /** The answer depends on who asks or when, beyond what the mode and the ACL say. */
  readonly special: boolean;
  /** The most specific rule that matches, or undefined where only the defaults speak. */
  readonly rule: Rule | undefined;
  /** The rule that each key came from. */
  readonly sources: ReadonlyMap<RuleKey, Rule>;
}

/** How a rule is named in audit records and explanations: its glob, and where it was written. */
export const ruleName = (rule: Rule | undefined): string => {
  if (rule === undefined) return 'default';
  return rule.source === undefined ? rule.path : `${rule.path} (${rule.source})`;
};

const DOUBLE_STAR = 0;
const STAR = 1;
const MIXED = 2;
const LITERAL = 3;

interface Compiled {
  readonly rule: Rule;
  readonly index: number;
  readonly glob: Glob;
  readonly weights: readonly number[];
}

const segmentWeight = (segment: string): number => {
  if (segment === '**') return DOUBLE_STAR;
  if (segment === '*') return STAR;
  return /[*?]/.test(segment) ? MIXED : LITERAL;
};

function compile(rule: Rule, index: number): Compiled {
  const glob = new Glob(rule.path);
  return { rule, index, glob, weights: glob.segments.map(segmentWeight) };
}

const literalCount = (segment: string): number => segment.replaceAll(/[*?]/g, '').length;

/**
 * Most specific first: segment by segment from the root, a name before a pattern (the one with more literal characters
 * first) before `*` before `**`; then the longer; then the later.
 */
function bySpecificity(a: Compiled, b: Compiled): number {
  const length = Math.min(a.weights.length, b.weights.length);
  for (let i = 0; i < length; i++) {
    const difference = b.weights[i]! - a.weights[i]!;
    if (difference !== 0) return difference;
    const literals = a.weights[i] === MIXED ? literalCount(b.glob.segments[i]!) - literalCount(a.glob.segments[i]!) : 0;
    if (literals !== 0) return literals;
  }
  return b.weights.length - a.weights.length || b.index - a.index;
}

const noRules: Effective = {
  owner: undefined,
  group: undefined,
  mode: undefined,
  acl: undefined,
  rootDenied: false,
  hostDecides: false,
  hidden: false,
  program: undefined,
  unit: undefined,
  once: false,
  writeOnce: false,
  fromMs: Number.NEGATIVE_INFINITY,
  untilMs: Number.POSITIVE_INFINITY,
  maxStaleMs: undefined,
  facade: false,
  durable: undefined,
  quota: undefined,
  special: false,
  rule: undefined,
  sources: new Map(),
};

function combine(rules: readonly Compiled[]): Effective {
  if (rules.length === 0) return noRules;
  const sources = new Map<RuleKey, Rule>();
  for (const { rule } of rules) {
    for (const key of Object.keys(rule) as (keyof Rule)[]) {
      if (key === 'path' || key === 'source' || rule[key] === undefined || sources.has(key)) continue;
      sources.set(key, rule);
    }
  }
  const value = <K extends RuleKey>(key: K): Rule[K] | undefined => sources.get(key)?.[key];
  const rootDenied = value('root') === 'deny';
  const hostDecides = value('decide') === 'host';
  const hidden = value('hidden') === true;
  const program = value('program');
  const unit = value('unit');
  const once = value('once') === true;
  const fromMs = value('fromMs') ?? Number.NEGATIVE_INFINITY;
  const untilMs = value('untilMs') ?? Number.POSITIVE_INFINITY;
  const timed = fromMs !== Number.NEGATIVE_INFINITY || untilMs !== Number.POSITIVE_INFINITY;
  return {
    owner: value('owner'),
    group: value('group'),
    mode: value('mode'),
    acl: value('acl'),
    rootDenied,
    hostDecides,
    hidden,
    program,
    unit,
    once,
    writeOnce: value('writeOnce') === true,
    fromMs,
    untilMs,
    maxStaleMs: value('maxStaleMs'),
    facade: value('facade') === true,
    durable: value('durable'),
    quota: value('quota'),
    special: rootDenied || hostDecides || hidden || program !== undefined || unit !== undefined || once || timed,
    rule: rules[0]!.rule,
    sources,
  };
}

const EFFECTIVE_KEPT = 4096;

/** The compiled rules of one spec; a change of the policy is another object. */
export class Policy {
  readonly spec: PolicySpec;
  /** Whether any rule bounds what lies under a path. */
  readonly hasQuotas: boolean;
  /** Whether any rule lets writes be lost with the host daemon (`durable: none`). */
  readonly hasVolatileRules: boolean;
  /** Whether any rule hides anything. */
  readonly hides: boolean;
  /** Whether any value can be read once only. */
  readonly hasOnce: boolean;
  readonly #rules: RuleIndex<Compiled>;
  /** Those by which an answer can depend on who asks, when or how often, beyond modes and ACLs. */
  readonly #special: readonly Compiled[];
  /** By the rules that match. Guests choose names and so, where patterns overlap, which: bounded. */
  readonly #effective = new Map<string, Effective>();
  readonly #groups: ReadonlyMap<number, Group>;
  readonly #members: ReadonlyMap<number, ReadonlySet<number>>;
  readonly #uids: ReadonlySet<number>;

  constructor(spec: PolicySpec) {
    this.spec = spec;
    const rules = spec.rules.map(compile).toSorted(bySpecificity);
    this.#rules = new RuleIndex(rules);
    this.hasQuotas = spec.rules.some((rule) => rule.quota !== undefined);
    this.hasVolatileRules = spec.rules.some((rule) => rule.durable === 'none');
    this.hasOnce = spec.rules.some((rule) => rule.once === true);
    this.hides = spec.rules.some((rule) => rule.hidden === true);
    this.#special = rules.filter((compiled) => {
      const { special, writeOnce } = combine([compiled]);
      return special || writeOnce;
    });
    this.#groups = new Map(Object.values(spec.groups).map((group) => [group.gid, group]));
    this.#members = new Map(
      [...this.#groups.values()].flatMap((group) =>
        group.members === undefined ? [] : [[group.gid, new Set(group.members)]],
      ),
    );
    this.#uids = new Set([
      0,
      ...Object.values(spec.users),
      ...(spec.ninepMountUid === undefined ? [] : [spec.ninepMountUid]),
      ...Object.values(spec.groups).flatMap(({ members }) => members ?? []),
      ...spec.rules.flatMap(({ owner, acl }) => [
        ...(owner === undefined ? [] : [owner]),
        ...(acl ?? []).filter(({ tag }) => tag === 'user').map(({ id }) => id),
      ]),
    ]);
  }

  /** What the rules say of a normalised absolute path. */
  effective(path: string): Effective {
    const names = namesOf(path);
    const matching = this.#rules.matching(names);
    const key = matching.map((compiled) => compiled.index).join();
    let effective = this.#effective.get(key);
    if (effective === undefined) {
      effective = combine(matching);
      if (this.#effective.size >= EFFECTIVE_KEPT) this.#effective.clear();
      this.#effective.set(key, effective);
    }
    return effective;
  }

  /** Whether a rule may guard a directory or something below it by more than modes and ACLs. */
  guardsWithin(directory: string): boolean {
    const names = namesOf(directory);
    return this.#special.some((compiled) => compiled.glob.mayMatchWithin(names));
  }

  /** The members of a group that the spec lists members of, and undefined for any other group. */
  members(gid: number): ReadonlySet<number> | undefined {
    return this.#members.get(gid);
  }

  /** Whether the spec speaks of a uid: as a user, an owner, a member, in an ACL; root always. Of others, 9P makes nobody. */
  knows(uid: number): boolean {
    return this.#uids.has(uid);
  }

  userName(uid: number): string | undefined {
    return Object.entries(this.spec.users).find(([, id]) => id === uid)?.[0];
  }

  groupName(gid: number): string | undefined {
    return Object.entries(this.spec.groups).find(([, group]) => group.gid === gid)?.[0];
  }
}

/** Owner, group and permission bits of what was made outside and no rule covers (by key). */
interface Defaults {
  readonly mode: number;
  /** Guests may create under it by the directory's write bits. Elsewhere only a rule's mode grants that. */
  readonly grantsWrites: boolean;
}

const publicAreas = new Set(['instance', 'network', 'cluster', 'user', 'cloud-init']);
const privateFiles = new Set(['/cloud-init/user-data', '/cloud-init/vendor-data']);
/** The stream of changes, a file at the top of every tree. */
export const CHANGES_NAME = '.changes';

/** What holds where no rule speaks (the owner is always root). Paths are normalised and absolute. */
export function defaults(path: string, isDirectory: boolean): Defaults {
  const first = path.split('/', 2)[1]!;
  if (path === '/') return { mode: 0o755, grantsWrites: false };
  if (path === '/guest') return { mode: 0o1777, grantsWrites: true };
  if (path === '/guest/.agent') return { mode: 0o700, grantsWrites: true };
  if (path === `/${CHANGES_NAME}`) return { mode: 0o444, grantsWrites: false };
  if (publicAreas.has(first)) {
    return { mode: isDirectory ? 0o755 : privateFiles.has(path) ? 0o400 : 0o444, grantsWrites: false };
  }
  if (first === 'secrets') return { mode: isDirectory ? 0o711 : 0o400, grantsWrites: false };
  return { mode: isDirectory ? 0o700 : 0o400, grantsWrites: false };
}

/** Whether the write bits of a directory made outside let guests change its entries: under `/guest`, or where a rule says so. */
export const grantsEntries = (effective: Effective, path: string): boolean =>
  effective.sources.has('mode') || effective.sources.has('acl') || defaults(path, true).grantsWrites;
