/** Names, and the numbers that the kernel knows files by. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { attrIn, begin, spec } from '../../test/fuse/begun.ts';
import { entriesIn } from '../../test/fuse/client.ts';
import { EACCES, EBADF, EILSEQ, EINVAL, ENAMETOOLONG, ENOENT, ESTALE, S_IFREG } from '../wire/index.ts';
import * as abi from './abi.ts';

test('LOOKUP gives one nodeid per version, and OPEN of an older one is ESTALE', () => {
  const { client, world } = begin();
  const old = client.walk('instance/id');
  assert.equal(client.walk('instance/id'), old);
  const opened = client.open(old);
  world.load(spec('i-00000002'));
  assert.equal(attrIn(client.send('GETATTR', { nodeid: old }), 'size'), 6, 'fstat of the old version');
  assert.equal(client.open(old, 0, 0, 0).errno, ESTALE);
  const now = client.walk('instance/id');
  assert.notEqual(now, old);
  assert.equal(attrIn(client.send('GETATTR', { nodeid: now }), 'size'), 10);
  assert.equal(client.read(client.open(now).get(abi.OpenOut.fh)).text, 'i-00000002');
  assert.equal(client.read(opened.get(abi.OpenOut.fh)).text, 'i-0001', 'an old handle reads what it opened');
});

test('OPEN of a removed file is ESTALE, and its attributes stay with nlink 0', () => {
  const { client, world } = begin();
  const nodeid = client.walk('instance/id');
  world.load({ content: { instance: {} } });
  assert.equal(client.open(nodeid).errno, ESTALE);
  const answer = client.send('GETATTR', { nodeid });
  assert.equal(attrIn(answer, 'nlink'), 0);
  assert.equal(attrIn(answer, 'size'), 6);
});

test('LOOKUP caches for a second what all see alike, and nothing else', () => {
  const { client } = begin();
  const ttl = (parent: number, name: string) => {
    const answer = client.lookup(parent, name);
    return [answer.get(abi.EntryOut.entryValid), answer.get(abi.EntryOut.attrValid)];
  };
  assert.deepEqual(ttl(client.walk('instance'), 'id'), [1, 1]);
  assert.deepEqual(ttl(client.walk('secrets'), 'db'), [0, 0]);
  assert.deepEqual(ttl(1, '.changes'), [0, 0]);
  assert.equal(client.lookup(1, 'absent').errno, ENOENT);
});

test('FORGET drops what it counts, takes no more than was given, and leaves the root', () => {
  const { client, session } = begin();
  const before = session.held.inodes;
  const nodeid = client.walk('instance');
  client.walk('instance');
  assert.ok(client.send('FORGET', { nodeid, in: { nlookup: 1 } }).silent);
  assert.equal(client.send('GETATTR', { nodeid }).errno, 0);
  client.send('FORGET', { nodeid, in: { nlookup: 2 ** 60 } });
  assert.equal(client.send('GETATTR', { nodeid }).errno, ESTALE);
  assert.equal(session.held.inodes, before);
  client.send('FORGET', { nodeid: 1, in: { nlookup: 2 ** 60 } });
  assert.equal(client.send('GETATTR').errno, 0);
  assert.notEqual(client.walk('instance'), nodeid, 'nodeids are never used again');
});

test('BATCH_FORGET drops every one it names', () => {
  const { client, session } = begin();
  const before = session.held.inodes;
  const rest = new Uint8Array(32);
  const view = new DataView(rest.buffer);
  for (const [index, name] of ['instance', 'secrets'].entries()) {
    abi.ForgetOne.nodeid.set(view, index * 16, client.walk(name));
    abi.ForgetOne.nlookup.set(view, index * 16, 1);
  }
  assert.ok(client.send('BATCH_FORGET', { in: { count: 3 }, rest: [rest] }).silent, 'a count that lies');
  assert.equal(session.held.inodes, before + 2);
  client.send('BATCH_FORGET', { in: { count: 2 }, rest: [rest] });
  assert.equal(session.held.inodes, before);
});

test('names that no kernel sends are refused, each with its errno', () => {
  const { client } = begin();
  const guest = client.walk('guest');
  const mkdir = (name: string | Uint8Array) =>
    client.send('MKDIR', { nodeid: guest, in: { mode: 0o755 }, rest: [name] }).errno;
  for (const name of ['', '.', '..', 'a/b']) assert.equal(mkdir(name), EINVAL, JSON.stringify(name));
  assert.equal(mkdir('n'.repeat(256)), ENAMETOOLONG);
  assert.equal(mkdir(new Uint8Array([0xff, 0])), EILSEQ);
  assert.equal(mkdir(new Uint8Array([0x61])), EINVAL, 'no NUL');
  assert.equal(client.send('LOOKUP', { rest: [new Uint8Array([0xc3, 0x28, 0])] }).errno, ENOENT);
  assert.equal(mkdir('\uFEFFmarked'), 0);
  assert.equal(client.lookup(guest, 'marked').errno, ENOENT, 'a byte order mark belongs to the name');
});

test('READDIR goes on from every cookie, and says so when not one entry fits', () => {
  const { client } = begin();
  const fh = client.send('OPENDIR').get(abi.OpenOut.fh);
  const all = entriesIn(client.send('READDIR', { in: { fh, size: 4096 } }).body);
  const names = all.map(({ name }) => name);
  assert.deepEqual(names.slice(0, 2), ['.', '..']);
  for (const name of ['instance', 'secrets', 'guest']) assert.ok(names.includes(name), name);
  const one: string[] = [];
  for (let offset = 0; ; ) {
    const [entry] = entriesIn(client.send('READDIR', { in: { fh, size: 40, offset } }).body);
    if (entry === undefined) break;
    one.push(entry.name);
    offset = entry.off;
  }
  assert.deepEqual(one, names);
  assert.equal(client.send('READDIR', { in: { fh, size: 31, offset: 2 } }).errno, EINVAL);
  assert.equal(client.send('RELEASEDIR', { in: { fh } }).errno, 0);
  assert.equal(client.send('READDIR', { in: { fh, size: 4096 } }).errno, EBADF);
});

test('READDIRPLUS counts a lookup for what it returns and for nothing else', () => {
  const { client, session } = begin();
  const before = session.held.inodes;
  const fh = client.send('OPENDIR').get(abi.OpenOut.fh);
  const all = entriesIn(client.send('READDIRPLUS', { in: { fh, size: 65536 } }).body, true);
  assert.equal(session.held.inodes - before, all.length - 2);
  assert.deepEqual(
    all.slice(0, 2).map(({ nodeid }) => nodeid),
    [0, 0],
  );
  for (const { nodeid } of all.slice(2)) client.send('FORGET', { nodeid, in: { nlookup: 1 } });
  assert.equal(session.held.inodes, before);
  const two = client.send('READDIRPLUS', { in: { fh, size: 320, offset: 2 } });
  assert.equal(session.held.inodes - before, entriesIn(two.body, true).length);
});

test('READDIRPLUS tells attributes only to those who may look up, and records no denial of what nobody asked for', () => {
  const { client, world } = begin('dev-fuse');
  const guest = client.walk('guest');
  const make = (nodeid: number, name: string, mode: number) =>
    client.send('MKDIR', { nodeid, in: { mode }, rest: [name] }).get(abi.EntryOut.nodeid);
  const closed = make(guest, 'closed', 0o744);
  make(closed, 'inside', 0o755);
  const fh = client.send('OPENDIR', { nodeid: closed, uid: 1000 }).get(abi.OpenOut.fh);
  const inside = entriesIn(client.send('READDIRPLUS', { uid: 1000, in: { fh, size: 4096 } }).body, true)[2];
  assert.equal(inside?.name, 'inside');
  assert.equal(inside?.nodeid, 0);
  assert.deepEqual(
    world.audit.filter(({ verdict }) => verdict === 'denied'),
    [],
  );
  assert.equal(client.lookup(closed, 'inside', 1000).errno, EACCES);
  assert.equal(world.audit.at(-1)?.operation, 'lookup');
});

test('limits of nodeids and handles are answered ENFILE', () => {
  const { client } = begin('virtiofs', { maxInodes: 3, maxHandles: 1 });
  client.walk('instance');
  assert.equal(client.lookup(1, 'secrets', 1000).errno, 0);
  assert.equal(client.lookup(1, 'guest', 1001).errno, 23);
  assert.equal(client.send('OPENDIR').errno, 0);
  assert.equal(client.send('OPENDIR').errno, 23);
});

test('half of the nodeids are for uids that have less than a quarter', () => {
  const { client } = begin('dev-fuse', { maxInodes: 8 });
  const guest = client.walk('guest');
  const make = (uid: number, name: string) =>
    client.send('MKNOD', { nodeid: guest, uid, in: { mode: S_IFREG | 0o644 }, rest: [name] });
  const files = ['a', 'b'].map((name) => make(0, name).get(abi.EntryOut.nodeid));
  assert.equal(make(0, 'c').errno, 23, 'root has three, and half are taken');
  assert.equal(client.lookup(guest, 'a', 0).errno, 0, 'no new one');
  assert.deepEqual(
    ['d', 'e', 'f'].map((name) => make(1000, name).errno),
    [0, 0, 23],
  );
  assert.equal(make(1001, 'g').errno, 0);
  client.send('FORGET', { nodeid: files[1]!, in: { nlookup: 1 } });
  client.send('FORGET', { nodeid: files[0]!, in: { nlookup: 2 } });
  assert.equal(make(0, 'c').errno, 0, 'root has one left');
});
