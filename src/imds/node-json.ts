/** Nodes as the native API shows them. */
import type * as z from 'zod';
import type { Acl, Node, Replica } from '../tree/index.ts';
import type { NodeOut } from './native-schemas.ts';

const aclOf = ({ users, groups, ...classes }: Acl) => ({
  ...classes,
  users: users.map(({ id, permissions }): [number, number] => [id, permissions]),
  groups: groups.map(({ id, permissions }): [number, number] => [id, permissions]),
});

/** Whether the bytes may lie in the guest, where nobody decides about them again. */
export const isPublic = (replica: Replica, node: Node): boolean => {
  const { readableByAll, caching } = replica.facts(node);
  return node.bytes !== undefined && (readableByAll || caching === 'shared');
};

export const nodeJson = (replica: Replica, node: Node): z.input<typeof NodeOut> => ({
  ino: node.ino,
  parent: node.parentIno,
  name: node.name,
  ...(node.lastPath !== undefined && { lastPath: node.lastPath }),
  madeBy: node.madeBy,
  mode: node.mode,
  uid: node.uid,
  gid: node.gid,
  ...(node.acl !== undefined && { acl: aclOf(node.acl) }),
  ...(node.defaultAcl !== undefined && { defaultAcl: aclOf(node.defaultAcl) }),
  nlink: node.nlink,
  size: node.sizeBytes,
  ...(isPublic(replica, node) && { bytes: Buffer.from(node.bytes!).toString('base64') }),
  ...(node.burned && { burned: true }),
  dataRevision: node.dataRevision,
  revision: node.revision,
  atime: [node.atime.sec, node.atime.nsec],
  mtime: [node.mtime.sec, node.mtime.nsec],
  ctime: [node.ctime.sec, node.ctime.nsec],
});
