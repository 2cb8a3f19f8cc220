/** Says in words what the policy decides for a caller and why: for `system.porthole.why` and `porthole policy explain`. */
import { R_OK, S_IFDIR, S_IFLNK, S_IFMT, W_OK, X_OK } from '../wire/index.ts';
import { refusedBySpecialKey } from './access.ts';
import type { Caller, Way } from './caller.ts';
import { type Node, ROOT_INO } from './node.ts';
import { type Effective, type RuleKey, ruleName } from './policy.ts';
import type { Replica } from './replica.ts';

export interface Verdict {
  readonly allowed: boolean;
  /** What decided: `mode 0400`, `root: deny`, `program`, `burned`, … */
  readonly because: string;
  /** The rule that this comes from; absent where none says it: a default, or a mode that a guest set. */
  readonly rule?: string | undefined;
}

/** What the policy says of one node for one caller. */
export interface Explanation {
  readonly path: string;
  readonly type: 'directory' | 'file' | 'symlink';
  readonly madeBy: Node['madeBy'];
  readonly uid: number;
  readonly gid: number;
  /** Permission bits that decide, and those that guests are shown. */
  readonly mode: number;
  readonly shownMode: number;
  readonly read: Verdict;
  readonly write: Verdict;
  readonly search: Verdict;
  /** The first directory on the way from the root that the caller may not search, or undefined. */
  readonly stoppedAt: string | undefined;
  /** The caller is not told that it exists. */
  readonly hidden: boolean;
  /** The most specific rule, or `default`. */
  readonly rule: string;
  /** Every key that a rule gives, with the rule. */
  readonly keys: readonly { readonly key: string; readonly value: string; readonly rule: string }[];
}

/** Where what a special key refuses is written. */
const keyOf: Readonly<Record<string, RuleKey>> = {
  'root: deny': 'root',
  from: 'fromMs',
  until: 'untilMs',
  program: 'program',
  unit: 'unit',
};

const octal = (mode: number): string => `0${(mode & 0o7777).toString(8).padStart(3, '0')}`;

/** `wallMs`: when the caller asks, in milliseconds since the epoch. Nothing is recorded for the audit. */
export function explain(replica: Replica, way: Way, node: Node, caller: Caller, wallMs: number): Explanation {
  const { effective, shownMode, entriesLocked } = replica.facts(node);
  const type = node.mode & S_IFMT;
  const from = (key: RuleKey | undefined) => {
    const rule = key && effective.sources.get(key);
    return rule === undefined ? {} : { rule: ruleName(rule) };
  };
  const verdict = (mask: number): Verdict => {
    const special = refusedBySpecialKey(effective, way, caller, wallMs);
    const allowed = replica.decide(way, node, caller, mask, wallMs) === 0;
    const denied = (because: string, key?: RuleKey): Verdict => ({ allowed: false, because, ...from(key) });
    if (special !== undefined) return denied(special, keyOf[special]);
    if (node.burned && mask !== X_OK) return denied('once: it has been read', 'once');
    if (mask === W_OK && entriesLocked) return denied('no rule lets guests create here');
    if (effective.writeOnce && mask === W_OK && type !== S_IFDIR && node.sizeBytes > 0)
      return denied('writeOnce: it has been written', 'writeOnce');
    const acl = node.acl === undefined ? '' : ' and ACL';
    const override = caller.uid === 0 && allowed && !(mask === W_OK && node.madeBy === 'outside') ? ', root may' : '';
    const said = node.madeBy === 'outside' ? from(effective.sources.has('mode') ? 'mode' : 'acl') : {};
    return { allowed, because: `mode ${octal(node.mode)}${acl}${override}`, ...said };
  };
  const read = verdict(R_OK);
  return {
    path: replica.snapshot.path(node),
    type: type === S_IFDIR ? 'directory' : type === S_IFLNK ? 'symlink' : 'file',
    madeBy: node.madeBy,
    uid: node.uid,
    gid: node.gid,
    mode: node.mode & 0o7777,
    shownMode: shownMode & 0o7777,
    read,
    write: verdict(W_OK),
    search: verdict(X_OK),
    stoppedAt: stoppedAt(replica, way, node, caller, wallMs),
    hidden: effective.hidden && !read.allowed,
    rule: ruleName(effective.rule),
    keys: [...effective.sources].map(([key, rule]) => ({ key, value: keyValue(key, rule[key]), rule: ruleName(rule) })),
  };
}

function keyValue(key: string, value: unknown): string {
  if (key === 'mode') return octal(value as number);
  if (key === 'fromMs' || key === 'untilMs') return new Date(value as number).toISOString();
  return typeof value === 'string' ? value : JSON.stringify(value);
}

function stoppedAt(replica: Replica, way: Way, node: Node, caller: Caller, wallMs: number): string | undefined {
  let found: string | undefined;
  for (let at = node; at.ino !== ROOT_INO && at.parentIno !== 0; ) {
    const parent = replica.snapshot.node(at.parentIno);
    if (parent === undefined) return found;
    if (replica.decide(way, parent, caller, X_OK, wallMs) !== 0) found = replica.snapshot.path(parent);
    at = parent;
  }
  return found;
}

/** The special keys in force, as they are written in a rule. */
function specialKeys(effective: Effective): string[] {
  const words: string[] = [];
  if (effective.rootDenied) words.push('root: deny');
  if (effective.hostDecides) words.push('decide: host');
  if (effective.hidden) words.push('hidden');
  if (effective.program !== undefined) words.push(`program: ${effective.program.join(' ')}`);
  if (effective.unit !== undefined) words.push(`unit: ${effective.unit.join(' ')}`);
  if (effective.once) words.push('once');
  if (effective.writeOnce) words.push('writeOnce');
  if (Number.isFinite(effective.fromMs)) words.push(`from: ${new Date(effective.fromMs).toISOString()}`);
  if (Number.isFinite(effective.untilMs)) words.push(`until: ${new Date(effective.untilMs).toISOString()}`);
  return words;
}

/** One line for `system.porthole.why`. */
export function why(replica: Replica, way: Way, node: Node, caller: Caller, wallMs: number): string {
  const told = explain(replica, way, node, caller, wallMs);
  const say = (name: string, verdict: Verdict) =>
    `${name}: ${verdict.allowed ? 'allowed' : 'denied'} (${verdict.because})`;
  const special = specialKeys(replica.facts(node).effective);
  return [
    `uid ${caller.uid}`,
    say('read', told.read),
    say('write', told.write),
    ...(told.stoppedAt === undefined ? [] : [`no search permission on ${told.stoppedAt}`]),
    `rule: ${told.rule}`,
    ...(special.length === 0 ? [] : [`special: ${special.join(', ')}`]),
  ].join('; ');
}
