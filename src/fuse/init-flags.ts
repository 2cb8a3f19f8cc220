/** The INIT flags: each is taken or left, by transport, with its reason. Negotiation and the table in the docs come from here. */

/** `virtiofs`: a virtqueue, without notifications. `dev-fuse`: the kernel's own device, with notifications and INTERRUPT. */
export type TransportKind = 'virtiofs' | 'dev-fuse';

interface InitFlag {
  /** Name in linux/fuse.h without `FUSE_`. */
  readonly name: string;
  /** 0 to 63; from 32 on it stands in `flags2`. */
  readonly bit: number;
  readonly taken: 'always' | 'never' | TransportKind;
  readonly reason: string;
}

/** All flags that linux/fuse.h defines, by bit. */
export const initFlags: readonly InitFlag[] = [
  { name: 'ASYNC_READ', bit: 0, taken: 'always', reason: 'readahead may have several READs in flight' },
  { name: 'POSIX_LOCKS', bit: 1, taken: 'never', reason: "locks are the guest kernel's own" },
  { name: 'FILE_OPS', bit: 2, taken: 'never', reason: 'the kernel never acted on it' },
  {
    name: 'ATOMIC_O_TRUNC',
    bit: 3,
    taken: 'always',
    reason: 'required: truncation must wait for the first write of the same open',
  },
  { name: 'EXPORT_SUPPORT', bit: 4, taken: 'never', reason: 'nodeids are private and end with their version' },
  { name: 'BIG_WRITES', bit: 5, taken: 'always', reason: 'one write(2) is one commit' },
  {
    name: 'DONT_MASK',
    bit: 6,
    taken: 'always',
    reason: 'the tree applies the umask, unless the parent has a default ACL, which the kernel cannot know',
  },
  { name: 'SPLICE_WRITE', bit: 7, taken: 'never', reason: 'replies are written from our memory' },
  { name: 'SPLICE_MOVE', bit: 8, taken: 'never', reason: 'replies are written from our memory' },
  { name: 'SPLICE_READ', bit: 9, taken: 'never', reason: 'requests are copied before they are parsed' },
  { name: 'FLOCK_LOCKS', bit: 10, taken: 'never', reason: "locks are the guest kernel's own" },
  { name: 'HAS_IOCTL_DIR', bit: 11, taken: 'never', reason: 'no directory has an ioctl' },
  {
    name: 'AUTO_INVAL_DATA',
    bit: 12,
    taken: 'always',
    reason: 'private maps of files that guests write follow a new mtime; versioned nodeids need no help',
  },
  { name: 'DO_READDIRPLUS', bit: 13, taken: 'always', reason: '`ls -l` in one request' },
  {
    name: 'READDIRPLUS_AUTO',
    bit: 14,
    taken: 'always',
    reason: 'the kernel asks for attributes only where they are used',
  },
  { name: 'ASYNC_DIO', bit: 15, taken: 'never', reason: 'writes of one program stay in order' },
  { name: 'WRITEBACK_CACHE', bit: 16, taken: 'never', reason: 'it loses the writer and delays refusals' },
  { name: 'NO_OPEN_SUPPORT', bit: 17, taken: 'never', reason: 'OPEN is where access is decided' },
  {
    name: 'PARALLEL_DIROPS',
    bit: 18,
    taken: 'always',
    reason: 'lookups in one directory need not queue in the kernel',
  },
  { name: 'HANDLE_KILLPRIV', bit: 19, taken: 'never', reason: 'superseded by HANDLE_KILLPRIV_V2' },
  {
    name: 'POSIX_ACL',
    bit: 20,
    taken: 'virtiofs',
    reason:
      'without it the kernel refuses what only an ACL entry grants; on /dev/fuse it would force default_permissions, and every attempt must reach us',
  },
  {
    name: 'ABORT_ERROR',
    bit: 21,
    taken: 'never',
    reason: 'an aborted connection ends the transport whatever the errno',
  },
  { name: 'MAX_PAGES', bit: 22, taken: 'always', reason: 'requests of up to 1 MiB' },
  {
    name: 'CACHE_SYMLINKS',
    bit: 23,
    taken: 'never',
    reason:
      'an open through a symlink that changed outside must see the new target at once: READLINK of an old version is ESTALE',
  },
  { name: 'NO_OPENDIR_SUPPORT', bit: 24, taken: 'never', reason: 'OPENDIR is where listing is decided' },
  { name: 'EXPLICIT_INVAL_DATA', bit: 25, taken: 'never', reason: 'excludes AUTO_INVAL_DATA' },
  { name: 'MAP_ALIGNMENT', bit: 26, taken: 'never', reason: 'no DAX window' },
  { name: 'SUBMOUNTS', bit: 27, taken: 'never', reason: 'one tree, one file system' },
  {
    name: 'HANDLE_KILLPRIV_V2',
    bit: 28,
    taken: 'always',
    reason: 'the tree clears set-id bits on write and truncation; saves a GETXATTR of security.capability per write',
  },
  { name: 'SETXATTR_EXT', bit: 29, taken: 'never', reason: 'the tree itself clears S_ISGID where an ACL change must' },
  { name: 'INIT_EXT', bit: 30, taken: 'always', reason: 'carries flags2' },
  { name: 'INIT_RESERVED', bit: 31, taken: 'never', reason: 'reserved' },
  { name: 'SECURITY_CTX', bit: 32, taken: 'never', reason: 'no labels are stored' },
  { name: 'HAS_INODE_DAX', bit: 33, taken: 'never', reason: 'no DAX window' },
  {
    name: 'CREATE_SUPP_GROUP',
    bit: 34,
    taken: 'never',
    reason: "a new file's group follows from its directory and creator",
  },
  { name: 'HAS_EXPIRE_ONLY', bit: 35, taken: 'never', reason: 'tells what the kernel can; nothing to agree on' },
  {
    name: 'DIRECT_IO_ALLOW_MMAP',
    bit: 36,
    taken: 'never',
    reason: 'shared maps of what changes outside cannot be kept right',
  },
  { name: 'PASSTHROUGH', bit: 37, taken: 'never', reason: 'nothing is stored in files of this machine' },
  { name: 'NO_EXPORT_SUPPORT', bit: 38, taken: 'always', reason: 'file handles would outlive versioned nodeids' },
  { name: 'HAS_RESEND', bit: 39, taken: 'never', reason: 'requests are kept by whoever must survive a restart' },
  { name: 'ALLOW_IDMAP', bit: 40, taken: 'never', reason: "it blanks the caller's uid and gid" },
  { name: 'OVER_IO_URING', bit: 41, taken: 'never', reason: 'one blocking loop reads the device' },
  { name: 'REQUEST_TIMEOUT', bit: 42, taken: 'never', reason: 'readers of /.changes wait on purpose' },
];

export interface FlagMask {
  /** `flags`. */
  readonly lo: number;
  /** `flags2`. */
  readonly hi: number;
}

export const bitOf = (name: string): number => {
  const flag = initFlags.find((row) => row.name === name);
  if (flag === undefined) throw new TypeError(`no INIT flag is named "${name}"`);
  return flag.bit;
};

/** What a session on this transport takes if the kernel offers it. */
export function takenFlags(transport: TransportKind): FlagMask {
  let lo = 0;
  let hi = 0;
  for (const { bit, taken } of initFlags) {
    if (taken !== 'always' && taken !== transport) continue;
    if (bit < 32) lo |= 1 << bit;
    else hi |= 1 << (bit - 32);
  }
  return { lo: lo >>> 0, hi: hi >>> 0 };
}
