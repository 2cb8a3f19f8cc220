/** Who may attach at all over a 9P connection. Whose files they may see then is the tree's to decide, as everywhere. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { AttachRequest } from '../ninep/index.ts';
import { EACCES } from '../wire/index.ts';

/** Binding a port below it takes privilege, in a guest as on this machine (ip(7), vsock(7)). */
const PRIVILEGED_PORTS = 1024;
/** What an `aname` with this boot's token begins with; a path may follow the token. */
const TOKEN_PREFIX = 'token=';

/**
 * Who is at the other end of a connection. `hypervisor`: who may open our unix socket, which is trusted as the VM's front end
 * is, for it carries what the guest's kernel says. `program`: any program of a guest or a machine, on vsock or TCP; nobody
 * vouches for what it says of itself unless its source port shows that it is privileged, or it shows this boot's token.
 */
export type NinepPeer =
  | { readonly kind: 'hypervisor' }
  /** `sourcePort` is undefined where whoever carries the connection hides it. */
  | { readonly kind: 'program'; readonly sourcePort: number | undefined };

/** Whether the kernel on the other side vouches for the peer: only root's programs can be it. */
export const isPrivileged = (peer: NinepPeer): boolean =>
  peer.kind === 'hypervisor' || (peer.sourcePort !== undefined && peer.sourcePort < PRIVILEGED_PORTS);

/** This boot's token, which can be told here and not made, and who was let in by it. */
export class BootToken {
  readonly #onUsed: (hash: Uint8Array) => void;
  #hash: Uint8Array | undefined;
  readonly #letIn = new Set<() => void>();

  /** `onUsed`: somebody showed the token with that SHA-256. */
  constructor(onUsed: (hash: Uint8Array) => void) {
    this.#onUsed = onUsed;
  }

  /** SHA-256 of the token that counts from now on; undefined: there is none. Who was let in by another is turned out. */
  become(hash: Uint8Array | undefined): void {
    if (hash === this.#hash || (hash && this.#hash && Buffer.compare(hash, this.#hash) === 0)) return;
    this.#hash = hash;
    for (const turnOut of [...this.#letIn]) turnOut();
  }

  /** Whether `aname` has it. Then `turnOut` is called when it is worth nothing any more, until `leave`. */
  admits(aname: string, turnOut: () => void): boolean {
    const hash = this.#hash;
    if (hash === undefined || !aname.startsWith(TOKEN_PREFIX)) return false;
    const [token = ''] = aname.slice(TOKEN_PREFIX.length).split('/', 1);
    const given = createHash('sha256').update(token).digest();
    if (hash.length !== given.length || !timingSafeEqual(given, hash)) return false;
    this.#letIn.add(turnOut);
    this.#onUsed(hash);
    return true;
  }

  leave(turnOut: () => void): void {
    this.#letIn.delete(turnOut);
  }
}

/**
 * What one connection may. Who has shown the token is believed for as long as the connection lasts: it may be handed to the
 * guest's kernel then, which would show an `aname` of its own to everybody there (/proc/mounts).
 */
export class Admission {
  readonly #token: BootToken;
  readonly #turnOut: () => void;
  #isVouchedFor: boolean;
  #refused = 0;

  /** `turnOut` is called when the token that it was let in by is worth nothing any more. */
  constructor(peer: NinepPeer, token: BootToken, turnOut: () => void) {
    this.#token = token;
    this.#turnOut = turnOut;
    this.#isVouchedFor = isPrivileged(peer);
  }

  /** Whether more is known of it than that it is a program. Who attaches is, from then on at the latest. */
  get isVouchedFor(): boolean {
    return this.#isVouchedFor;
  }

  /** How many times it was refused. */
  get refused(): number {
    return this.#refused;
  }

  /** 0, or the errno of a Tattach. */
  readonly attach = ({ aname }: AttachRequest): number => {
    if (!this.#isVouchedFor) this.#isVouchedFor = this.#token.admits(aname, this.#turnOut);
    if (this.#isVouchedFor) return 0;
    this.#refused++;
    return EACCES;
  };

  /** The connection is over. */
  end(): void {
    this.#token.leave(this.#turnOut);
  }
}
