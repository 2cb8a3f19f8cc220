/** `porthole policy explain`: what the policy says of a path for one caller, and which rule says it. */
import {
  type Caller,
  type Explanation,
  explain,
  type Node,
  type Policy,
  type Replica,
  ROOT_INO,
  type Way,
} from '../tree/index.ts';
import { modeLetters } from './mode-letters.ts';

interface ExplainRequest {
  readonly replica: Replica;
  readonly path: string;
  readonly caller: Caller;
  readonly way: Way;
  readonly wallMs: number;
}

/** Undefined when there is nothing at the path. */
export const explainPath = ({ replica, path, caller, way, wallMs }: ExplainRequest): string | undefined => {
  const { snapshot, policy } = replica;
  const node = snapshot.resolve(path);
  if (node === undefined) return undefined;
  const told = explain(replica, way, node, caller, wallMs);
  const lines = [
    listing(told, node, policy),
    '',
    `${name(policy.userName(caller.uid), 'uid', caller.uid)}, ${name(policy.groupName(caller.gid), 'gid', caller.gid)}${groupsOf(caller)}, by ${way.name}`,
  ];
  const reached = told.stoppedAt === undefined;
  for (const ancestor of ancestors(replica, node)) {
    const { search, rule, path: at } = explain(replica, way, ancestor, caller, wallMs);
    lines.push(`  search ${pad(search.allowed)}  ${at}  (${search.because}; rule: ${rule})`);
  }
  const verdicts = told.type === 'directory' ? (['read', 'write', 'search'] as const) : (['read', 'write'] as const);
  for (const what of verdicts) {
    const { allowed, because } = told[what];
    const why = allowed && !reached ? `no way to it: ${told.stoppedAt} may not be searched` : because;
    lines.push(`  ${what.padEnd(6)} ${pad(allowed && reached)}  ${told.path}  (${why})`);
  }
  if (told.hidden) lines.push('  hidden: for this caller it is not there (ENOENT, not listed)');
  lines.push('', told.keys.length === 0 ? 'no rule covers it: the defaults hold' : 'from the rules:');
  for (const { key, value, rule } of told.keys) lines.push(`  ${key}: ${named(key, value, policy)}  (${rule})`);
  return `${lines.join('\n')}\n`;
};

const pad = (allowed: boolean): string => (allowed ? 'allowed' : 'denied ');

const ancestors = (replica: Replica, node: Node): Node[] => {
  const found: Node[] = [];
  for (let at = node; at.ino !== ROOT_INO; ) {
    const parent = replica.snapshot.node(at.parentIno);
    if (parent === undefined) break;
    found.unshift(parent);
    at = parent;
  }
  return found;
};

/** Owner and group by name where they have one, as in the spec. */
const named = (key: string, value: string, policy: Policy): string => {
  if (key === 'owner') return policy.userName(Number(value)) ?? value;
  if (key === 'group') return policy.groupName(Number(value)) ?? value;
  return value;
};

const name = (known: string | undefined, what: string, id: number): string =>
  known === undefined ? `${what} ${id}` : `${what} ${id} (${known})`;

const groupsOf = ({ groups }: Caller): string => (groups === undefined ? '' : `, groups ${groups.join(' ')}`);

/** As `ls -l` in the guest. */
const listing = (told: Explanation, node: Node, policy: Policy): string => {
  const type = { directory: 'd', file: '-', symlink: 'l' }[told.type];
  const acl = node.acl === undefined ? '' : '+';
  const owner = policy.userName(told.uid) ?? told.uid;
  const group = policy.groupName(told.gid) ?? told.gid;
  return `${type}${modeLetters(told.shownMode)}${acl} ${owner} ${group} ${node.sizeBytes} ${told.path}`;
};
