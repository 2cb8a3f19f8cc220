/** Who may attach at all over a 9P connection. Whose files they may see then is the tree's to decide, as everywhere. */
import type { AttachRequest } from '../ninep/index.ts';
import { EACCES } from '../wire/index.ts';

/** Binding a port below it takes privilege, in a guest as on this machine (ip(7), vsock(7)). */
const PRIVILEGED_PORTS = 1024;

/**
 * Who is at the other end of a connection. `hypervisor`: who may open our unix socket, which is trusted as the VM's front end
 * is, for it carries what the guest's kernel says. `program`: any program of a guest or a machine, on vsock or TCP; nobody
 * vouches for what it says of itself unless its source port shows that it is privileged.
 */
export type NinepPeer =
  | { readonly kind: 'hypervisor' }
  /** `sourcePort` is undefined where whoever carries the connection hides it. */
  | { readonly kind: 'program'; readonly sourcePort: number | undefined };

/** Whether the kernel on the other side vouches for the peer: only root's programs can be it. */
export const isPrivileged = (peer: NinepPeer): boolean =>
  peer.kind === 'hypervisor' || (peer.sourcePort !== undefined && peer.sourcePort < PRIVILEGED_PORTS);

/**
 * 0, or the errno of a Tattach. A boot's token, which `aname` carries, is to be compared here, for peers that are not
 * privileged; until there are tokens, none of those gets in.
 */
export const mayAttach = (peer: NinepPeer, _request: AttachRequest): number => (isPrivileged(peer) ? 0 : EACCES);
