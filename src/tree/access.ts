/** The decision: may this caller do this to this node? The only place where access is decided. */
import { EACCES, R_OK, S_IFDIR, S_IFMT, W_OK, X_OK } from '../wire/index.ts';
import type { Caller, Way } from './caller.ts';
import type { Node } from './node.ts';
import type { Effective, Policy } from './policy.ts';

export const isDirectory = (node: Node): boolean => (node.mode & S_IFMT) === S_IFDIR;

const Member = { no: 0, yes: 1, unknown: 2 } as const;
type Membership = (typeof Member)[keyof typeof Member];

/**
 * Whether the caller is in a group. A member list in the spec is the whole truth for what was made outside. Other groups:
 * the caller's own gid and supplementary groups, and beyond these only the guest's kernel knows, where it has checked. It has
 * checked nothing of what is `hidden` (whether a name is there is ours to say), nor where the shown bits let everybody pass.
 */
function membership(
  policy: Policy,
  way: Way,
  node: Node,
  effective: Effective,
  caller: Caller,
  gid: number,
): Membership {
  const members = node.madeBy === 'outside' ? policy.members(gid) : undefined;
  if (members !== undefined) return members.has(caller.uid) ? Member.yes : Member.no;
  if (caller.gid === gid || caller.groups?.includes(gid) === true) return Member.yes;
  if (policy.members(gid)?.has(caller.uid) === true) return Member.yes;
  const kernelKnows = way.kernelChecks && caller.groups === undefined && !effective.hostDecides && !effective.hidden;
  return kernelKnows ? Member.unknown : Member.no;
}

/** Whether mode and ACL grant `mask` to the caller by acl(5)'s access check algorithm, root's override aside. */
function permitted(policy: Policy, way: Way, node: Node, effective: Effective, caller: Caller, mask: number): boolean {
  const { mode, acl } = node;
  if (caller.uid === node.uid) return ((mode >> 6) & mask) === mask;
  const aclMask = acl === undefined ? 7 : acl.mask < 0 ? 7 : acl.mask;
  if (acl !== undefined) {
    for (const entry of acl.users) if (entry.id === caller.uid) return (entry.permissions & aclMask & mask) === mask;
  }
  let matched = false;
  const groupBits = acl === undefined ? (mode >> 3) & 7 : acl.groupObj & aclMask;
  const owning = membership(policy, way, node, effective, caller, node.gid);
  if (owning !== Member.no) {
    if ((groupBits & mask) === mask) return true;
    matched = owning === Member.yes;
  }
  if (acl !== undefined) {
    for (const entry of acl.groups) {
      const named = membership(policy, way, node, effective, caller, entry.id);
      if (named === Member.no) continue;
      if ((entry.permissions & aclMask & mask) === mask) return true;
      matched ||= named === Member.yes;
    }
  }
  return !matched && (mode & mask) === mask;
}

/** What the special keys of a rule refuse, whatever the mode says: a word for it, or undefined. */
export function refusedBySpecialKey(
  effective: Effective,
  way: Way,
  caller: Caller,
  wallMs: number,
): string | undefined {
  if (!effective.special) return undefined;
  if (effective.rootDenied && caller.uid === 0) return 'root: deny';
  if (wallMs < effective.fromMs) return 'from';
  if (wallMs >= effective.untilMs) return 'until';
  if (
    effective.program !== undefined &&
    !(way.provesProgram && caller.program !== undefined && effective.program.includes(caller.program))
  )
    return 'program';
  if (
    effective.unit !== undefined &&
    !(way.provesUnit && caller.unit !== undefined && effective.unit.includes(caller.unit))
  )
    return 'unit';
  return undefined;
}

/**
 * 0 or EACCES for any of R_OK, W_OK, X_OK. Root overrides mode and ACL as on a disk, except that it writes what was made
 * outside only where a write bit applies to it.
 */
export function decide(
  policy: Policy,
  way: Way,
  node: Node,
  effective: Effective,
  caller: Caller,
  mask: number,
  wallMs: number,
): number {
  if (effective.special && refusedBySpecialKey(effective, way, caller, wallMs) !== undefined) return EACCES;
  if (node.burned && (mask & (R_OK | W_OK)) !== 0) return EACCES;
  if (caller.uid !== 0) return permitted(policy, way, node, effective, caller, mask) ? 0 : EACCES;
  if ((mask & W_OK) !== 0 && node.madeBy === 'outside' && !permitted(policy, way, node, effective, caller, W_OK))
    return EACCES;
  if ((mask & X_OK) !== 0 && !isDirectory(node) && (node.mode & 0o111) === 0) return EACCES;
  return 0;
}

/**
 * Whether somebody of whom nothing is known may do `mask`: by the "other" bits of the policy's mode, or by `facade: true`.
 * Who can prove neither program nor unit is refused where a rule asks for one.
 */
export function openToAnonymous(effective: Effective, mode: number, mask: number, wallMs: number): boolean {
  if (wallMs < effective.fromMs || wallMs >= effective.untilMs) return false;
  if (effective.program !== undefined || effective.unit !== undefined) return false;
  return effective.facade || (mode & mask) === mask;
}
