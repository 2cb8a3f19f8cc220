/** POSIX ACLs: their extended attribute form (linux/posix_acl_xattr.h), and how they go with a mode. */
import type { Acl, AclEntry } from './node.ts';
import { limits } from './spec.ts';

/** Names of the extended attributes that carry ACLs (acl(5)). */
export const ACCESS_XATTR = 'system.posix_acl_access';
export const DEFAULT_XATTR = 'system.posix_acl_default';

const VERSION = 2;
const USER_OBJ = 0x01;
const USER = 0x02;
const GROUP_OBJ = 0x04;
const GROUP = 0x08;
const MASK = 0x10;
const OTHER = 0x20;
const NO_ID = 0xffffffff;
const HEADER_BYTES = 4;
const ENTRY_BYTES = 8;

/** Bytes of the attribute: a version, then `{ tag u16, permissions u16, id u32 }` per entry, ordered by tag and id. */
export function encodeAcl(acl: Acl): Uint8Array {
  const extended = acl.users.length > 0 || acl.groups.length > 0;
  const entries: (readonly [tag: number, permissions: number, id: number])[] = [
    [USER_OBJ, acl.userObj, NO_ID],
    ...acl.users.map((entry) => [USER, entry.permissions, entry.id] as const),
    [GROUP_OBJ, acl.groupObj, NO_ID],
    ...acl.groups.map((entry) => [GROUP, entry.permissions, entry.id] as const),
    ...(extended || acl.mask >= 0 ? [[MASK, acl.mask < 0 ? 7 : acl.mask, NO_ID] as const] : []),
    [OTHER, acl.other, NO_ID],
  ];
  const bytes = new Uint8Array(HEADER_BYTES + entries.length * ENTRY_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, VERSION, true);
  for (const [index, [tag, permissions, id]] of entries.entries()) {
    const base = HEADER_BYTES + index * ENTRY_BYTES;
    view.setUint16(base, tag, true);
    view.setUint16(base + 2, permissions, true);
    view.setUint32(base + 4, id, true);
  }
  return bytes;
}

/**
 * Reads the attribute's bytes as a guest sent them. `mask` is −1 where the ACL has none. Undefined when they are malformed:
 * wrong size or version, a tag that is unknown, twice or missing, permissions over 7, or more entries than `limits` allow.
 */
export function decodeAcl(bytes: Uint8Array): Acl | undefined {
  const count = (bytes.length - HEADER_BYTES) / ENTRY_BYTES;
  if (!Number.isInteger(count) || count < 3 || count > limits.aclEntries) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(0, true) !== VERSION) return undefined;
  const single = new Map<number, number>();
  const users = new Map<number, number>();
  const groups = new Map<number, number>();
  for (let index = 0; index < count; index++) {
    const base = HEADER_BYTES + index * ENTRY_BYTES;
    const tag = view.getUint16(base, true);
    const permissions = view.getUint16(base + 2, true);
    const id = view.getUint32(base + 4, true);
    if (permissions > 7) return undefined;
    const named = tag === USER ? users : tag === GROUP ? groups : undefined;
    const key = named === undefined ? tag : id;
    const into = named ?? single;
    if (into.has(key) || (named !== undefined && id === NO_ID)) return undefined;
    if (named === undefined && tag !== USER_OBJ && tag !== GROUP_OBJ && tag !== MASK && tag !== OTHER) return undefined;
    into.set(key, permissions);
  }
  const userObj = single.get(USER_OBJ);
  const groupObj = single.get(GROUP_OBJ);
  const other = single.get(OTHER);
  const mask = single.get(MASK);
  if (userObj === undefined || groupObj === undefined || other === undefined) return undefined;
  if (mask === undefined && (users.size > 0 || groups.size > 0)) return undefined;
  return { userObj, groupObj, other, mask: mask ?? -1, users: sorted(users), groups: sorted(groups) };
}

const sorted = (entries: ReadonlyMap<number, number>): AclEntry[] =>
  [...entries].map(([id, permissions]) => ({ id, permissions })).toSorted((a, b) => a.id - b.id);

/** An ACL says no more than a mode when it has neither named entries nor a mask. */
export const isMinimal = (acl: Acl): boolean => acl.users.length === 0 && acl.groups.length === 0 && acl.mask < 0;

/** The permission bits (0777) that an access ACL shows as a mode: the mask stands in the group's place. */
export const aclMode = (acl: Acl): number =>
  (acl.userObj << 6) | ((acl.mask < 0 ? acl.groupObj : acl.mask) << 3) | acl.other;

/** An access ACL after chmod(2) to `mode`. */
export function chmodAcl(acl: Acl, mode: number): Acl {
  const group = (mode >> 3) & 7;
  return {
    ...acl,
    userObj: (mode >> 6) & 7,
    other: mode & 7,
    ...(acl.mask < 0 ? { groupObj: group } : { mask: group }),
  };
}

/** What a new node gets from its directory's default ACL and the mode it was asked for (acl(5), "object creation"). */
export function inheritAcl(defaultAcl: Acl, mode: number): { readonly mode: number; readonly acl: Acl | undefined } {
  const acl: Acl = {
    ...defaultAcl,
    userObj: defaultAcl.userObj & (mode >> 6) & 7,
    other: defaultAcl.other & mode & 7,
    ...(defaultAcl.mask < 0
      ? { groupObj: defaultAcl.groupObj & (mode >> 3) & 7 }
      : { mask: defaultAcl.mask & (mode >> 3) & 7 }),
  };
  return { mode: (mode & ~0o777) | aclMode(acl), acl: isMinimal(acl) ? undefined : acl };
}
