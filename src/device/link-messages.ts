/** What the host daemon and a device process say to each other. */
import * as z from 'zod';
import { type AuditRecord, type Delta, limits, type Mutation, type Outcome } from '../tree/index.ts';

/** Milliseconds on the clock that all processes of a machine share (CLOCK_MONOTONIC). */
export const monotonicMs = (): number => {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1000 + nanoseconds / 1e6;
};

/** Rises when a message changes its meaning; both sides of one version speak the version before too. */
export const linkProtocol = 1;

/** A vhost-user socket to listen on. */
export interface LinkVhostUser {
  readonly path: string;
  /** Permission bits of the socket: 0600, or 0660 with a group. */
  readonly mode: number;
  readonly gid?: number;
}

/** A directory to mount on, on this machine. */
export interface LinkMount {
  readonly path: string;
}

export interface LinkOptions {
  /** How long the loop polls its rings after serving before it sleeps. 0: never. */
  readonly spinMicros: number;
  /** Accept guest memory that the other side could truncate (no F_SEAL_SHRINK): it could kill the device process. */
  readonly allowUnsealedMemory: boolean;
}

/** The first message to a device process: what to serve. A full delta follows. */
export interface LinkConfig {
  readonly type: 'config';
  readonly protocol: number;
  /** Name of the VM, for audit records. */
  readonly vm: string;
  readonly boot?: string;
  readonly vhostUser: readonly LinkVhostUser[];
  readonly mounts: readonly LinkMount[];
  readonly options: LinkOptions;
}

/** From the host daemon to a device process. */
export type ToDevice =
  | LinkConfig
  /** A commit; the first has `full`. Nodes that are `once` come without their bytes. */
  | { readonly type: 'delta'; readonly delta: Delta }
  /** Answers a mutation. The delta of its commit was sent before. */
  | { readonly type: 'outcome'; readonly sequence: number; readonly outcome: Outcome }
  | { readonly type: 'askStatistics'; readonly id: number }
  /** Whether the audit log can be written. While it can't, what must be recorded is refused (`AuditSink` answers false). */
  | { readonly type: 'auditHealth'; readonly writable: boolean }
  /** Unmount, remove the sockets, end with exit code 0. */
  | { readonly type: 'shutdown' };

/** Something that the device process serves. */
export interface LinkTarget {
  readonly kind: 'vhost-user' | 'mount';
  readonly path: string;
}

/** From a device process to the host daemon. */
export type ToHost =
  /** `sequence` counts from 1 in each device process; `kind` says by which way in it came. */
  | {
      readonly type: 'mutation';
      readonly sequence: number;
      readonly way: 'virtiofs' | 'mount';
      readonly mutation: Mutation;
      /** `monotonicMs` after which it must be refused: the guest has its EIO by then. */
      readonly expiresMs: number;
    }
  /** The replica has applied the commit: whoever opens a file from now on sees it. */
  | { readonly type: 'applied'; readonly revision: number }
  | { readonly type: 'audit'; readonly records: readonly AuditRecord[] }
  /** A target can be used now: the socket listens, the directory is mounted. */
  | { readonly type: 'ready'; readonly target: LinkTarget }
  /** A target cannot be served (any more), in words for people; the others go on. */
  | { readonly type: 'failed'; readonly target: LinkTarget; readonly reason: string }
  /** Something about a target that people want to know: a front end connected, a guest's device was marked broken. */
  | { readonly type: 'event'; readonly target: LinkTarget; readonly event: LinkEvent; readonly detail: string }
  | { readonly type: 'statistics'; readonly id: number; readonly counters: Readonly<Record<string, number>> };

export type LinkEvent = 'connected' | 'disconnected' | 'broken';

interface MessageKind {
  readonly code: number;
  readonly from: 'host' | 'device';
  /** Payload, at most. */
  readonly maxBytes: number;
}

const kibibyte = 1024;
const mebibyte = 1024 * kibibyte;

/** One row per message. Codes are never reused. */
export const messageKinds = {
  config: { code: 1, from: 'host', maxBytes: mebibyte },
  delta: { code: 2, from: 'host', maxBytes: 1024 * mebibyte },
  outcome: { code: 3, from: 'host', maxBytes: limits.valueBytes + 4 * kibibyte },
  askStatistics: { code: 4, from: 'host', maxBytes: kibibyte },
  shutdown: { code: 5, from: 'host', maxBytes: kibibyte },
  auditHealth: { code: 6, from: 'host', maxBytes: kibibyte },
  mutation: { code: 64, from: 'device', maxBytes: limits.valueBytes + 16 * kibibyte },
  audit: { code: 65, from: 'device', maxBytes: 8 * mebibyte },
  ready: { code: 66, from: 'device', maxBytes: 16 * kibibyte },
  failed: { code: 67, from: 'device', maxBytes: 16 * kibibyte },
  event: { code: 68, from: 'device', maxBytes: 16 * kibibyte },
  statistics: { code: 69, from: 'device', maxBytes: 256 * kibibyte },
  applied: { code: 70, from: 'device', maxBytes: kibibyte },
} as const satisfies Record<(ToDevice | ToHost)['type'], MessageKind>;

export type MessageType = keyof typeof messageKinds;

export const kindByCode: ReadonlyMap<number, MessageType> = new Map(
  Object.entries(messageKinds).map(([type, { code }]) => [code, type as MessageType]),
);

// What a device process may say. It parses what guests send, so it may have been taken over by one: all is checked.

export const auditBatch = 256;

const u32 = z.int().min(0).max(0xffff_ffff);
const ino = z.int().min(1);
const sequence = z.int().min(1);
const bits = z.int().min(0).max(0o7777);
/** Valid Unicode without NUL and '/': what a directory entry's name can be. The authority says which errno a long one gets. */
const name = z
  .string()
  .max(4096)
  .refine((text) => text.isWellFormed() && !/[/\0]/.test(text));
const bytes = (max: number) => z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.length <= max);
const words = (max: number) => z.string().max(max);
/** Only an agent proves groups, program and unit, and no agent is at the other end. */
const caller = z.strictObject({ uid: u32, gid: u32, pid: u32 });
const time = z.strictObject({
  sec: z.int().min(-limits.timeSeconds).max(limits.timeSeconds),
  nsec: z.int().min(0).max(999_999_999),
});
const timeOrNow = z.union([time, z.literal('now')]);
/** A guest may send any 64-bit offset: too large for a safe integer is for the authority to refuse (EFBIG). */
const valueEnd = z.number().min(0);

const mutation = z.discriminatedUnion('op', [
  z.strictObject({ op: z.literal('create'), caller, parentIno: ino, name, mode: bits, umask: bits }),
  z.strictObject({ op: z.literal('mkdir'), caller, parentIno: ino, name, mode: bits, umask: bits }),
  z.strictObject({ op: z.literal('symlink'), caller, parentIno: ino, name, target: bytes(limits.symlinkBytes + 1) }),
  z.strictObject({ op: z.literal('unlink'), caller, parentIno: ino, name }),
  z.strictObject({ op: z.literal('rmdir'), caller, parentIno: ino, name }),
  z.strictObject({
    op: z.literal('rename'),
    caller,
    parentIno: ino,
    name,
    newParentIno: ino,
    newName: name,
    flags: u32,
  }),
  z.strictObject({
    op: z.literal('write'),
    caller,
    ino,
    offset: valueEnd,
    data: bytes(limits.valueBytes),
    append: z.boolean(),
    truncate: z.boolean(),
    grantedAtOpen: z.boolean(),
  }),
  z.strictObject({ op: z.literal('truncate'), caller, ino, sizeBytes: valueEnd, grantedAtOpen: z.boolean() }),
  z.strictObject({
    op: z.literal('setattr'),
    caller,
    ino,
    mode: bits.exactOptional(),
    uid: u32.exactOptional(),
    gid: u32.exactOptional(),
    atime: timeOrNow.exactOptional(),
    mtime: timeOrNow.exactOptional(),
  }),
  z.strictObject({ op: z.literal('setxattr'), caller, ino, name: words(255), value: bytes(65_536), flags: u32 }),
  z.strictObject({ op: z.literal('removexattr'), caller, ino, name: words(255) }),
  z.strictObject({ op: z.literal('burn'), caller, ino }),
  z.strictObject({ op: z.literal('drop'), caller, ino }),
]);

const auditRecord = z.strictObject({
  time: z.iso.datetime(),
  vm: words(255),
  boot: words(255).exactOptional(),
  way: words(32),
  operation: words(32),
  path: words(32_768),
  uid: u32,
  gid: u32,
  pid: u32,
  program: words(4096).exactOptional(),
  revision: z.int().min(0),
  verdict: z.enum(['allowed', 'denied']),
  rule: words(32_768),
  errno: words(32).exactOptional(),
  dropped: z.int().min(0).exactOptional(),
  droppedOthers: z.int().min(0).exactOptional(),
} satisfies Record<keyof AuditRecord, z.ZodType>);

const target = z.strictObject({ kind: z.enum(['vhost-user', 'mount']), path: words(4096) });

/** One schema per message from a device process. */
export const fromDevice = {
  mutation: z.strictObject({
    type: z.literal('mutation'),
    sequence,
    way: z.enum(['virtiofs', 'mount']),
    mutation,
    expiresMs: z.number(),
  }),
  applied: z.strictObject({ type: z.literal('applied'), revision: z.int().min(0) }),
  audit: z.strictObject({ type: z.literal('audit'), records: z.array(auditRecord).max(auditBatch) }),
  ready: z.strictObject({ type: z.literal('ready'), target }),
  failed: z.strictObject({ type: z.literal('failed'), target, reason: words(4096) }),
  event: z.strictObject({
    type: z.literal('event'),
    target,
    event: z.enum(['connected', 'disconnected', 'broken']),
    detail: words(4096),
  }),
  statistics: z.strictObject({
    type: z.literal('statistics'),
    id: z.int().min(0),
    counters: z.record(words(64), z.number()).refine((counters) => Object.keys(counters).length <= 1024),
  }),
} as const satisfies { readonly [T in ToHost['type']]: z.ZodType<Extract<ToHost, { type: T }>> };
