/** What getxattr(2) answers: ACLs, and what Porthole itself says of a node. */
import { ENODATA } from '../wire/index.ts';
import { ACCESS_XATTR, DEFAULT_XATTR, encodeAcl } from './acl.ts';
import type { Caller, Way } from './caller.ts';
import type { Clock } from './clock.ts';
import { why } from './explain.ts';
import type { Node } from './node.ts';
import type { Replica } from './replica.ts';

/** The attributes that listxattr(2) shows where there are any. */
export const aclNames = [ACCESS_XATTR, DEFAULT_XATTR] as const;

const encoder = new TextEncoder();

/** The value, or ENODATA. */
export function attributeOf(
  node: Node,
  name: string,
  caller: Caller,
  way: Way,
  replica: Replica,
  clock: Clock,
): Uint8Array | number {
  switch (name) {
    case 'system.porthole.why':
      return encoder.encode(why(replica, way, node, caller, clock.wallMs()));
    case 'system.porthole.revision':
      return encoder.encode(String(node.dataRevision));
    case 'system.porthole.age':
      return encoder.encode(String(replica.ageSeconds(clock.monotonicMs())));
    case ACCESS_XATTR:
      return node.acl === undefined || replica.facts(node).effective.hostDecides || node.burned
        ? ENODATA
        : encodeAcl(node.acl);
    case DEFAULT_XATTR:
      return node.defaultAcl === undefined ? ENODATA : encodeAcl(node.defaultAcl);
    default:
      return ENODATA;
  }
}
