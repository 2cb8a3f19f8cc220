/** The extended attributes that nodes have: POSIX ACLs, and what Porthole says of a node. */
import { ENODATA } from '../wire/index.ts';
import { ACCESS_XATTR, DEFAULT_XATTR, encodeAcl } from './acl.ts';
import type { Caller, Way } from './caller.ts';
import { why } from './explain.ts';
import type { Node } from './node.ts';
import type { Replica } from './replica.ts';

/** Those that LISTXATTR tells of where a node has them; `system.porthole.*` is never listed, or `cp -a` would copy it. */
export const listedXattrs: readonly string[] = [ACCESS_XATTR, DEFAULT_XATTR];

const encoder = new TextEncoder();

const cutOffWords = (ageSeconds: number): string =>
  ageSeconds === 0 ? '' : `; cut off from outside for ${ageSeconds} s: what has to be kept there is refused`;

/** The value, or ENODATA. Never ENOSYS, which would turn attributes off for the whole mount. */
export function xattrOf(
  replica: Replica,
  way: Way,
  node: Node,
  caller: Caller,
  name: string,
  wallMs: number,
  monotonicMs: number,
): Uint8Array | number {
  switch (name) {
    case 'system.porthole.why':
      return encoder.encode(why(replica, way, node, caller, wallMs) + cutOffWords(replica.ageSeconds(monotonicMs)));
    case 'system.porthole.revision':
      return encoder.encode(String(node.dataRevision));
    case 'system.porthole.age':
      return encoder.encode(String(replica.ageSeconds(monotonicMs)));
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
