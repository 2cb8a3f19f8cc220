/** How a node is kept. The record's keys are the format: a key may be added, none may change its meaning. */
import { hash } from 'node:crypto';
import { decode, encode } from '@msgpack/msgpack';
import * as z from 'zod';
import type { Acl, Kept, Node, Time } from '../tree/index.ts';

/** SHA-256, as `Kept.base` holds it. */
export const digestOf = (bytes: Uint8Array): string => hash('sha256', bytes, 'base64');

/** Hexadecimal of fixed width, so that keys sort as the numbers do. */
export const inoKey = (ino: number): string => ino.toString(16).padStart(14, '0');

/** Where the bytes of a node are kept. */
interface ValuePlace {
  readonly bytes?: Uint8Array | undefined;
  readonly parts?: number | undefined;
}

export const whole = z.int().min(0);
const timeRecord = z.tuple([z.int(), whole]);
const entriesRecord = z.array(z.tuple([whole, z.int().min(0).max(7)]));
/** `mask` −1: none. */
const aclRecord = z.object({
  u: whole,
  g: whole,
  o: whole,
  m: z.int().min(-1).max(7),
  users: entriesRecord,
  groups: entriesRecord,
});
const nodeRecord = z.object({
  ino: z.int().min(1),
  parent: whole,
  name: z.string(),
  /** Where it was when it lost its name. */
  was: z.string().optional(),
  by: z.enum(['outside', 'guest']),
  mode: whole,
  uid: whole,
  gid: whole,
  acl: aclRecord.optional(),
  defaultAcl: aclRecord.optional(),
  nlink: whole,
  size: whole,
  /** What a guest wrote, or a link target. */
  bytes: z.custom<Uint8Array>((value) => value instanceof Uint8Array).optional(),
  /** How many pieces of the value lie elsewhere. */
  parts: z.int().min(1).optional(),
  burned: z.boolean().optional(),
  dataRevision: whole,
  revision: whole,
  atime: timeRecord,
  mtime: timeRecord,
  ctime: timeRecord,
  base: z.string().optional(),
  keepBytes: z.boolean().optional(),
});
type NodeRecord = z.infer<typeof nodeRecord>;
type AclRecord = z.infer<typeof aclRecord>;

/** `bytes` undefined: they are not in the record, but in so many `parts` elsewhere, or nowhere. */
export const encodeKept = ({ node, base, keepBytes }: Kept, { bytes, parts }: ValuePlace): Uint8Array => {
  const record: NodeRecord = {
    ino: node.ino,
    parent: node.parentIno,
    name: node.name,
    was: node.lastPath,
    by: node.madeBy,
    mode: node.mode,
    uid: node.uid,
    gid: node.gid,
    acl: node.acl && toAclRecord(node.acl),
    defaultAcl: node.defaultAcl && toAclRecord(node.defaultAcl),
    nlink: node.nlink,
    size: node.sizeBytes,
    bytes,
    parts,
    burned: node.burned || undefined,
    dataRevision: node.dataRevision,
    revision: node.revision,
    atime: toTimeRecord(node.atime),
    mtime: toTimeRecord(node.mtime),
    ctime: toTimeRecord(node.ctime),
    base,
    keepBytes: keepBytes || undefined,
  };
  return encode(record, { ignoreUndefined: true });
};

/** Throws for what is no such record. `parts` as it was encoded; the node has the bytes that were. */
export const decodeKept = (bytes: Uint8Array): { readonly kept: Kept; readonly parts: number } => {
  const record = nodeRecord.parse(decode(bytes));
  const node: Node = {
    ino: record.ino,
    parentIno: record.parent,
    name: record.name,
    ...(record.was === undefined ? {} : { lastPath: record.was }),
    madeBy: record.by,
    mode: record.mode,
    uid: record.uid,
    gid: record.gid,
    acl: record.acl && fromAclRecord(record.acl),
    defaultAcl: record.defaultAcl && fromAclRecord(record.defaultAcl),
    nlink: record.nlink,
    sizeBytes: record.size,
    bytes: record.bytes,
    burned: record.burned ?? false,
    dataRevision: record.dataRevision,
    revision: record.revision,
    atime: fromTimeRecord(record.atime),
    mtime: fromTimeRecord(record.mtime),
    ctime: fromTimeRecord(record.ctime),
  };
  return { kept: { node, base: record.base, keepBytes: record.keepBytes ?? false }, parts: record.parts ?? 0 };
};

const toTimeRecord = ({ sec, nsec }: Time): [number, number] => [sec, nsec];
const fromTimeRecord = ([sec, nsec]: readonly [number, number]): Time => ({ sec, nsec });

const toAclRecord = ({ userObj, groupObj, other, mask, users, groups }: Acl): AclRecord => ({
  u: userObj,
  g: groupObj,
  o: other,
  m: mask,
  users: users.map(({ id, permissions }) => [id, permissions]),
  groups: groups.map(({ id, permissions }) => [id, permissions]),
});

const fromAclRecord = ({ u, g, o, m, users, groups }: AclRecord): Acl => ({
  userObj: u,
  groupObj: g,
  other: o,
  mask: m,
  users: users.map(([id, permissions]) => ({ id, permissions })),
  groups: groups.map(([id, permissions]) => ({ id, permissions })),
});
