/**
 * The FUSE ABI's structs (linux/fuse.h, 7.38, and what later versions added). Fields keep the kernel's names in camelCase;
 * an embedded struct is a `bytesN` whose fields are reached by adding its offset to the base.
 */
import { struct } from '../wire/index.ts';

/** Of `fuse_init_in` and `fuse_init_out`. */
export const FUSE_KERNEL_VERSION = 7;
/** The newest minor version whose layouts these are; a newer kernel is answered with this one. */
export const FUSE_KERNEL_MINOR_VERSION = 38;
export const FUSE_ROOT_ID = 1;

/** Before FUSE_SETXATTR_EXT, `fuse_setxattr_in` ends after `flags`. */
export const FUSE_COMPAT_SETXATTR_IN_SIZE = 8;
/** Before 7.36, `fuse_init_in` ends after `flags`. */
export const FUSE_COMPAT_INIT_IN_SIZE = 16;

/** struct fuse_attr */
export const Attr = struct({
  ino: 'u64',
  size: 'u64',
  blocks: 'u64',
  atime: 'u64',
  mtime: 'u64',
  ctime: 'u64',
  atimensec: 'u32',
  mtimensec: 'u32',
  ctimensec: 'u32',
  mode: 'u32',
  nlink: 'u32',
  uid: 'u32',
  gid: 'u32',
  rdev: 'u32',
  blksize: 'u32',
  flags: 'u32',
});

/** struct fuse_kstatfs */
export const Kstatfs = struct({
  blocks: 'u64',
  bfree: 'u64',
  bavail: 'u64',
  files: 'u64',
  ffree: 'u64',
  bsize: 'u32',
  namelen: 'u32',
  frsize: 'u32',
  padding: 'u32',
  spare: 'bytes24',
});

/** struct fuse_file_lock */
export const FileLock = struct({
  start: 'u64',
  end: 'u64',
  type: 'u32',
  pid: 'u32',
});

/** struct fuse_entry_out */
export const EntryOut = struct({
  nodeid: 'u64',
  generation: 'u64',
  entryValid: 'u64',
  attrValid: 'u64',
  entryValidNsec: 'u32',
  attrValidNsec: 'u32',
  attr: 'bytes88',
});

/** struct fuse_forget_in */
export const ForgetIn = struct({
  nlookup: 'u64',
});

/** struct fuse_forget_one */
export const ForgetOne = struct({
  nodeid: 'u64',
  nlookup: 'u64',
});

/** struct fuse_batch_forget_in */
export const BatchForgetIn = struct({
  count: 'u32',
  dummy: 'u32',
});

/** struct fuse_getattr_in */
export const GetattrIn = struct({
  getattrFlags: 'u32',
  dummy: 'u32',
  fh: 'u64',
});

/** struct fuse_attr_out */
export const AttrOut = struct({
  attrValid: 'u64',
  attrValidNsec: 'u32',
  dummy: 'u32',
  attr: 'bytes88',
});

/** struct fuse_mknod_in */
export const MknodIn = struct({
  mode: 'u32',
  rdev: 'u32',
  umask: 'u32',
  padding: 'u32',
});

/** struct fuse_mkdir_in */
export const MkdirIn = struct({
  mode: 'u32',
  umask: 'u32',
});

/** struct fuse_rename_in */
export const RenameIn = struct({
  newdir: 'u64',
});

/** struct fuse_rename2_in */
export const Rename2In = struct({
  newdir: 'u64',
  flags: 'u32',
  padding: 'u32',
});

/** struct fuse_link_in */
export const LinkIn = struct({
  oldnodeid: 'u64',
});

/** struct fuse_setattr_in */
export const SetattrIn = struct({
  valid: 'u32',
  padding: 'u32',
  fh: 'u64',
  size: 'u64',
  lockOwner: 'u64',
  atime: 'u64',
  mtime: 'u64',
  ctime: 'u64',
  atimensec: 'u32',
  mtimensec: 'u32',
  ctimensec: 'u32',
  mode: 'u32',
  unused4: 'u32',
  uid: 'u32',
  gid: 'u32',
  unused5: 'u32',
});

/** struct fuse_open_in */
export const OpenIn = struct({
  flags: 'u32',
  openFlags: 'u32',
});

/** struct fuse_create_in */
export const CreateIn = struct({
  flags: 'u32',
  mode: 'u32',
  umask: 'u32',
  openFlags: 'u32',
});

/** struct fuse_open_out */
export const OpenOut = struct({
  fh: 'u64',
  openFlags: 'u32',
  padding: 'u32',
});

/** struct fuse_release_in */
export const ReleaseIn = struct({
  fh: 'u64',
  flags: 'u32',
  releaseFlags: 'u32',
  lockOwner: 'u64',
});

/** struct fuse_flush_in */
export const FlushIn = struct({
  fh: 'u64',
  unused: 'u32',
  padding: 'u32',
  lockOwner: 'u64',
});

/** struct fuse_read_in */
export const ReadIn = struct({
  fh: 'u64',
  offset: 'u64',
  size: 'u32',
  readFlags: 'u32',
  lockOwner: 'u64',
  flags: 'u32',
  padding: 'u32',
});

/** struct fuse_write_in */
export const WriteIn = struct({
  fh: 'u64',
  offset: 'u64',
  size: 'u32',
  writeFlags: 'u32',
  lockOwner: 'u64',
  flags: 'u32',
  padding: 'u32',
});

/** struct fuse_write_out */
export const WriteOut = struct({
  size: 'u32',
  padding: 'u32',
});

/** struct fuse_statfs_out */
export const StatfsOut = struct({
  st: 'bytes80',
});

/** struct fuse_fsync_in */
export const FsyncIn = struct({
  fh: 'u64',
  fsyncFlags: 'u32',
  padding: 'u32',
});

/** struct fuse_setxattr_in */
export const SetxattrIn = struct({
  size: 'u32',
  flags: 'u32',
  setxattrFlags: 'u32',
  padding: 'u32',
});

/** struct fuse_getxattr_in */
export const GetxattrIn = struct({
  size: 'u32',
  padding: 'u32',
});

/** struct fuse_getxattr_out */
export const GetxattrOut = struct({
  size: 'u32',
  padding: 'u32',
});

/** struct fuse_lk_in */
export const LkIn = struct({
  fh: 'u64',
  owner: 'u64',
  lk: 'bytes24',
  lkFlags: 'u32',
  padding: 'u32',
});

/** struct fuse_lk_out */
export const LkOut = struct({
  lk: 'bytes24',
});

/** struct fuse_access_in */
export const AccessIn = struct({
  mask: 'u32',
  padding: 'u32',
});

/** struct fuse_init_in */
export const InitIn = struct({
  major: 'u32',
  minor: 'u32',
  maxReadahead: 'u32',
  flags: 'u32',
  flags2: 'u32',
  unused: 'bytes44',
});

/** struct fuse_init_out */
export const InitOut = struct({
  major: 'u32',
  minor: 'u32',
  maxReadahead: 'u32',
  flags: 'u32',
  maxBackground: 'u16',
  congestionThreshold: 'u16',
  maxWrite: 'u32',
  timeGran: 'u32',
  maxPages: 'u16',
  mapAlignment: 'u16',
  flags2: 'u32',
  unused: 'bytes28',
});

/** struct fuse_interrupt_in */
export const InterruptIn = struct({
  unique: 'u64',
});

/** struct fuse_bmap_in */
export const BmapIn = struct({
  block: 'u64',
  blocksize: 'u32',
  padding: 'u32',
});

/** struct fuse_bmap_out */
export const BmapOut = struct({
  block: 'u64',
});

/** struct fuse_ioctl_in */
export const IoctlIn = struct({
  fh: 'u64',
  flags: 'u32',
  cmd: 'u32',
  arg: 'u64',
  inSize: 'u32',
  outSize: 'u32',
});

/** struct fuse_ioctl_out */
export const IoctlOut = struct({
  result: 'i32',
  flags: 'u32',
  inIovs: 'u32',
  outIovs: 'u32',
});

/** struct fuse_poll_in */
export const PollIn = struct({
  fh: 'u64',
  kh: 'u64',
  flags: 'u32',
  events: 'u32',
});

/** struct fuse_poll_out */
export const PollOut = struct({
  revents: 'u32',
  padding: 'u32',
});

/** struct fuse_notify_poll_wakeup_out */
export const NotifyPollWakeupOut = struct({
  kh: 'u64',
});

/** struct fuse_fallocate_in */
export const FallocateIn = struct({
  fh: 'u64',
  offset: 'u64',
  length: 'u64',
  mode: 'u32',
  padding: 'u32',
});

/** struct fuse_in_header */
export const InHeader = struct({
  len: 'u32',
  opcode: 'u32',
  unique: 'u64',
  nodeid: 'u64',
  uid: 'u32',
  gid: 'u32',
  pid: 'u32',
  totalExtlen: 'u16',
  padding: 'u16',
});

/** struct fuse_out_header */
export const OutHeader = struct({
  len: 'u32',
  error: 'i32',
  unique: 'u64',
});

/** struct fuse_dirent */
export const Dirent = struct({
  ino: 'u64',
  off: 'u64',
  namelen: 'u32',
  type: 'u32',
});

/** struct fuse_direntplus */
export const Direntplus = struct({
  entryOut: 'bytes128',
  dirent: 'bytes24',
});

/** struct fuse_notify_inval_inode_out */
export const NotifyInvalInodeOut = struct({
  ino: 'u64',
  off: 'u64',
  len: 'u64',
});

/** struct fuse_notify_inval_entry_out */
export const NotifyInvalEntryOut = struct({
  parent: 'u64',
  namelen: 'u32',
  flags: 'u32',
});

/** struct fuse_notify_delete_out */
export const NotifyDeleteOut = struct({
  parent: 'u64',
  child: 'u64',
  namelen: 'u32',
  padding: 'u32',
});

/** struct fuse_notify_store_out */
export const NotifyStoreOut = struct({
  nodeid: 'u64',
  offset: 'u64',
  size: 'u32',
  padding: 'u32',
});

/** struct fuse_notify_retrieve_out */
export const NotifyRetrieveOut = struct({
  notifyUnique: 'u64',
  nodeid: 'u64',
  offset: 'u64',
  size: 'u32',
  padding: 'u32',
});

/** struct fuse_notify_retrieve_in */
export const NotifyRetrieveIn = struct({
  dummy1: 'u64',
  offset: 'u64',
  size: 'u32',
  dummy2: 'u32',
  dummy3: 'u64',
  dummy4: 'u64',
});

/** struct fuse_lseek_in */
export const LseekIn = struct({
  fh: 'u64',
  offset: 'u64',
  whence: 'u32',
  padding: 'u32',
});

/** struct fuse_lseek_out */
export const LseekOut = struct({
  offset: 'u64',
});

/** struct fuse_copy_file_range_in */
export const CopyFileRangeIn = struct({
  fhIn: 'u64',
  offIn: 'u64',
  nodeidOut: 'u64',
  fhOut: 'u64',
  offOut: 'u64',
  len: 'u64',
  flags: 'u64',
});

/** struct fuse_syncfs_in */
export const SyncfsIn = struct({
  padding: 'u64',
});

/** struct fuse_ext_header */
export const ExtHeader = struct({
  size: 'u32',
  type: 'u32',
});

/** struct fuse_sx_time (7.39) */
export const SxTime = struct({ tvSec: 'u64', tvNsec: 'u32', reserved: 'i32' });

/** struct fuse_statx_in (7.39) */
export const StatxIn = struct({ getattrFlags: 'u32', reserved: 'u32', fh: 'u64', sxFlags: 'u32', sxMask: 'u32' });

/** struct fuse_notify_prune_out (7.45) */
export const NotifyPruneOut = struct({ count: 'u32', padding: 'u32', spare: 'u64' });

/** Every struct by its kernel name, for the test against the C headers. */
export const structs = {
  fuse_attr: Attr,
  fuse_kstatfs: Kstatfs,
  fuse_file_lock: FileLock,
  fuse_entry_out: EntryOut,
  fuse_forget_in: ForgetIn,
  fuse_forget_one: ForgetOne,
  fuse_batch_forget_in: BatchForgetIn,
  fuse_getattr_in: GetattrIn,
  fuse_attr_out: AttrOut,
  fuse_mknod_in: MknodIn,
  fuse_mkdir_in: MkdirIn,
  fuse_rename_in: RenameIn,
  fuse_rename2_in: Rename2In,
  fuse_link_in: LinkIn,
  fuse_setattr_in: SetattrIn,
  fuse_open_in: OpenIn,
  fuse_create_in: CreateIn,
  fuse_open_out: OpenOut,
  fuse_release_in: ReleaseIn,
  fuse_flush_in: FlushIn,
  fuse_read_in: ReadIn,
  fuse_write_in: WriteIn,
  fuse_write_out: WriteOut,
  fuse_statfs_out: StatfsOut,
  fuse_fsync_in: FsyncIn,
  fuse_setxattr_in: SetxattrIn,
  fuse_getxattr_in: GetxattrIn,
  fuse_getxattr_out: GetxattrOut,
  fuse_lk_in: LkIn,
  fuse_lk_out: LkOut,
  fuse_access_in: AccessIn,
  fuse_init_in: InitIn,
  fuse_init_out: InitOut,
  fuse_interrupt_in: InterruptIn,
  fuse_bmap_in: BmapIn,
  fuse_bmap_out: BmapOut,
  fuse_ioctl_in: IoctlIn,
  fuse_ioctl_out: IoctlOut,
  fuse_poll_in: PollIn,
  fuse_poll_out: PollOut,
  fuse_notify_poll_wakeup_out: NotifyPollWakeupOut,
  fuse_fallocate_in: FallocateIn,
  fuse_in_header: InHeader,
  fuse_out_header: OutHeader,
  fuse_dirent: Dirent,
  fuse_direntplus: Direntplus,
  fuse_notify_inval_inode_out: NotifyInvalInodeOut,
  fuse_notify_inval_entry_out: NotifyInvalEntryOut,
  fuse_notify_delete_out: NotifyDeleteOut,
  fuse_notify_store_out: NotifyStoreOut,
  fuse_notify_retrieve_out: NotifyRetrieveOut,
  fuse_notify_retrieve_in: NotifyRetrieveIn,
  fuse_lseek_in: LseekIn,
  fuse_lseek_out: LseekOut,
  fuse_copy_file_range_in: CopyFileRangeIn,
  fuse_syncfs_in: SyncfsIn,
  fuse_ext_header: ExtHeader,
  fuse_sx_time: SxTime,
  fuse_statx_in: StatxIn,
  fuse_notify_prune_out: NotifyPruneOut,
};
