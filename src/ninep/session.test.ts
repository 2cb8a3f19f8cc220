import assert from 'node:assert/strict';
import { test } from 'node:test';
import { entriesIn, frameOf } from '../../test/ninep/client.ts';
import { APP, bytesOf, content, held, made, scene, text } from '../../test/ninep/scene.ts';
import { type FileSystem } from '../tree/index.ts';
import {
  E2BIG,
  EACCES,
  EBADF,
  EEXIST,
  EINVAL,
  EIO,
  EISDIR,
  EMFILE,
  EMSGSIZE,
  ENODATA,
  ENOENT,
  ENOSPC,
  EOPNOTSUPP,
  EPERM,
  O_TRUNC,
  O_WRONLY,
  S_IFREG,
} from '../wire/index.ts';
import * as abi from './abi.ts';

test('Tversion agrees on 9P2000.L and the smaller msize, and calls all else unknown', () => {
  const { client } = scene({ maxMsizeBytes: 8192 });
  const told = client.version(65_536);
  assert.equal(told.get(abi.Rversion.msize), 8192);
  assert.equal(text(told.body!.subarray(6)), '9P2000.L');
  for (const other of ['9P2000', '9P2000.u', '', '9P2000.Lx']) {
    const reply = client.version(65_536, other);
    assert.equal(text(reply.body!.subarray(6)), 'unknown', other);
  }
  assert.equal(client.version(abi.MIN_MSIZE - 1).errno, EMSGSIZE);
  assert.equal(client.version(0).errno, EMSGSIZE);
  assert.equal(client.version(0xffff_ffff).get(abi.Rversion.msize), 8192);
  assert.throws(() => scene({ maxMsizeBytes: 100 }), /maxMsizeBytes is 100/);
});

test('Tversion in mid-session closes all that was open and answers nothing of before', () => {
  const { client, world } = scene();
  const root = client.attach(APP);
  const watch = client.open(root, '.changes');
  const reading = client.call('Tread', { fid: watch, count: 100 });
  assert.equal(reading.body, undefined);
  client.version();
  assert.deepEqual(client.session.held, { fids: 0, requests: 0 });
  world.load({ content: { ...content, instance: { id: 'i-2' } } });
  assert.equal(reading.body, undefined);
  assert.equal(client.call('Tgetattr', { fid: root }).errno, EBADF);
  client.attach(APP, root);
});

test('Tattach makes users of the policy themselves, all others and the mount nobody', () => {
  const { client } = scene({ isUser: (uid) => uid === APP });
  const owners = [APP, 2000, 0, 65_534, abi.NONUNAME].map((uid, index) => {
    const root = client.attach(uid);
    // Nobody may write in /guest, which guests share.
    const made = client.call('Tmkdir', { fid: client.walk(root, 'guest'), name: `d${index}`, mode: 0o755, gid: 5 });
    assert.equal(made.errno, 0);
    const stat = client.ok('Tgetattr', { fid: client.walk(root, `guest/d${index}`) });
    return [stat.get(abi.Rgetattr.uid), stat.get(abi.Rgetattr.gid)];
  });
  assert.deepEqual(owners, [[APP, 5], ...Array.from({ length: 4 }, () => [65_534, 65_534])]);
});

test('Tattach without a uid is whom the options say', () => {
  const { client } = scene({ uidOfMount: () => APP });
  const root = client.attach();
  client.open(root, 'secrets/key');
  const other = client.attach(2000);
  const fid = client.walk(other, 'secrets/key');
  assert.equal(client.call('Tlopen', { fid }).errno, EACCES);
});

test('Tattach asks the transport, and refuses authentication and fids that are in use', () => {
  const asked: unknown[] = [];
  const { client } = scene({
    attach: (request) => {
      asked.push(request);
      return request.aname === '/' ? 0 : EPERM;
    },
  });
  const attach = { fid: 1, afid: abi.NOFID, nUname: abi.NONUNAME };
  assert.equal(client.call('Tattach', { ...attach, uname: 'root', aname: 'x' }).errno, EPERM);
  assert.deepEqual(asked, [{ uname: 'root', aname: 'x', uid: undefined }]);
  assert.equal(client.call('Tattach', { ...attach, afid: 7, aname: '/' }).errno, EINVAL);
  assert.equal(client.call('Tauth', { afid: 1, nUname: 0 }).errno, ENOENT);
  client.ok('Tattach', { ...attach, aname: '/', nUname: 5 });
  assert.deepEqual(asked.at(-1), { uname: '', aname: '/', uid: 5 });
  assert.equal(client.call('Tattach', { ...attach, aname: '/' }).errno, EBADF);
});

test('a fid keeps the principal of the attach that it was walked from', () => {
  const { client } = scene();
  const [app, other] = [client.attach(APP), client.attach(2000)];
  for (const [root, errno] of [
    [app, 0],
    [other, EACCES],
  ] as const) {
    const clone = client.walk(client.walk(root, 'secrets/..'), 'secrets/key');
    assert.equal(client.call('Tlopen', { fid: client.walk(clone, '') }).errno, errno);
  }
});

test('Twalk that ends early makes no fid, and one that fails at once says why', () => {
  const { client, world } = scene();
  const root = client.attach(APP);
  const partial = client.ok('Twalk', { fid: root, newfid: 9, names: ['instance', 'none', 'x'] });
  assert.equal(partial.get(abi.Rwalk.nwqid), 1);
  assert.equal(partial.get(abi.Qid.type, 2), abi.QTDIR);
  assert.equal(partial.get(abi.Qid.path, 2), world.authority.snapshot.resolve('/instance')!.ino);
  assert.equal(client.call('Tgetattr', { fid: 9 }).errno, EBADF);
  assert.equal(client.call('Twalk', { fid: root, newfid: 9, names: ['none', 'x'] }).errno, ENOENT);
  assert.equal(client.call('Twalk', { fid: 77, newfid: 9 }).errno, EBADF);
  for (const name of ['', 'a/b', '/', '../instance', 'a\0b'])
    assert.equal(client.call('Twalk', { fid: root, newfid: 9, names: [name] }).errno, EINVAL, JSON.stringify(name));
  assert.equal(client.session.held.fids, 1);
});

test('Twalk takes 16 names and no 17th, and never leaves the root', () => {
  const { client } = scene();
  const root = client.attach(APP);
  const up = client.ok('Twalk', { fid: root, newfid: 9, names: Array.from({ length: 16 }, () => '..') });
  assert.equal(up.get(abi.Rwalk.nwqid), 16);
  assert.equal(up.get(abi.Qid.path, 2 + 15 * 13), 1);
  assert.equal(
    client.call('Twalk', { fid: root, newfid: 8, names: Array.from({ length: 17 }, () => '..') }).errno,
    EINVAL,
  );
});

test('Twalk to its own fid moves it, to one that is in use is refused, and an open fid stays where it is', () => {
  const { client } = scene();
  const root = client.attach(APP);
  const fid = client.walk(root, 'instance');
  client.ok('Twalk', { fid, newfid: fid, names: ['id'] });
  client.ok('Tlopen', { fid });
  assert.equal(text(client.ok('Tread', { fid, count: 10 }).data), 'i-1');
  assert.equal(client.call('Twalk', { fid, newfid: fid, names: ['..'] }).errno, EBADF);
  assert.equal(client.call('Twalk', { fid: root, newfid: fid, names: [] }).errno, EBADF);
  assert.equal(client.session.held.fids, 2);
});

test('Tread gives all that was asked for and never a frame of msize bytes', () => {
  const { client } = scene();
  const root = client.attach(APP);
  const fid = client.open(root, 'instance/big');
  const room = client.msize - 1 - 7 - 4;
  for (const count of [client.msize - 24, client.msize - 11, client.msize, 0xffff_ffff])
    assert.equal(client.ok('Tread', { fid, count }).data.length, Math.min(count, room));
  assert.equal(client.ok('Tread', { fid, offset: 299_999, count: 100 }).data.length, 1);
  for (const offset of [300_000, 2 ** 53, 2 ** 64 - 2 ** 12])
    assert.equal(client.ok('Tread', { fid, offset, count: 100 }).data.length, 0);
  assert.equal(client.call('Tread', { fid: root, count: 1 }).errno, EBADF);
  client.ok('Tlopen', { fid: root });
  assert.equal(client.call('Tread', { fid: root, count: 1 }).errno, EISDIR);
  assert.equal(client.call('Tlopen', { fid: root }).errno, EINVAL);
});

test('Tlopen tells the length of one Tread for all of what stays as it was opened, and leaves all else to msize', () => {
  const { client } = scene();
  const root = client.attach(APP);
  const iounit = (path: string): number => client.ok('Tlopen', { fid: client.walk(root, path) }).get(abi.Opened.iounit);
  assert.equal(iounit('instance/id'), 4096 - 11);
  assert.equal(iounit('instance/middle'), 8192 - 11);
  assert.equal(iounit('instance/big'), 0);
  assert.equal(iounit('.changes'), 0);
  assert.equal(iounit('instance'), 0);
  client.ok('Tclunk', { fid: made(client, root, 'f', 'x') });
  assert.equal(iounit('guest/f'), 0);
});

test('an open fid shows its version, one that is not open the node of now; what is gone has no links', () => {
  const { client, world } = scene();
  const root = client.attach(APP);
  const [open, path] = [client.open(root, 'instance/id'), client.walk(root, 'instance/id')];
  world.load({ content: { ...content, instance: { id: 'i-22' } } });
  const size = (fid: number) => client.ok('Tgetattr', { fid }).get(abi.Rgetattr.size);
  assert.deepEqual([size(open), size(path)], [3, 4]);
  assert.equal(text(client.ok('Tread', { fid: open, count: 10 }).data), 'i-1');
  const version = (fid: number) => client.ok('Tgetattr', { fid }).get(abi.Qid.version, abi.Rgetattr.qid.offset);
  assert.equal(version(path), world.authority.snapshot.resolve('/instance/id')!.revision);
  assert.ok(version(open) < version(path));
  world.load({ content: { guest: {} } });
  const gone = client.ok('Tgetattr', { fid: path });
  assert.deepEqual([gone.get(abi.Rgetattr.nlink), gone.get(abi.Rgetattr.size)], [0, 4]);
  assert.equal(text(client.ok('Tread', { fid: open, count: 10 }).data), 'i-1');
});

test('Tsetattr of size 0 is the truncation of O_TRUNC when nothing else was asked of what was opened for writing', () => {
  const { client, world } = scene();
  const root = client.attach(APP);
  client.ok('Tclunk', { fid: made(client, root, 'f', 'old') });
  const cut = (fid: number) => client.ok('Tsetattr', { fid, valid: abi.SETATTR_SIZE | abi.SETATTR_MTIME });
  const outside = () => text(world.authority.snapshot.resolve('/guest/f')!.bytes!);
  const fid = client.open(root, 'guest/f', O_WRONLY);
  cut(fid);
  assert.equal(outside(), 'old');
  assert.equal(client.ok('Tgetattr', { fid }).get(abi.Rgetattr.size), 0);
  client.ok('Twrite', { fid, data: bytesOf('ne') });
  assert.equal(outside(), 'ne');
  cut(fid);
  assert.equal(outside(), '', 'ftruncate(2) is one by itself');
  client.ok('Twrite', { fid, data: bytesOf('new') });
  const idle = client.open(root, 'guest/f', O_WRONLY);
  cut(idle);
  assert.equal(outside(), 'new');
  client.clunk(idle);
  assert.equal(outside(), '', 'it takes effect at the end');
});

test('Tsetattr of size 0 leaves the truncation of O_TRUNC to the first write', () => {
  const { client, world } = scene();
  const root = client.attach(APP);
  client.ok('Tclunk', { fid: made(client, root, 'f', 'old bytes') });
  const fid = client.open(root, 'guest/f', O_WRONLY | O_TRUNC);
  const valid = abi.SETATTR_SIZE | abi.SETATTR_MTIME | abi.SETATTR_CTIME;
  client.ok('Tsetattr', { fid, valid });
  const outside = () => text(world.authority.snapshot.resolve('/guest/f')!.bytes!);
  assert.equal(outside(), 'old bytes');
  assert.equal(client.ok('Tgetattr', { fid }).get(abi.Rgetattr.size), 0);
  client.ok('Twrite', { fid, data: bytesOf('new') });
  assert.equal(outside(), 'new');
  client.ok('Tsetattr', { fid, valid });
  assert.equal(outside(), '');
  client.ok('Tsetattr', { fid, valid: abi.SETATTR_SIZE, size: 2 });
  assert.equal(outside(), '\0\0');
  assert.equal(client.call('Tsetattr', { fid, valid: 0x90, atimeNsec: 1e9 }).errno, EINVAL);
});

test('Treaddir goes on in the listing that it began with, whatever changes', () => {
  const { client } = scene();
  const root = client.attach(APP);
  for (let index = 0; index < 40; index++) client.ok('Tclunk', { fid: made(client, root, `file-${index}`) });
  const fid = client.open(root, 'guest');
  const names: string[] = [];
  for (let offset = 0; ; ) {
    const entries = entriesIn(client.ok('Treaddir', { fid, offset, count: 200 }).data);
    if (entries.length === 0) break;
    names.push(...entries.map(({ name }) => name));
    offset = entries.at(-1)!.offset;
    const guest = client.walk(root, 'guest');
    client.call('Tunlinkat', { fid: guest, name: names.at(-1)! });
    client.ok('Tmkdir', { fid: guest, name: `a-${offset}`, mode: 0o755 });
  }
  const files = Array.from({ length: 40 }, (_, index) => `file-${index}`);
  assert.deepEqual(names.toSorted(), ['.', '..', '.agent', ...files].toSorted());
  const anew = entriesIn(client.ok('Treaddir', { fid, offset: 0, count: 60_000 }).data).map(({ name }) => name);
  assert.ok(
    anew.some((name) => name.startsWith('a-')),
    'a rewound listing is of now',
  );
  assert.equal(client.call('Treaddir', { fid, count: 10 }).errno, EINVAL);
  assert.equal(client.ok('Treaddir', { fid, offset: 2 ** 60, count: 4096 }).data.length, 0);
});

test('Txattrwalk reads on what it found, and Tclunk sets what Txattrcreate gathered', () => {
  const { client } = scene();
  const root = client.attach(APP);
  const acl = Uint8Array.from([
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
  ]);
  const name = 'system.posix_acl_default';
  client.ok('Tmkdir', { fid: client.walk(root, 'guest'), name: 'd', mode: 0o755, gid: APP });
  const create = (attrSize: number, value: Uint8Array) => {
    const fid = client.walk(root, 'guest/d');
    client.ok('Txattrcreate', { fid, name, attrSize, flags: 0 });
    if (value.length > 0) {
      client.ok('Twrite', { fid, data: value.subarray(0, 10) });
      client.ok('Twrite', { fid, offset: 10, data: value.subarray(10) });
    }
    return fid;
  };
  assert.equal(client.clunk(create(acl.length, acl)).errno, 0);
  const [dir, value] = [client.walk(root, 'guest/d'), client.newFid()];
  assert.equal(client.ok('Txattrwalk', { fid: dir, newfid: value, name }).get(abi.Rxattrwalk.size), acl.length);
  const half = client.ok('Tread', { fid: value, count: 10 }).data;
  assert.equal(client.clunk(create(0, new Uint8Array())).errno, 0);
  assert.equal(client.call('Txattrwalk', { fid: dir, newfid: client.newFid(), name }).errno, ENODATA);
  const rest = client.ok('Tread', { fid: value, offset: 10, count: 100 }).data;
  assert.deepEqual([...half, ...rest], [...acl]);
  assert.equal(client.clunk(create(acl.length + 1, acl)).errno, EINVAL, 'a value that did not come whole');
  const full = create(4, new Uint8Array());
  assert.equal(client.call('Twrite', { fid: full, data: acl }).errno, ENOSPC);
  assert.equal(client.call('Twrite', { fid: full, offset: 2, data: acl.subarray(0, 1) }).errno, EINVAL);
  assert.equal(client.call('Tread', { fid: full, count: 1 }).errno, EBADF);
  const fid = client.walk(root, 'guest/d');
  assert.equal(client.call('Txattrcreate', { fid, name, attrSize: 65_537 }).errno, E2BIG);
  assert.equal(client.call('Txattrcreate', { fid, name, attrSize: 2 ** 63 }).errno, E2BIG);
  assert.equal(client.call('Txattrcreate', { fid, name, flags: 4 }).errno, EINVAL);
});

test('fids and the attributes that they hold are bounded, and one uid can’t take all', () => {
  const { client } = scene({ maxFids: 8, maxXattrBytes: 100 });
  const root = client.attach(APP);
  const fid = client.walk(root, 'guest');
  assert.equal(client.call('Txattrcreate', { fid, name: 'user.x', attrSize: 101 }).errno, ENOSPC);
  client.ok('Txattrcreate', { fid, name: 'user.x', attrSize: 100 });
  const other = client.walk(root, 'guest');
  assert.equal(client.call('Txattrcreate', { fid: other, name: 'user.x', attrSize: 1 }).errno, ENOSPC);
  client.clunk(fid);
  client.ok('Txattrcreate', { fid: other, name: 'user.x', attrSize: 100 });
  client.walk(root, '');
  client.walk(root, '');
  const refuse = (fid: number, nUname: number) => {
    assert.equal(client.call('Twalk', { fid, newfid: 99 }).errno, EMFILE);
    assert.equal(client.call('Tattach', { fid: 99, afid: abi.NOFID, nUname }).errno, EMFILE);
    assert.equal(client.call('Txattrwalk', { fid, newfid: 99 }).errno, EMFILE);
  };
  refuse(root, APP);
  client.ok('Twalk', { fid: root, newfid: root, names: ['guest'] });
  const others = [2000, 3000].map((uid) => client.attach(uid));
  for (const fid of others) client.walk(fid, '');
  refuse(others[0]!, 4000);
  for (const fid of others) client.clunk(fid);
  refuse(root, APP);
  client.walk(client.attach(4000), '');
});

test('Tremove and Trename go by the name that the file has now', () => {
  const { client, world } = scene();
  const root = client.attach(APP);
  const at = (path: string) => world.authority.snapshot.resolve(path);
  const [file, guest] = [made(client, root, 'a', 'bytes'), client.walk(root, 'guest')];
  client.ok('Trename', { fid: file, dfid: guest, name: 'b' });
  client.ok('Trenameat', { fid: guest, oldname: 'b', newdirfid: guest, newname: 'c' });
  assert.ok(at('/guest/a') === undefined && at('/guest/b') === undefined && at('/guest/c') !== undefined);
  client.ok('Tremove', { fid: file });
  assert.equal(at('/guest/c'), undefined);
  assert.equal(client.call('Tclunk', { fid: file }).errno, EBADF);
  client.ok('Tmkdir', { fid: guest, name: 'd', mode: 0o755 });
  assert.equal(client.call('Tunlinkat', { fid: guest, name: 'd' }).errno, EISDIR);
  client.ok('Tremove', { fid: client.walk(guest, 'd') });
  const refused = client.walk(root, 'instance/id');
  assert.equal(client.call('Tremove', { fid: refused }).errno, EACCES);
  assert.equal(client.call('Tgetattr', { fid: refused }).errno, EBADF, 'the fid is gone all the same');
  assert.equal(client.call('Tremove', { fid: client.walk(root, '') }).errno, 16);
  assert.equal(client.call('Tunlinkat', { fid: guest, name: 'x', flags: 1 }).errno, EINVAL);
});

test('what is made is regular files, directories and symlinks, by their makers', () => {
  const { client } = scene();
  const root = client.attach(APP);
  const guest = client.walk(root, 'guest');
  client.ok('Tmknod', { fid: guest, name: 'n', mode: S_IFREG | 0o600, gid: 5 });
  assert.equal(client.call('Tmknod', { fid: guest, name: 'n', mode: S_IFREG | 0o600 }).errno, EEXIST);
  assert.equal(client.call('Tmknod', { fid: guest, name: 'p', mode: 0o010_644 }).errno, EPERM);
  assert.equal(client.call('Tlink', { dfid: guest, fid: client.walk(guest, 'n'), name: 'm' }).errno, EPERM);
  client.ok('Tsymlink', { fid: guest, name: 's', symtgt: 'n/../n', gid: 5 });
  assert.equal(client.call('Tsymlink', { fid: guest, name: 't', symtgt: 'a\0b' }).errno, EINVAL);
  assert.equal(client.call('Tsymlink', { fid: guest, name: 't', symtgt: '' }).errno, EINVAL);
  const link = client.walk(guest, 's');
  assert.equal(text(client.ok('Treadlink', { fid: link }).body!.subarray(2)), 'n/../n');
  const stat = client.ok('Tgetattr', { fid: client.walk(guest, 'n'), requestMask: 0x3fff });
  assert.deepEqual(
    [stat.get(abi.Rgetattr.uid), stat.get(abi.Rgetattr.gid), stat.get(abi.Rgetattr.mode)],
    [APP, 5, S_IFREG | 0o600],
  );
  assert.equal(stat.get(abi.Rgetattr.valid), abi.GETATTR_BASIC | abi.GETATTR_DATA_VERSION);
});

test('Treadlink answers EMSGSIZE when the target does not fit a frame', () => {
  const { client } = scene();
  client.version(abi.MIN_MSIZE);
  const guest = client.walk(client.attach(APP), 'guest');
  client.ok('Tsymlink', { fid: guest, name: 's', symtgt: 't'.repeat(4000) });
  assert.equal(client.ok('Treadlink', { fid: client.walk(guest, 's') }).body!.length, 4002);
  client.version();
  const large = client.walk(client.attach(APP), 'guest');
  client.ok('Tsymlink', { fid: large, name: 'l', symtgt: 't'.repeat(4095) });
  client.version(abi.MIN_MSIZE);
  assert.equal(client.call('Treadlink', { fid: client.walk(client.attach(APP), 'guest/l') }).errno, EMSGSIZE);
});

test('locks are granted, because the client has taken them among its own', () => {
  const { client } = scene();
  const root = client.attach(APP);
  const fid = client.open(root, 'instance/id');
  const range = { fid, start: 5, length: 7, procId: 42, client_id: 'web-1' };
  assert.equal(client.ok('Tlock', { ...range, type: 1, flags: 1 }).get(abi.Rlock.status), abi.LOCK_SUCCESS);
  const told = client.ok('Tgetlock', { ...range, type: 1 });
  const { Rgetlock } = abi;
  const fields = [Rgetlock.type, Rgetlock.start, Rgetlock.length, Rgetlock.procId];
  assert.deepEqual(
    fields.map((field) => told.get(field)),
    [abi.LOCK_TYPE_UNLCK, 5, 7, 42],
  );
  assert.equal(text(told.body!.subarray(Rgetlock.sizeBytes + 2)), 'web-1');
  assert.equal(client.call('Tlock', { fid: root }).errno, EBADF);
  assert.equal(client.call('Tlock', { ...range, type: 3 }).errno, EINVAL);
});

test('Tlopen gives no rights by flags that 9P does not have', () => {
  const { client, world } = scene();
  world.load({ content, rules: [{ path: '/instance/id', mode: 0o111 }] });
  const fid = client.walk(client.attach(APP), 'instance/id');
  assert.equal(client.call('Tlopen', { fid, flags: 0o40 }).errno, EACCES);
});

test('unknown messages are answered EOPNOTSUPP, and counted', () => {
  const { client } = scene();
  for (const type of [0, 6, 7, 9, 99, 101, 106, 128, 255]) {
    const reply = client.expect('Tclunk', 1);
    client.session.receive(frameOf(type, 1, [1, 2, 3]));
    assert.equal(reply.errno, EOPNOTSUPP, `type ${type}`);
  }
  assert.equal(client.session.requests('UNKNOWN'), 9);
  assert.throws(() => client.session.requests('Tnone'), TypeError);
});

test('a bug below is answered EIO, counted and told of once', () => {
  const said: string[] = [];
  const broken = (inner: FileSystem) =>
    new Proxy(inner, {
      get: (target, key) => {
        if (key === 'statfs') return () => assert.fail('broken');
        const value = Reflect.get(target, key) as unknown;
        return typeof value === 'function' ? value.bind(target) : value;
      },
    });
  const { client } = scene({ log: (message) => said.push(message) }, broken);
  const root = client.attach(APP);
  for (const _ of [1, 2]) assert.equal(client.call('Tstatfs', { fid: root }).errno, EIO);
  client.ok('Tgetattr', { fid: root });
  assert.equal(client.session.bugs, 2);
  assert.equal(said.length, 1);
  assert.match(said[0]!, /Tstatfs failed by a bug/);
});

test('the end of a connection closes what was open, and answers nothing any more', () => {
  const { wrap, calls } = held('write');
  const { client, world } = scene({}, wrap);
  const root = client.attach(APP);
  const fid = made(client, root, 'f');
  const write = client.call('Twrite', { fid, data: bytesOf('x') });
  client.ok('Tunlinkat', { fid: client.walk(root, 'guest'), name: 'f' });
  const { ino } = [...world.authority.snapshot.nodes.values()].find(({ parentIno }) => parentIno === 0)!;
  client.session[Symbol.dispose]();
  calls.shift()!();
  assert.equal(write.body, undefined);
  assert.equal(world.authority.snapshot.node(ino), undefined, 'nobody holds it any more');
  assert.equal(client.closedBy, undefined);
  assert.equal(client.session.ended, true);
});
