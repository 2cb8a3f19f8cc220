import assert from 'node:assert/strict';
import { test } from 'node:test';
import { attrIn, begin, spec } from '../../test/fuse/begun.ts';
import { Client } from '../../test/fuse/client.ts';
import { World } from '../../test/tree/world.ts';
import { type FileSystem, limits, ways } from '../tree/index.ts';
import {
  EACCES,
  EAGAIN,
  EBADF,
  EEXIST,
  EINTR,
  EINVAL,
  EIO,
  ENAMETOOLONG,
  ENODATA,
  ENOENT,
  ENOSYS,
  ENOTTY,
  EPERM,
  EPROTO,
  ERANGE,
  ESTALE,
  O_APPEND,
  O_CREAT,
  O_NONBLOCK,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  S_IFDIR,
  S_IFREG,
} from '../wire/index.ts';
import * as abi from './abi.ts';
import * as c from './constants.ts';
import { bitOf, takenFlags } from './init-flags.ts';
import { operations } from './operations.ts';
import { FuseSession } from './session.ts';

const codes = (notes: readonly Uint8Array[]) =>
  notes.map((bytes) => abi.OutHeader.error.get(new DataView(bytes.buffer), 0));

test('INIT takes what the table takes, clamps the minor, and never what would lose the caller', () => {
  const { client } = begin();
  const answer = client.init(0xffff_ffff, 45);
  const taken = takenFlags('virtiofs');
  assert.equal(answer.get(abi.InitOut.minor), 38);
  assert.equal(answer.get(abi.InitOut.flags), taken.lo);
  assert.equal(answer.get(abi.InitOut.flags2), taken.hi);
  assert.equal(answer.get(abi.InitOut.maxWrite), 1024 * 1024);
  for (const name of ['POSIX_LOCKS', 'FLOCK_LOCKS', 'WRITEBACK_CACHE'])
    assert.equal(answer.get(abi.InitOut.flags) & (1 << bitOf(name)), 0, name);
  assert.equal(answer.get(abi.InitOut.flags2) & (1 << (bitOf('ALLOW_IDMAP') - 32)), 0);
  assert.equal(client.init(0xffff_ffff, 36).get(abi.InitOut.minor), 36);
  assert.equal(takenFlags('dev-fuse').lo & (1 << bitOf('POSIX_ACL')), 0);
});

test('INIT fails and says why when the kernel has no ATOMIC_O_TRUNC or is too old', () => {
  const said: string[] = [];
  const { client } = begin('virtiofs', { log: (message) => said.push(message) });
  assert.equal(client.init(0x7fffffff & ~(1 << bitOf('ATOMIC_O_TRUNC'))).errno, EPROTO);
  assert.equal(client.init(0x7fffffff, 30).errno, EPROTO);
  assert.match(said.join('\n'), /ATOMIC_O_TRUNC[^]*7\.30/);
});

test('INIT of a later major is answered with ours, and nothing else is', () => {
  const { client } = begin();
  const answer = client.send('INIT', { in: { major: 8, minor: 0, flags: 0xffff_ffff } });
  assert.equal(answer.get(abi.InitOut.major), 7);
  assert.equal(answer.get(abi.InitOut.flags), 0);
});

test('requests before INIT and after DESTROY are answered EIO', () => {
  const { client, session } = begin();
  assert.equal(client.send('DESTROY').errno, 0);
  assert.equal(client.lookup(1, 'instance').errno, EIO);
  session.reset();
  assert.equal(client.send('GETATTR').errno, EIO);
});

test('GETATTR of a directory that was removed answers with nlink 0, as fstat(2) on a disk', () => {
  const { client } = begin();
  const guest = client.walk('guest');
  assert.equal(client.send('MKDIR', { nodeid: guest, in: { mode: 0o750 }, rest: ['d'] }).errno, 0);
  const nodeid = client.walk('guest/d');
  assert.equal(client.send('RMDIR', { nodeid: guest, rest: ['d'] }).errno, 0);
  const answer = client.send('GETATTR', { nodeid });
  assert.equal(answer.errno, 0);
  assert.equal(attrIn(answer, 'nlink'), 0);
  assert.equal(attrIn(answer, 'mode'), S_IFDIR | 0o750);
});

test('OPEN lets the kernel keep the bytes of shared files only', () => {
  const { client, session } = begin();
  const flags = (path: string) => client.open(client.walk(path)).get(abi.OpenOut.openFlags);
  assert.equal(flags('instance/id'), c.FOPEN_KEEP_CACHE | c.FOPEN_NOFLUSH);
  assert.equal(flags('secrets/db'), c.FOPEN_DIRECT_IO | c.FOPEN_NOFLUSH);
  assert.equal(flags('.changes'), c.FOPEN_DIRECT_IO | c.FOPEN_STREAM | c.FOPEN_NONSEEKABLE | c.FOPEN_NOFLUSH);
  assert.equal(session.opensCached, 1);
  assert.equal(session.opensDirect, 2);
  assert.equal(session.requests('OPEN'), 3);
  assert.equal(client.send('OPENDIR').get(abi.OpenOut.openFlags), 0);
});

test('WRITE appends where the handle has O_APPEND now, whatever it was opened with', () => {
  const { client } = begin();
  const guest = client.walk('/guest');
  const made = client.send('CREATE', { nodeid: guest, in: { flags: O_RDWR, mode: 0o644 }, rest: ['log'] });
  const nodeid = made.get(abi.EntryOut.nodeid);
  const write = (fh: number, flags: number, letter: string) =>
    client.send('WRITE', { nodeid, in: { fh, flags, size: 1 }, rest: [new TextEncoder().encode(letter)] }).errno;
  const first = made.get(abi.OpenOut.fh, abi.EntryOut.sizeBytes);
  const second = client.send('OPEN', { nodeid, in: { flags: O_RDWR | O_APPEND } }).get(abi.OpenOut.fh);
  assert.deepEqual(
    [
      write(first, O_RDWR | O_APPEND, 'a'),
      write(first, O_RDWR | O_APPEND, 'b'),
      write(second, O_RDWR, 'c'),
      write(second, O_RDWR | O_APPEND, 'd'),
    ],
    [0, 0, 0, 0],
  );
  const read = client.send('READ', { nodeid, in: { fh: first, size: 10 } });
  assert.equal(new TextDecoder().decode(read.body), 'cbd');
});

test('what is longer or later than the tree keeps is refused or clamped before it is sent upstream', () => {
  const { client } = begin();
  const guest = client.walk('/guest');
  const long = client.send('SYMLINK', { nodeid: guest, rest: ['long', 'x'.repeat(limits.symlinkBytes + 1)] });
  assert.equal(long.errno, ENAMETOOLONG);
  assert.equal(client.send('SYMLINK', { nodeid: guest, rest: ['fits', 'x'.repeat(limits.symlinkBytes)] }).errno, 0);
  const made = client.send('CREATE', { nodeid: guest, in: { flags: O_RDWR, mode: 0o644 }, rest: ['file'] });
  const fh = made.get(abi.OpenOut.fh, abi.EntryOut.sizeBytes);
  const write = (bytes: number) =>
    client.send('WRITE', { in: { fh, size: bytes }, rest: [new Uint8Array(bytes)] }).errno;
  assert.equal(write(limits.valueBytes + 1), EINVAL);
  assert.equal(write(limits.valueBytes), 0);
  const nodeid = made.get(abi.EntryOut.nodeid);
  const timed = client.send('SETATTR', { nodeid, in: { valid: c.FATTR_MTIME, mtime: 2 ** 62 } });
  assert.equal(timed.get(abi.Attr.mtime, abi.AttrOut.attr.offset), limits.timeSeconds);
});

test('frames that lie about themselves are answered EIO', () => {
  const { client } = begin();
  const frame = client.frame('GETATTR');
  new DataView(frame.buffer).setUint32(0, frame.length + 1, true);
  assert.equal(client.raw(frame).errno, EIO);
  assert.equal(client.raw(client.frame('GETATTR').subarray(0, 50)).errno, EIO);
  assert.equal(client.raw(new Uint8Array(39)).errno, EIO);
  assert.ok(client.raw(new Uint8Array(39), 15).silent, 'no room for a header');
  assert.equal(client.send('GETATTR', { capacity: 119 }).errno, EIO);
  assert.equal(client.send('GETATTR', { nodeid: 999 }).errno, ESTALE);
  assert.equal(client.read(999).errno, EBADF);
  const unknown = client.frame('GETATTR');
  new DataView(unknown.buffer).setUint32(4, 4095, true);
  assert.equal(client.raw(unknown).errno, ENOSYS);
});

test('operations without a handler are answered with the errno of their row', () => {
  const { client } = begin();
  for (const { name, handler, errno } of operations)
    if (handler === undefined) assert.equal(client.send(name, { rest: [new Uint8Array(64)] }).errno, errno, name);
  assert.equal(client.send('LINK').errno, EPERM);
  assert.equal(client.send('IOCTL').errno, ENOTTY);
  assert.equal(client.send('POLL').errno, ENOSYS, 'on virtiofs');
});

test('MKNOD makes a regular file, once, and no pipe, socket or device', () => {
  const { client, fileSystem } = begin();
  const guest = client.walk('guest');
  const mknod = (mode: number, name: string) =>
    client.send('MKNOD', { nodeid: guest, uid: 1000, in: { mode, umask: 0o022 }, rest: [name] });
  const made = mknod(S_IFREG | 0o666, 'f');
  assert.equal(made.errno, 0);
  assert.equal(made.get(abi.EntryOut.nodeid), client.walk('guest/f'));
  assert.equal(made.get(abi.Attr.mode, abi.EntryOut.attr.offset), S_IFREG | 0o644);
  assert.equal(mknod(S_IFREG | 0o666, 'f').errno, EEXIST);
  for (const type of [0o010000, 0o140000, 0o020000, 0o060000, 0]) assert.equal(mknod(type | 0o666, 'g').errno, EPERM);
  assert.equal(client.lookup(guest, 'g').errno, ENOENT);
  assert.equal(fileSystem.openHandles, 0);
});

test('CREATE, WRITE, SETATTR, RENAME2, UNLINK and RMDIR change the tree', () => {
  const { client } = begin();
  const guest = client.walk('guest');
  const made = client.send('CREATE', {
    nodeid: guest,
    uid: 1000,
    in: { flags: O_CREAT | O_RDWR, mode: 0o666, umask: 0o022 },
    rest: ['f'],
  });
  assert.equal(made.errno, 0);
  const nodeid = made.get(abi.EntryOut.nodeid);
  const fh = made.get(abi.OpenOut.fh, abi.EntryOut.sizeBytes);
  const data = new TextEncoder().encode('hello');
  const wrote = client.send('WRITE', { in: { fh, size: 5 }, rest: [data] });
  assert.equal(wrote.get(abi.WriteOut.size), 5);
  assert.equal(client.send('WRITE', { in: { fh, size: 6 }, rest: [data] }).errno, EIO);
  assert.equal(client.read(fh).text, 'hello');
  const cut = client.send('SETATTR', { nodeid, uid: 1000, in: { valid: c.FATTR_SIZE | c.FATTR_FH, fh, size: 2 } });
  assert.equal(attrIn(cut, 'size'), 2);
  const early = client.send('SETATTR', {
    nodeid,
    uid: 1000,
    in: { valid: c.FATTR_MTIME, mtime: -315_619_200, mtimensec: 5 },
  });
  const mtime = new DataView(early.body.buffer, early.body.byteOffset + abi.AttrOut.attr.offset);
  assert.equal(mtime.getBigInt64(abi.Attr.mtime.offset, true), -315_619_200n);
  assert.equal(client.send('SETATTR', { nodeid, in: { valid: c.FATTR_MTIME, mtimensec: 1e9 } }).errno, EINVAL);
  assert.equal(client.send('SETATTR', { nodeid, in: { valid: c.FATTR_CTIME } }).errno, 0);
  assert.equal(client.release(fh).errno, 0);
  assert.equal(client.release(fh).errno, EBADF);
  assert.equal(client.send('MKDIR', { nodeid: guest, in: { mode: 0o777 }, rest: ['d'] }).errno, 0);
  const newdir = client.walk('guest/d');
  assert.equal(client.send('RENAME2', { nodeid: guest, in: { newdir, flags: 4 }, rest: ['f', 'g'] }).errno, EINVAL);
  assert.equal(client.send('RENAME2', { nodeid: guest, in: { newdir: 999 }, rest: ['f', 'g'] }).errno, ESTALE);
  assert.equal(client.send('RENAME2', { nodeid: guest, in: { newdir }, rest: ['f', 'g'] }).errno, 0);
  assert.equal(client.walk('guest/d/g'), nodeid, 'what guests write keeps its nodeid');
  assert.equal(client.send('UNLINK', { nodeid: newdir, rest: ['g'] }).errno, 0);
  assert.equal(client.send('SYMLINK', { nodeid: newdir, rest: ['l', '../x'] }).errno, 0);
  assert.equal(client.send('READLINK', { nodeid: client.walk('guest/d/l') }).text, '../x');
  assert.equal(client.send('UNLINK', { nodeid: newdir, rest: ['l'] }).errno, 0);
  assert.equal(client.send('RMDIR', { nodeid: guest, rest: ['d'] }).errno, 0);
});

test('OPEN with O_TRUNC shows size 0 at once and takes effect with RELEASE', () => {
  const { client } = begin();
  const guest = client.walk('guest');
  const made = client.send('CREATE', { nodeid: guest, in: { flags: O_CREAT | O_RDWR, mode: 0o644 }, rest: ['f'] });
  const nodeid = made.get(abi.EntryOut.nodeid);
  const first = made.get(abi.OpenOut.fh, abi.EntryOut.sizeBytes);
  client.send('WRITE', { in: { fh: first, size: 3 }, rest: [new Uint8Array([1, 2, 3])] });
  const fh = client.open(nodeid, O_WRONLY | O_TRUNC).get(abi.OpenOut.fh);
  assert.equal(attrIn(client.send('GETATTR', { nodeid }), 'size'), 0);
  assert.equal(client.send('FLUSH', { in: { fh } }).errno, 0);
  assert.equal(client.read(first).body.length, 3, 'other handles read the old bytes');
  assert.equal(client.release(fh).errno, 0);
  assert.equal(client.read(first).body.length, 0);
});

test('GETXATTR tells length, value, ERANGE and ENODATA', () => {
  const { client } = begin();
  const get = (name: string, size: number) => client.send('GETXATTR', { in: { size }, rest: [name] });
  const length = get('system.porthole.revision', 0).get(abi.GetxattrOut.size);
  assert.ok(length > 0);
  assert.equal(get('system.porthole.revision', length).body.length, length);
  assert.equal(get('system.porthole.why', 1).errno, ERANGE);
  assert.equal(get('user.x', 0).errno, ENODATA);
  assert.equal(get('user.x', 64).errno, ENODATA);
  assert.equal(client.send('LISTXATTR', { in: { size: 0 } }).get(abi.GetxattrOut.size), 0);
});

test('SETATTR of what was made outside is refused', () => {
  const { client } = begin();
  const nodeid = client.walk('instance/id');
  assert.equal(client.send('SETATTR', { nodeid, in: { valid: c.FATTR_MODE, mode: 0o777 } }).errno, EPERM);
});

test('SETATTR that asks for nothing, chown(-1, -1), takes set-id bits away, for the owner alone', () => {
  const { client, world } = begin('dev-fuse');
  const guest = client.walk('guest');
  const made = client.send('MKNOD', { nodeid: guest, uid: 1000, in: { mode: S_IFREG | 0o4755 }, rest: ['tool'] });
  const nodeid = made.get(abi.EntryOut.nodeid);
  const mode = () => world.authority.snapshot.resolve('/guest/tool')!.mode & 0o7777;
  const ask = (uid: number) => client.send('SETATTR', { nodeid, uid, in: {} }).errno;
  assert.equal(mode(), 0o4755);
  assert.equal(ask(1001), EPERM);
  assert.equal(mode(), 0o4755);
  assert.equal(ask(1000), 0);
  assert.equal(mode(), 0o755);
  assert.equal(ask(1001), 0, 'nothing to take away');
});

test('WRITE is decided with the opener, whoever sends it', () => {
  const { client } = begin('dev-fuse');
  const secret = client.walk('secrets/db');
  assert.equal(client.open(secret, 0, 1000).errno, EACCES);
  const fh = client.open(secret, 0, 0).get(abi.OpenOut.fh);
  assert.equal(client.read(fh, 64, 0, { uid: 1000 }).text, 'hunter2');
  assert.equal(client.send('WRITE', { in: { fh, size: 1 }, rest: [new Uint8Array(1)] }).errno, EBADF);
});

test('READ of /.changes waits for a commit, a heartbeat or an INTERRUPT', () => {
  const { client, world, session } = begin('dev-fuse');
  const fh = client.open(client.walk('.changes')).get(abi.OpenOut.fh);
  const waiting = client.read(fh);
  assert.ok(waiting.held);
  assert.equal(waiting.answers, 0);
  world.load(spec('i-2'));
  assert.match(waiting.text, /instance\/id/);
  assert.equal(waiting.answers, 1);
  assert.equal(client.read(fh, 4096, 0, { in: { flags: O_NONBLOCK } }).errno, EAGAIN);

  const interrupted = client.read(fh, 4096, 0, { unique: 1000 });
  assert.ok(client.send('INTERRUPT', { in: { unique: 1000 } }).silent);
  assert.equal(interrupted.errno, EINTR);
  client.send('INTERRUPT', { in: { unique: 1002 } });
  assert.equal(client.read(fh, 4096, 0, { unique: 1002 }).errno, EINTR, 'an INTERRUPT that came first');

  const beaten = client.read(fh);
  world.clock.advance(60_000);
  session.tick(world.clock.monotonicMs());
  assert.equal(beaten.errno, 0);
  assert.ok(beaten.body.length > 0);
});

test('INIT and DESTROY answer the reads that wait, reset does not', () => {
  for (const end of ['INIT', 'DESTROY', 'reset'] as const) {
    const { client, session } = begin();
    const waiting = client.read(client.open(client.walk('.changes')).get(abi.OpenOut.fh));
    if (end === 'INIT') client.init();
    else if (end === 'DESTROY') client.send('DESTROY');
    else session.reset();
    assert.equal(waiting.answers, end === 'reset' ? 0 : 1, end);
    if (end !== 'reset') assert.equal(waiting.errno, EIO);
    assert.equal(session.held.handles, 0);
  }
});

test('a mutation that ends after its session did leaves nothing in the next one', () => {
  const world = new World(spec());
  const inner = world.fileSystem(ways.virtiofs);
  const late: (() => void)[] = [];
  const slow = new Proxy<FileSystem>(inner, {
    get: (target, key) => {
      if (key === 'mkdir')
        return (...args: Parameters<FileSystem['mkdir']>) => void late.push(() => target.mkdir(...args));
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const session = new FuseSession(slow, { transport: 'virtiofs', clock: world.clock });
  const client = new Client(session);
  client.init();
  const mkdir = (name: string) =>
    client.send('MKDIR', { nodeid: client.walk('guest'), in: { mode: 0o755 }, rest: [name] });
  const answered = mkdir('a');
  assert.ok(answered.held);
  late.shift()!();
  assert.equal(answered.errno, 0);
  const overtaken = mkdir('b');
  client.init();
  const before = session.held.inodes;
  late.shift()!();
  assert.equal(overtaken.errno, EIO);
  assert.equal(session.held.inodes, before);
  const dropped = mkdir('c');
  session.reset();
  late.shift()!();
  assert.equal(dropped.answers, 0);
});

test('a bug is answered EIO, counted, and logged once', () => {
  const world = new World(spec());
  const said: string[] = [];
  const inner = world.fileSystem(ways.virtiofs);
  const broken = new Proxy<FileSystem>(inner, {
    get: (target, key) => {
      if (key === 'statfs')
        return () => {
          throw new Error('boom');
        };
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const session = new FuseSession(broken, {
    transport: 'virtiofs',
    clock: world.clock,
    log: (line) => said.push(line),
  });
  const client = new Client(session);
  client.init();
  assert.equal(client.send('STATFS').errno, EIO);
  assert.equal(client.send('STATFS').errno, EIO);
  assert.equal(session.bugs, 2);
  assert.equal(said.length, 1);
  assert.match(said[0]!, /STATFS[^]*boom/);
});

test('a commit notifies the kernel of what it holds, after the reply under way', () => {
  const { client, world, notes } = begin('dev-fuse');
  assert.equal(client.lookup(1, 'instance').get(abi.EntryOut.entryValid), 3600);
  client.walk('instance/id');
  world.load(spec('i-2'));
  assert.ok(codes(notes).includes(c.FUSE_NOTIFY_INVAL_ENTRY));
  notes.length = 0;
  world.load({ content: { instance: { hostname: 'web-1' }, secrets: { db: 'hunter2' }, guest: {} } });
  assert.ok(codes(notes).includes(c.FUSE_NOTIFY_DELETE));
  assert.ok(codes(notes).includes(c.FUSE_NOTIFY_INVAL_INODE));
});

test('a policy alone has the kernel drop the names that not everybody may see any more', () => {
  const { client, world, notes } = begin('dev-fuse');
  client.walk('instance/id');
  const named = () =>
    notes
      .filter((bytes) => codes([bytes])[0] === c.FUSE_NOTIFY_INVAL_ENTRY)
      .map((bytes) => new TextDecoder().decode(bytes.subarray(32, -1)));
  world.load({ ...spec(), rules: [{ path: '/instance/id', hidden: true, root: 'deny' }] });
  assert.deepEqual(named(), ['id']);
  assert.equal(client.lookup(client.walk('instance'), 'id').errno, ENOENT);
  notes.length = 0;
  world.load({ ...spec(), rules: [{ path: '/instance', hidden: true, root: 'deny' }] });
  assert.ok(named().includes('instance'));
});

test('POLL on /dev/fuse wakes when /.changes has a line or an open file a newer version', () => {
  const { client, world, notes } = begin('dev-fuse');
  const poll = (fh: number, kh: number) => client.send('POLL', { in: { fh, kh, flags: 1 } }).get(abi.PollOut.revents);
  const stream = client.open(client.walk('.changes')).get(abi.OpenOut.fh);
  const file = client.open(client.walk('instance/id')).get(abi.OpenOut.fh);
  assert.equal(poll(stream, 7), 0);
  assert.equal(poll(file, 8) & c.POLLPRI, 0);
  world.load(spec('i-2'));
  assert.equal(codes(notes).filter((code) => code === c.FUSE_NOTIFY_POLL).length, 2);
  assert.equal(poll(stream, 7) & c.POLLIN, c.POLLIN);
  assert.equal(poll(file, 8) & c.POLLPRI, c.POLLPRI);
});
