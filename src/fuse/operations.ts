/** The operation table: dispatch, counters, fuzz generators and the table in docs/fuse.md come from its rows. */
import { EIO, ENOSYS, ENOTTY, EPERM } from '../wire/index.ts';
import * as abi from './abi.ts';
import * as attributes from './handlers/attributes.ts';
import * as directories from './handlers/directories.ts';
import * as entries from './handlers/entries.ts';
import * as files from './handlers/files.ts';
import * as lifecycle from './handlers/lifecycle.ts';
import * as xattrs from './handlers/xattrs.ts';
import type { TransportKind } from './init-flags.ts';
import type { SessionState } from './state.ts';

/** Answers the request that stands in `state` and returns 0 (the answer may come later), or returns the errno to answer. */
export type Handler = (state: SessionState) => number;

/** Any struct table: its size and the names of its fields. */
interface AnyStruct {
  readonly sizeBytes: number;
  readonly fields: readonly string[];
}

/** A row: what a request looks like, and who answers it. */
export interface Operation {
  readonly opcode: number;
  /** Name in linux/fuse.h without `FUSE_`. */
  readonly name: string;
  /** Fixed part of the body. */
  readonly in?: AnyStruct;
  /** Least bytes of the body, where an older layout is shorter than `in` or something must follow it. */
  readonly bodyBytes: number;
  /** What follows the fixed part. */
  readonly rest: 'nothing' | 'name' | 'two names' | 'name and data' | 'data' | 'array';
  /** `none`: the kernel expects no answer. */
  readonly reply: 'none' | 'empty' | 'entry' | 'attr' | 'open' | 'entry, open' | 'data' | 'struct';
  /** Bytes that a reply needs; with less room the request is answered EIO before anything is done. */
  readonly replyBytes: number;
  /** The header's nodeid must be known; else ESTALE. */
  readonly needsNode: boolean;
  readonly handler?: Handler;
  /** Where the transport has no way to do it: this errno instead. */
  readonly refusedOn?: TransportKind;
  readonly errno?: number;
  /** Why it is refused, or what is special about the answer. */
  readonly reason?: string;
}

type Shape = Pick<Operation, 'rest' | 'reply'> & { readonly in?: AnyStruct; readonly bodyBytes?: number };

const replyBytesOf: Record<Operation['reply'], number> = {
  none: 0,
  empty: 0,
  entry: abi.EntryOut.sizeBytes,
  attr: abi.AttrOut.sizeBytes,
  open: abi.OpenOut.sizeBytes,
  'entry, open': abi.EntryOut.sizeBytes + abi.OpenOut.sizeBytes,
  data: 0,
  struct: 0,
};

const restBytesOf: Record<Operation['rest'], number> = {
  nothing: 0,
  name: 1,
  'two names': 2,
  'name and data': 1,
  data: 0,
  array: 0,
};

type Special = Pick<Operation, 'reason' | 'refusedOn' | 'errno'> & { out?: AnyStruct };

const row = (
  opcode: number,
  name: string,
  shape: Shape,
  handler: Handler | undefined,
  special: Special = {},
): Operation => {
  const { out, ...rest } = special;
  return Object.freeze({
    opcode,
    name,
    ...shape,
    bodyBytes: shape.bodyBytes ?? (shape.in?.sizeBytes ?? 0) + restBytesOf[shape.rest],
    replyBytes: out?.sizeBytes ?? replyBytesOf[shape.reply],
    needsNode: true,
    ...(handler === undefined ? {} : { handler }),
    ...rest,
  });
};

const withoutNode = (operation: Operation): Operation => Object.freeze({ ...operation, needsNode: false });

const refused = (opcode: number, name: string, errno: number, reason: string): Operation =>
  withoutNode(row(opcode, name, { rest: 'data', reply: 'empty' }, undefined, { errno, reason }));

/** Every opcode that is known; any other is answered ENOSYS. */
export const operations: readonly Operation[] = [
  row(1, 'LOOKUP', { rest: 'name', reply: 'entry' }, attributes.lookup, { reason: 'ENOENT is never cached' }),
  withoutNode(row(2, 'FORGET', { in: abi.ForgetIn, rest: 'nothing', reply: 'none' }, lifecycle.forget)),
  row(3, 'GETATTR', { in: abi.GetattrIn, rest: 'nothing', reply: 'attr' }, attributes.getattr, {
    reason: 'an old version keeps its size',
  }),
  row(4, 'SETATTR', { in: abi.SetattrIn, rest: 'nothing', reply: 'attr' }, attributes.setattr),
  row(5, 'READLINK', { rest: 'nothing', reply: 'data' }, attributes.readlink, {
    reason: 'ESTALE for a target that changed since LOOKUP',
  }),
  row(6, 'SYMLINK', { rest: 'two names', reply: 'entry' }, entries.symlink),
  row(8, 'MKNOD', { in: abi.MknodIn, rest: 'name', reply: 'entry' }, entries.mknod, {
    reason: 'regular files; EPERM for devices, pipes and sockets, which have no place here',
  }),
  row(9, 'MKDIR', { in: abi.MkdirIn, rest: 'name', reply: 'entry' }, entries.mkdir),
  row(10, 'UNLINK', { rest: 'name', reply: 'empty' }, entries.unlink),
  row(11, 'RMDIR', { rest: 'name', reply: 'empty' }, entries.rmdir),
  row(12, 'RENAME', { in: abi.RenameIn, rest: 'two names', reply: 'empty' }, entries.rename),
  refused(13, 'LINK', EPERM, 'one node has one name, so that its policy is one'),
  row(14, 'OPEN', { in: abi.OpenIn, rest: 'nothing', reply: 'open' }, files.open, {
    reason: 'ESTALE unless the nodeid is the version of now',
  }),
  withoutNode(
    row(15, 'READ', { in: abi.ReadIn, rest: 'nothing', reply: 'data' }, files.read, {
      reason: "decided with the opener's caller",
    }),
  ),
  withoutNode(
    row(16, 'WRITE', { in: abi.WriteIn, rest: 'data', reply: 'struct' }, files.write, {
      out: abi.WriteOut,
      reason: "decided with the opener's caller",
    }),
  ),
  withoutNode(
    row(17, 'STATFS', { rest: 'nothing', reply: 'struct' }, attributes.statfs, {
      out: abi.StatfsOut,
      reason: 'shows the quota',
    }),
  ),
  withoutNode(
    row(18, 'RELEASE', { in: abi.ReleaseIn, rest: 'nothing', reply: 'empty' }, files.release, {
      reason: 'answered when a pending truncation is committed; later reads of the file wait for that',
    }),
  ),
  withoutNode(row(20, 'FSYNC', { in: abi.FsyncIn, rest: 'nothing', reply: 'empty' }, files.fsync)),
  row(
    21,
    'SETXATTR',
    { in: abi.SetxattrIn, bodyBytes: abi.FUSE_COMPAT_SETXATTR_IN_SIZE + 1, rest: 'name and data', reply: 'empty' },
    xattrs.setxattr,
    { reason: 'the short layout: SETXATTR_EXT is left' },
  ),
  row(22, 'GETXATTR', { in: abi.GetxattrIn, rest: 'name', reply: 'data' }, xattrs.getxattr, {
    reason: 'ENODATA, never ENOSYS',
  }),
  row(23, 'LISTXATTR', { in: abi.GetxattrIn, rest: 'nothing', reply: 'data' }, xattrs.listxattr),
  row(24, 'REMOVEXATTR', { rest: 'name', reply: 'empty' }, xattrs.removexattr),
  withoutNode(
    row(25, 'FLUSH', { in: abi.FlushIn, rest: 'nothing', reply: 'empty' }, files.flush, {
      reason: '0 where it comes; FOPEN_NOFLUSH spares it per file, where ENOSYS would end it for the whole mount',
    }),
  ),
  withoutNode(
    row(
      26,
      'INIT',
      { in: abi.InitIn, bodyBytes: abi.FUSE_COMPAT_INIT_IN_SIZE, rest: 'nothing', reply: 'struct' },
      lifecycle.init,
      { out: abi.InitOut, reason: 'starts the session anew' },
    ),
  ),
  row(27, 'OPENDIR', { in: abi.OpenIn, rest: 'nothing', reply: 'open' }, directories.opendir, {
    reason: 'never FOPEN_CACHE_DIR: all users share the cache',
  }),
  withoutNode(row(28, 'READDIR', { in: abi.ReadIn, rest: 'nothing', reply: 'data' }, directories.readdir)),
  withoutNode(row(29, 'RELEASEDIR', { in: abi.ReleaseIn, rest: 'nothing', reply: 'empty' }, directories.releasedir)),
  withoutNode(
    row(30, 'FSYNCDIR', { in: abi.FsyncIn, rest: 'nothing', reply: 'empty' }, directories.fsyncdir, {
      reason: '0: changes are committed before they are answered',
    }),
  ),
  refused(31, 'GETLK', ENOSYS, "never negotiated: locks are the guest kernel's own"),
  refused(32, 'SETLK', ENOSYS, "never negotiated: locks are the guest kernel's own"),
  refused(33, 'SETLKW', ENOSYS, "never negotiated: locks are the guest kernel's own"),
  row(34, 'ACCESS', { in: abi.AccessIn, rest: 'nothing', reply: 'empty' }, attributes.access),
  row(35, 'CREATE', { in: abi.CreateIn, rest: 'name', reply: 'entry, open' }, entries.create),
  withoutNode(
    row(36, 'INTERRUPT', { in: abi.InterruptIn, rest: 'nothing', reply: 'none' }, lifecycle.interrupt, {
      reason: 'ends a read that waits with EINTR',
    }),
  ),
  refused(37, 'BMAP', ENOSYS, 'no block device below'),
  withoutNode(
    row(38, 'DESTROY', { rest: 'nothing', reply: 'empty' }, lifecycle.destroy, { reason: 'ends the session' }),
  ),
  refused(39, 'IOCTL', ENOTTY, 'no file has an ioctl'),
  withoutNode(
    row(40, 'POLL', { in: abi.PollIn, rest: 'nothing', reply: 'struct' }, files.poll, {
      out: abi.PollOut,
      refusedOn: 'virtiofs',
      errno: ENOSYS,
      reason: 'on virtiofs no wake-up could ever come, so the kernel is told to call everything ready',
    }),
  ),
  withoutNode(
    row(41, 'NOTIFY_REPLY', { rest: 'data', reply: 'none' }, (state) => state.noReply(), {
      reason: 'ignored: NOTIFY_RETRIEVE is never sent',
    }),
  ),
  withoutNode(row(42, 'BATCH_FORGET', { in: abi.BatchForgetIn, rest: 'array', reply: 'none' }, lifecycle.batchForget)),
  refused(43, 'FALLOCATE', ENOSYS, 'no space to reserve; the kernel answers EOPNOTSUPP and the C library writes zeros'),
  withoutNode(
    row(44, 'READDIRPLUS', { in: abi.ReadIn, rest: 'nothing', reply: 'data' }, directories.readdirplus, {
      reason: 'never shows what is hidden',
    }),
  ),
  row(45, 'RENAME2', { in: abi.Rename2In, rest: 'two names', reply: 'empty' }, entries.rename2, {
    reason: 'RENAME_NOREPLACE and RENAME_EXCHANGE; else EINVAL',
  }),
  refused(46, 'LSEEK', ENOSYS, 'no file has holes; the kernel does it alone'),
  refused(47, 'COPY_FILE_RANGE', ENOSYS, 'the kernel copies by READ and WRITE, each decided with its opener'),
  refused(48, 'SETUPMAPPING', ENOSYS, 'no DAX window'),
  refused(49, 'REMOVEMAPPING', ENOSYS, 'no DAX window'),
  withoutNode(
    row(50, 'SYNCFS', { in: abi.SyncfsIn, rest: 'nothing', reply: 'empty' }, (state) => state.reply(0), {
      reason: '0: every write is committed before it is answered',
    }),
  ),
  refused(51, 'TMPFILE', ENOSYS, 'a file without a name has no policy; the kernel answers EOPNOTSUPP'),
  refused(52, 'STATX', ENOSYS, 'no birth time to tell beyond GETATTR'),
  refused(53, 'COPY_FILE_RANGE_64', ENOSYS, 'as COPY_FILE_RANGE'),
];

/** Row index by opcode, for dispatch and counters; undefined for what no kernel sends. */
export const rowOf: readonly (number | undefined)[] = operations.reduce<(number | undefined)[]>(
  (table, { opcode }, index) => {
    table[opcode] = index;
    return table;
  },
  Array.from<number | undefined>({ length: Math.max(...operations.map(({ opcode }) => opcode)) + 1 }),
);

/** The errno of a row that this transport does not handle; 0 when it has a handler. */
export const refusalOf = ({ handler, errno, refusedOn }: Operation, transport: TransportKind): number =>
  handler !== undefined && refusedOn !== transport ? 0 : (errno ?? EIO);
