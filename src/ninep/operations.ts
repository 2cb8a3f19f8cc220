/** The operation table: dispatch, counters, fuzz generators and the table in docs/9p.md come from its rows. */
import { EIO, ENOENT, EOPNOTSUPP, EPERM } from '../wire/index.ts';
import * as abi from './abi.ts';
import * as attributes from './handlers/attributes.ts';
import * as directories from './handlers/directories.ts';
import * as entries from './handlers/entries.ts';
import * as files from './handlers/files.ts';
import * as lifecycle from './handlers/lifecycle.ts';
import * as locks from './handlers/locks.ts';
import { walk } from './handlers/walk.ts';
import * as xattrs from './handlers/xattrs.ts';
import type { Shape } from './shape.ts';
import type { SessionState } from './state.ts';

/** Answers the request that stands in `state` and returns 0 (the answer may come later), or returns the errno to answer. */
export type Handler = (state: SessionState) => number;

/** A row: what a request looks like, and who answers it. */
export interface Operation {
  readonly type: number;
  /** The protocol's name of the request. */
  readonly name: string;
  /** Undefined: the row is refused whatever the message says. */
  readonly shape?: Shape;
  /** The reply's body, in the protocol's notation. */
  readonly reply: string;
  readonly handler?: Handler;
  readonly errno?: number;
  /** Why it is refused, or what is special about the answer. */
  readonly reason?: string;
}

const shape = (head: Shape['head'], strings: readonly string[] = [], more: Partial<Shape> = {}): Shape =>
  Object.freeze({ head, strings, after: [], ...more });

const row = (type: number, name: string, of: Shape, reply: string, handler: Handler, reason?: string): Operation =>
  Object.freeze({ type, name, shape: of, reply, handler, ...(reason === undefined ? {} : { reason }) });

const refused = (type: number, name: string, errno: number, reason: string, of?: Shape): Operation =>
  Object.freeze({ type, name, reply: '', errno, reason, ...(of === undefined ? {} : { shape: of }) });

const OPENED = 'qid[13] iounit[4]';
const ofNinep2000 = 'a message of 9P2000 and .u, which Tversion refuses';

/** Every message that is known; any other is answered EOPNOTSUPP. */
export const operations: readonly Operation[] = [
  row(
    8,
    'Tstatfs',
    shape(abi.Fid),
    'type[4] bsize[4] blocks[8] bfree[8] bavail[8] files[8] ffree[8] fsid[8] namelen[4]',
    attributes.statfs,
    'shows the quota',
  ),
  row(
    12,
    'Tlopen',
    shape(abi.Tlopen),
    OPENED,
    files.lopen,
    'pins the version of now for what guests can’t write, and says the length of one Tread for all of it',
  ),
  row(
    14,
    'Tlcreate',
    shape(abi.Fid, ['name'], { tail: abi.LcreateTail }),
    OPENED,
    files.lcreate,
    'the client has applied the umask',
  ),
  row(16, 'Tsymlink', shape(abi.Fid, ['name', 'symtgt'], { tail: abi.SymlinkTail }), 'qid[13]', entries.symlink),
  row(
    18,
    'Tmknod',
    shape(abi.Fid, ['name'], { tail: abi.MknodTail }),
    'qid[13]',
    entries.mknod,
    'regular files; EPERM for devices, pipes and sockets, which have no place here',
  ),
  row(
    20,
    'Trename',
    shape(abi.Trename, ['name']),
    '',
    entries.rename,
    'by the name that the file has now; Linux sends Trenameat',
  ),
  row(22, 'Treadlink', shape(abi.Fid), 'target[s]', attributes.readlink),
  row(
    24,
    'Tgetattr',
    shape(abi.Tgetattr),
    'valid[8] qid[13] mode[4] uid[4] gid[4] nlink[8] rdev[8] size[8] blksize[8] blocks[8] and four times',
    attributes.getattr,
    'an open file that pins its version shows that; what is gone is shown as it was, with nlink 0',
  ),
  row(
    26,
    'Tsetattr',
    shape(abi.Tsetattr),
    '',
    attributes.setattr,
    'size 0 of a file that was opened with O_TRUNC is that truncation, which waits for the first write',
  ),
  row(
    30,
    'Txattrwalk',
    shape(abi.Txattrwalk, ['name']),
    'size[8]',
    xattrs.xattrwalk,
    'the value as it is now, whatever comes while it is read; no name: the list of names',
  ),
  row(
    32,
    'Txattrcreate',
    shape(abi.Fid, ['name'], { tail: abi.XattrcreateTail }),
    '',
    xattrs.xattrcreate,
    'set by Tclunk, which answers its errno; size 0 removes it',
  ),
  row(
    40,
    'Treaddir',
    shape(abi.Tread),
    'count[4] and entries: qid[13] offset[8] type[1] name[s]',
    directories.readdir,
    'offsets are places in the listing of when it was opened or rewound: changes skip and repeat nothing',
  ),
  row(
    50,
    'Tfsync',
    shape(abi.Fid, [], { tail: abi.FsyncTail, tailMayMiss: true }),
    '',
    files.fsync,
    'of a directory 0: changes are committed before they are answered',
  ),
  row(
    52,
    'Tlock',
    shape(abi.Tlock, ['client_id']),
    'status[1]',
    locks.lock,
    'always granted: the client’s kernel has taken it among its own processes, and nobody else shares the tree',
  ),
  row(
    54,
    'Tgetlock',
    shape(abi.Tgetlock, ['client_id']),
    'type[1] start[8] length[8] proc_id[4] client_id[s]',
    locks.getlock,
    'always F_UNLCK, as with Tlock',
  ),
  refused(70, 'Tlink', EPERM, 'one node has one name, so that its policy is one', shape(abi.Tlink, ['name'])),
  row(72, 'Tmkdir', shape(abi.Fid, ['name'], { tail: abi.MkdirTail }), 'qid[13]', entries.mkdir),
  row(
    74,
    'Trenameat',
    shape(abi.Fid, ['oldname'], { tail: abi.RenameatTail, after: ['newname'] }),
    '',
    entries.renameat,
    'no flags: the client refuses RENAME_NOREPLACE and RENAME_EXCHANGE itself',
  ),
  row(76, 'Tunlinkat', shape(abi.Fid, ['name'], { tail: abi.UnlinkatTail }), '', entries.unlinkat),
  row(
    100,
    'Tversion',
    shape(abi.Tversion, ['version']),
    'msize[4] version[s]',
    lifecycle.version,
    '9P2000.L, or `unknown`; EMSGSIZE below 4096; begins anew whenever it comes',
  ),
  refused(
    102,
    'Tauth',
    ENOENT,
    'which says that none is needed: the transport decides who may attach',
    shape(abi.Tauth, ['uname', 'aname'], { tail: abi.NUname }),
  ),
  row(
    104,
    'Tattach',
    shape(abi.Tattach, ['uname', 'aname'], { tail: abi.NUname }),
    'qid[13]',
    lifecycle.attach,
    'users of the policy as n_uname says, all others as nobody; the transport decides who may at all',
  ),
  row(
    108,
    'Tflush',
    shape(abi.Tflush),
    '',
    lifecycle.flush,
    'ends a read that waits without an answer; else answered after the request that it names',
  ),
  row(
    110,
    'Twalk',
    shape(abi.Twalk, [], { counted: 'names' }),
    'nwqid[2] nwqid*(qid[13])',
    walk,
    'a walk that ends early makes no fid; EINVAL for more than 16 names',
  ),
  refused(112, 'Topen', EOPNOTSUPP, ofNinep2000),
  refused(114, 'Tcreate', EOPNOTSUPP, ofNinep2000),
  row(
    116,
    'Tread',
    shape(abi.Tread),
    'count[4] data[count]',
    files.read,
    'never fills a frame of msize bytes, at which Linux closes the connection',
  ),
  row(
    118,
    'Twrite',
    shape(abi.Twrite, [], { counted: 'data' }),
    'count[4]',
    files.write,
    'one write is one commit; at the end when opened with O_APPEND, whatever the offset',
  ),
  row(
    120,
    'Tclunk',
    shape(abi.Fid),
    '',
    lifecycle.clunk,
    'answered when a pending truncation is committed; ends reads that wait with EINTR',
  ),
  row(
    122,
    'Tremove',
    shape(abi.Fid),
    '',
    lifecycle.remove,
    'by the name that the file has now; ends the fid in any case; Linux sends Tunlinkat',
  ),
  refused(124, 'Tstat', EOPNOTSUPP, ofNinep2000),
  refused(126, 'Twstat', EOPNOTSUPP, ofNinep2000),
];

/** Row index by type, for dispatch and counters; undefined for what nobody sends. */
export const rowOf: readonly (number | undefined)[] = operations.reduce<(number | undefined)[]>(
  (table, { type }, index) => {
    table[type] = index;
    return table;
  },
  Array.from<number | undefined>({ length: 256 }),
);

/** The errno of a row that nobody handles; 0 when it has a handler. */
export const refusalOf = ({ handler, errno }: Operation): number => (handler === undefined ? (errno ?? EIO) : 0);
