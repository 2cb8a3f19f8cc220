/**
 * The host daemon's end of the link. A device process parses what guests send, so it may have been taken over by one: all
 * that it says is checked. Nothing of this is loaded in a device process.
 */
import * as z from 'zod';
import { limits } from '../tree/index.ts';
import { decodeBody, LinkError, MessageReader } from './link.ts';
import type { ToHost } from './link-messages.ts';

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

const target = z.strictObject({ kind: z.enum(['vhost-user', 'mount', 'vsock', '9p']), path: words(4096) });

/** One schema per message from a device process. */
const fromDevice = {
  /** Of another version it may say more; whether that one can be talked with, `protocol` says. */
  hello: z.object({
    type: z.literal('hello'),
    protocol: z.int().min(1),
    holder: z.uuid(),
    pid: z.int().min(1),
    build: z
      .string()
      .regex(/^[\w.+-]{1,100}$/)
      .exactOptional(),
    journal: z.int().min(1).exactOptional(),
  }),
  mutation: z.strictObject({
    type: z.literal('mutation'),
    sequence,
    way: z.enum(['virtiofs', 'mount', 'ninep']),
    mutation,
    expiresMs: z.number(),
  }),
  applied: z.strictObject({ type: z.literal('applied'), revision: z.int().min(0) }),
  auditWaiting: z.strictObject({ type: z.literal('auditWaiting') }),
  tokenUsed: z.strictObject({ type: z.literal('tokenUsed'), hash: bytes(32) }),
  ready: z.strictObject({ type: z.literal('ready'), target }),
  failed: z.strictObject({ type: z.literal('failed'), target, reason: words(4096) }),
  event: z.strictObject({
    type: z.literal('event'),
    target,
    event: z.enum(['connected', 'resumed', 'refused', 'disconnected', 'broken', 'kept', 'unkept']),
    detail: words(4096),
  }),
  statistics: z.strictObject({
    type: z.literal('statistics'),
    id: z.int().min(0),
    counters: z.record(words(64), z.number()).refine((counters) => Object.keys(counters).length <= 1024),
  }),
} as const satisfies { readonly [T in ToHost['type']]: z.ZodType<Extract<ToHost, { type: T }>> };

/** The host daemon's reader: everything that a device process says is checked. */
export const readerOnHost = (): MessageReader<ToHost> =>
  new MessageReader('device', (type, payload) => {
    const body = decodeBody(type, payload);
    const schema = fromDevice[type as ToHost['type']];
    const checked = schema.safeParse({ ...body, type });
    if (checked.success) return checked.data;
    const issue = checked.error.issues[0];
    const where = issue === undefined ? '' : ` at ${issue.path.join('.')}: ${issue.message}`;
    throw new LinkError('MALFORMED_MESSAGE', `message "${type}" is not as agreed${where}`);
  });
