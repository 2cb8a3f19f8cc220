/** What the host daemon and a device process say to each other. */
import { type Delta, limits, type Mutation, type Outcome } from '../tree/index.ts';

/** Milliseconds on the clock that all processes of a machine share (CLOCK_MONOTONIC). */
export const monotonicMs = (): number => {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1000 + nanoseconds / 1e6;
};

/** A vhost-user socket to listen on. */
export interface LinkVhostUser {
  readonly path: string;
  /** Permission bits of the socket: 0600, or 0660 with a group. */
  readonly mode: number;
  readonly gid?: number;
}

/** Where 9P clients connect to: a unix socket, an address and port of TCP, or a port of the guests' vsock. */
export type LinkNinep = LinkVhostUser | LinkNinepTcp | LinkNinepVsock;

/** The port of `<path>_<port>`, where a guest's connections over vsock arrive; undefined: another socket. */
export const vsockPortOf = (path: string): number | undefined => {
  const port = /_(\d{1,10})$/.exec(path)?.[1];
  return port === undefined ? undefined : Number(port);
};

export interface LinkNinepVsock {
  /** `vsock:PORT`, by which it is named. */
  readonly path: string;
  readonly vsockPort: number;
}

export interface LinkNinepTcp {
  /** `tcp:ADDRESS:PORT`, by which it is named; an IPv6 address stands in brackets. */
  readonly path: string;
  readonly address: string;
  readonly port: number;
  /** Who may connect beside this machine: addresses and prefixes (`192.0.2.0/24`). */
  readonly allow: readonly string[];
}

/** A vsock device: the vhost-user socket at `path`, and what it carries. */
export interface LinkVsock extends LinkVhostUser {
  /** Where programs of the host reach the guest. What the guest wants of port P goes to `<host.path>_P`. */
  readonly host: LinkVhostUser;
  readonly guestCid: number;
}

/** A directory to mount on, on this machine. */
export interface LinkMount {
  readonly path: string;
}

/** How to serve, for all targets. */
export interface LinkOptions {
  /** How long the loop polls its rings after serving before it sleeps. 0: never. */
  readonly spinMicros: number;
  /** Accept guest memory that the other side could truncate (no F_SEAL_SHRINK): it could kill the device process. */
  readonly allowUnsealedMemory: boolean;
}

/** The first message to a device process: what to serve. A full delta follows. From a later daemon it changes nothing. */
export interface LinkConfig {
  readonly type: 'config';
  /** Name of the VM, for audit records. */
  readonly vm: string;
  readonly vhostUser: readonly LinkVhostUser[];
  readonly mounts: readonly LinkMount[];
  /** None: the daemon is of a version before there were any. */
  readonly ninep?: readonly LinkNinep[];
  readonly vsock?: readonly LinkVsock[];
  /** Path of the audit ring. None: no audit log is kept, and records are dropped. */
  readonly auditRing?: string | undefined;
  readonly options: LinkOptions;
  /** The deltas that follow begin where a predecessor may have stood; what it served goes on once this revision is applied. */
  readonly resumeAt?: number;
}

/** From the host daemon to a device process. */
export type ToDevice =
  | LinkConfig
  /** A commit; the first has `full`. Nodes that are `once` come without their bytes. */
  | { readonly type: 'delta'; readonly delta: Delta }
  /** Answers a mutation. The delta of its commit was sent before. */
  | { readonly type: 'outcome'; readonly sequence: number; readonly outcome: Outcome }
  /** A mutation was on time and is being kept: what becomes of it is said by an `outcome`, however late. Since protocol 4. */
  | { readonly type: 'taken'; readonly sequence: number }
  | { readonly type: 'askStatistics'; readonly id: number }
  /**
   * SHA-256 of this boot's token, by which 9P clients may attach where no port vouches for them; none: there is no token. Who was
   * let in by another one is turned out.
   */
  | { readonly type: 'bootToken'; readonly hash?: Uint8Array | undefined }
  /** The host hears nothing of the cluster since so long; without it: it does. */
  | { readonly type: 'cutOff'; readonly ageMs?: number | undefined }
  /** Unmount, remove the sockets, end with exit code 0. */
  | { readonly type: 'shutdown' }
  /** End with exit code 0 and leave everything to a successor; mounts can't be left and end. */
  | { readonly type: 'handOver' };

/** Something that the device process serves. */
export interface LinkTarget {
  readonly kind: 'vhost-user' | 'mount' | 'vsock' | '9p';
  readonly path: string;
}

/** The ways in that a device process serves, as mutations name them: keys of `ways`. */
export type LinkWay = 'virtiofs' | 'mount' | 'ninep';

/** What is spoken here. Either side also accepts the one before: 4 knew nothing of `cutOff`. */
export const LINK_PROTOCOL = 5;

/** Whether a daemon of this version can talk with a device process of that protocol: a newer one speaks ours too. */
export const isSpoken = (protocol: number): boolean => Math.abs(protocol - LINK_PROTOCOL) <= 1;

/** From a device process to the host daemon. */
export type ToHost =
  /**
   * The first message of every connection. `holder`: the device process, through all daemons that it meets. `build`: what it
   * runs. `journal`: the version of the journals that it leaves, which a successor must know.
   */
  | {
      readonly type: 'hello';
      readonly protocol: number;
      readonly holder: string;
      readonly pid: number;
      readonly build?: string | undefined;
      readonly journal?: number | undefined;
    }
  /**
   * `sequence` counts from 1 in each holder; `way` says by which way in it came. What was not answered when a daemon went
   * away is sent again to the next one.
   */
  | {
      readonly type: 'mutation';
      readonly sequence: number;
      readonly way: LinkWay;
      readonly mutation: Mutation;
      /** `monotonicMs` after which it must be refused: the guest has its EIO by then. */
      readonly expiresMs: number;
    }
  /** The replica has applied the commit: whoever opens a file from now on sees it. */
  | { readonly type: 'applied'; readonly revision: number }
  /** A 9P client was let in by the token of that hash. */
  | { readonly type: 'tokenUsed'; readonly hash: Uint8Array }
  /** Records are in the audit ring, of which the daemon had said that it no longer looks at it. */
  | { readonly type: 'auditWaiting' }
  /** A target can be used now: the socket listens, the directory is mounted. */
  | { readonly type: 'ready'; readonly target: LinkTarget }
  /** A target cannot be served (any more), in words for people; the others go on. */
  | { readonly type: 'failed'; readonly target: LinkTarget; readonly reason: string }
  /** Something about a target that people want to know: a front end connected, a guest's device was marked broken. */
  | { readonly type: 'event'; readonly target: LinkTarget; readonly event: LinkEvent; readonly detail: string }
  | { readonly type: 'statistics'; readonly id: number; readonly counters: Readonly<Record<string, number>> };

/**
 * `resumed`: a front end that a predecessor served goes on. `refused`: one was turned away. `broken`: a device or queue stands
 * still until the guest resets it. `unkept`: the keeper is gone, so that what is served would end with this process; `kept`: it
 * is there again.
 */
export type LinkEvent = 'connected' | 'resumed' | 'refused' | 'disconnected' | 'broken' | 'kept' | 'unkept';

interface MessageKind {
  readonly code: number;
  readonly from: 'host' | 'device';
  /** Payload, at most. */
  readonly maxBytes: number;
}

const kibibyte = 1024;
const mebibyte = 1024 * kibibyte;

/** One row per message. Codes are never reused: 6 and 65 carried audit records before there was a ring for them. */
export const messageKinds = {
  config: { code: 1, from: 'host', maxBytes: mebibyte },
  delta: { code: 2, from: 'host', maxBytes: 1024 * mebibyte },
  outcome: { code: 3, from: 'host', maxBytes: limits.valueBytes + 4 * kibibyte },
  askStatistics: { code: 4, from: 'host', maxBytes: kibibyte },
  shutdown: { code: 5, from: 'host', maxBytes: kibibyte },
  taken: { code: 7, from: 'host', maxBytes: kibibyte },
  handOver: { code: 20, from: 'host', maxBytes: kibibyte },
  bootToken: { code: 21, from: 'host', maxBytes: kibibyte },
  cutOff: { code: 22, from: 'host', maxBytes: kibibyte },
  mutation: { code: 64, from: 'device', maxBytes: limits.valueBytes + 16 * kibibyte },
  ready: { code: 66, from: 'device', maxBytes: 16 * kibibyte },
  failed: { code: 67, from: 'device', maxBytes: 16 * kibibyte },
  event: { code: 68, from: 'device', maxBytes: 16 * kibibyte },
  statistics: { code: 69, from: 'device', maxBytes: 256 * kibibyte },
  applied: { code: 70, from: 'device', maxBytes: kibibyte },
  hello: { code: 71, from: 'device', maxBytes: kibibyte },
  auditWaiting: { code: 72, from: 'device', maxBytes: kibibyte },
  tokenUsed: { code: 73, from: 'device', maxBytes: kibibyte },
} as const satisfies Record<(ToDevice | ToHost)['type'], MessageKind>;

export type MessageType = keyof typeof messageKinds;

export const kindByCode: ReadonlyMap<number, MessageType> = new Map(
  Object.entries(messageKinds).map(([type, { code }]) => [code, type as MessageType]),
);
