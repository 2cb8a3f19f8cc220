/**
 * The fixed parts of 9P2000.L messages (diod's protocol.md, linux/include/net/9p/9p.h). Strings stand between them: what is
 * before the first is the head, what is after is the tail (`Shape`). Fields keep the protocol's names in camelCase.
 */
import { struct } from '../wire/index.ts';

export const VERSION = '9P2000.L';
/** What Linux asks for at least. */
export const MIN_MSIZE = 4096;
/** No fid: of `afid` where no authentication is asked for. */
export const NOFID = 0xffff_ffff;
/** No uid: the attach that mount(8) makes. */
export const NONUNAME = 0xffff_ffff;
/** The tag of Tversion. */
export const NOTAG = 0xffff;
/** Names in one Twalk. */
export const MAXWELEM = 16;
/** Magic number of 9P in statfs(2) (V9FS_MAGIC). */
export const V9FS_MAGIC = 0x0102_1997;

/** A reply's type is its request's and one more. */
export const RLERROR = 7;

export const QTDIR = 0x80;
export const QTSYMLINK = 0x02;
export const QTFILE = 0x00;

/** `Tgetattr.request_mask` and `Rgetattr.valid`. */
export const GETATTR_BASIC = 0x7ff;
export const GETATTR_DATA_VERSION = 0x2000;

/** `Tsetattr.valid`. */
export const SETATTR_MODE = 0x001;
export const SETATTR_UID = 0x002;
export const SETATTR_GID = 0x004;
export const SETATTR_SIZE = 0x008;
export const SETATTR_ATIME = 0x010;
export const SETATTR_MTIME = 0x020;
export const SETATTR_CTIME = 0x040;
export const SETATTR_ATIME_SET = 0x080;
export const SETATTR_MTIME_SET = 0x100;

/** `Tunlinkat.flags`. */
export const AT_REMOVEDIR = 0x200;

/** `Rlock.status`, `Tlock.type`. */
export const LOCK_SUCCESS = 0;
export const LOCK_TYPE_UNLCK = 2;
export const LOCK_TYPES = 3;

/** size[4] type[1] tag[2] */
export const Header = struct({ size: 'u32', type: 'u8', tag: 'u16' });

/** qid[13] */
export const Qid = struct({ type: 'u8', version: 'u32', path: 'u64' });

export const Tversion = struct({ msize: 'u32' });
export const Rversion = struct({ msize: 'u32' });
export const Tauth = struct({ afid: 'u32' });
export const NUname = struct({ nUname: 'u32' });
export const Tattach = struct({ fid: 'u32', afid: 'u32' });
export const Rlerror = struct({ ecode: 'u32' });
export const Tflush = struct({ oldtag: 'u16' });
export const Twalk = struct({ fid: 'u32', newfid: 'u32', nwname: 'u16' });
export const Rwalk = struct({ nwqid: 'u16' });
export const Fid = struct({ fid: 'u32' });
export const Tlopen = struct({ fid: 'u32', flags: 'u32' });
/** Rlopen and Rlcreate. */
export const Opened = struct({ qid: 'bytes13', iounit: 'u32' });
export const LcreateTail = struct({ flags: 'u32', mode: 'u32', gid: 'u32' });
export const SymlinkTail = struct({ gid: 'u32' });
export const MknodTail = struct({ mode: 'u32', major: 'u32', minor: 'u32', gid: 'u32' });
export const MkdirTail = struct({ mode: 'u32', gid: 'u32' });
export const Trename = struct({ fid: 'u32', dfid: 'u32' });
export const Tlink = struct({ dfid: 'u32', fid: 'u32' });
export const RenameatTail = struct({ newdirfid: 'u32' });
export const UnlinkatTail = struct({ flags: 'u32' });
export const Tgetattr = struct({ fid: 'u32', requestMask: 'u64' });
export const Rgetattr = struct({
  valid: 'u64',
  qid: 'bytes13',
  mode: 'u32',
  uid: 'u32',
  gid: 'u32',
  nlink: 'u64',
  rdev: 'u64',
  size: 'u64',
  blksize: 'u64',
  blocks: 'u64',
  atimeSec: 'u64',
  atimeNsec: 'u64',
  mtimeSec: 'u64',
  mtimeNsec: 'u64',
  ctimeSec: 'u64',
  ctimeNsec: 'u64',
  btimeSec: 'u64',
  btimeNsec: 'u64',
  gen: 'u64',
  dataVersion: 'u64',
});
export const Tsetattr = struct({
  fid: 'u32',
  valid: 'u32',
  mode: 'u32',
  uid: 'u32',
  gid: 'u32',
  size: 'u64',
  atimeSec: 'u64',
  atimeNsec: 'u64',
  mtimeSec: 'u64',
  mtimeNsec: 'u64',
});
export const Txattrwalk = struct({ fid: 'u32', newfid: 'u32' });
export const Rxattrwalk = struct({ size: 'u64' });
export const XattrcreateTail = struct({ attrSize: 'u64', flags: 'u32' });
/** Tread and Treaddir. */
export const Tread = struct({ fid: 'u32', offset: 'u64', count: 'u32' });
/** Rread, Rwrite, Rreaddir. */
export const Count = struct({ count: 'u32' });
export const Twrite = struct({ fid: 'u32', offset: 'u64', count: 'u32' });
/** An entry of Rreaddir; its name follows. */
export const Dirent = struct({ qid: 'bytes13', offset: 'u64', type: 'u8', nameBytes: 'u16' });
export const FsyncTail = struct({ datasync: 'u32' });
export const Tlock = struct({ fid: 'u32', type: 'u8', flags: 'u32', start: 'u64', length: 'u64', procId: 'u32' });
export const Rlock = struct({ status: 'u8' });
/** Tgetlock, and Rgetlock after its fid. */
export const Tgetlock = struct({ fid: 'u32', type: 'u8', start: 'u64', length: 'u64', procId: 'u32' });
export const Rgetlock = struct({ type: 'u8', start: 'u64', length: 'u64', procId: 'u32' });
export const Rstatfs = struct({
  type: 'u32',
  bsize: 'u32',
  blocks: 'u64',
  bfree: 'u64',
  bavail: 'u64',
  files: 'u64',
  ffree: 'u64',
  fsid: 'u64',
  namelen: 'u32',
});
