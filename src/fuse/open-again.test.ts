/** Opens that meet ESTALE: the kernel's second try must not fail, however fast the tree changes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Client } from '../../test/fuse/client.ts';
import { World, type WorldSpec } from '../../test/tree/world.ts';
import { ways } from '../tree/index.ts';
import { ENODATA, ESTALE, O_RDWR } from '../wire/index.ts';
import * as abi from './abi.ts';
import { FuseSession } from './session.ts';

const spec = (id = 'i-0001'): WorldSpec => ({ content: { instance: { id }, guest: {} } });

function begin(kind: 'virtiofs' | 'dev-fuse' = 'virtiofs') {
  const world = new World(spec());
  const fileSystem = world.fileSystem(kind === 'virtiofs' ? ways.virtiofs : ways.mount);
  const client = new Client(new FuseSession(fileSystem, { transport: kind, clock: world.clock }));
  assert.equal(client.init().errno, 0);
  return { world, client };
}

test('OPEN that met ESTALE and lost the race again opens the version of its own LOOKUP', () => {
  const { client, world } = begin();
  const first = client.walk('instance/id');
  world.load(spec('i-2'));
  assert.equal(client.open(first).errno, ESTALE);
  const second = client.walk('instance/id');
  world.load(spec('i-333'));
  const opened = client.open(second);
  assert.equal(opened.errno, 0);
  assert.equal(client.read(opened.get(abi.OpenOut.fh)).text, 'i-2');
  assert.equal(client.open(second).errno, ESTALE, 'the next open(2) sees the newest');
});

test('OPEN that is tried again may look at attributes and ACLs in between, as kernels do to check permissions', () => {
  for (const name of ['GETATTR', 'GETXATTR', 'READLINK', 'ACCESS']) {
    const { client, world } = begin('dev-fuse');
    const first = client.walk('instance/id');
    world.load(spec('i-2'));
    assert.equal(client.open(first).errno, ESTALE);
    const second = client.walk('instance/id');
    client.send(name, { nodeid: second, ...(name === 'GETXATTR' ? { rest: ['system.posix_acl_access'] } : {}) });
    world.load(spec('i-333'));
    assert.equal(client.open(second).errno, 0, name);
  }
});

test('OPEN and READLINK that are tried again meet what they looked up, though it is gone by then', () => {
  const { client } = begin('dev-fuse');
  const guest = client.walk('guest');
  const other = { pid: 7, nodeid: guest };
  const file = (name: string): void => {
    const made = client.send('CREATE', { ...other, in: { mode: 0o644, flags: O_RDWR }, rest: [name] });
    const fh = made.get(abi.OpenOut.fh, abi.EntryOut.sizeBytes);
    client.send('WRITE', { ...other, in: { fh, size: 1 }, rest: [new TextEncoder().encode(name)] });
    client.send('RELEASE', { ...other, in: { fh } });
  };
  const link = (name: string): void => void client.send('SYMLINK', { ...other, rest: [name, `to ${name}`] });
  const replace = (name: string, by: string): void => {
    assert.equal(client.send('RENAME', { ...other, in: { newdir: guest }, rest: [by, name] }).errno, 0);
  };
  for (const make of [file, link]) {
    for (const name of ['a', 'b', 'c']) make(name);
    const first = client.walk('guest/a');
    replace('a', 'b');
    const ask = (nodeid: number) => (make === file ? client.open(nodeid) : client.send('READLINK', { nodeid }));
    assert.equal(ask(first).errno, ESTALE);
    const second = client.walk('guest/a');
    replace('a', 'c');
    assert.equal(client.send('GETATTR', { nodeid: second }).errno, 0);
    const acl = { in: { size: 100 }, rest: ['system.posix_acl_access'] };
    assert.equal(client.send('GETXATTR', { nodeid: second, ...acl }).errno, ENODATA);
    const answer = ask(second);
    assert.equal(answer.errno, 0);
    assert.equal(
      make === file ? client.read(answer.get(abi.OpenOut.fh)).text : answer.text,
      make === file ? 'b' : 'to b',
    );
    assert.equal(client.send('UNLINK', { ...other, rest: ['a'] }).errno, 0);
  }
});

test('OPEN by /proc/self/fd of a version that is open gives that version, once Linux has tried again', () => {
  const { client, world } = begin();
  const nodeid = client.walk('instance/id');
  client.open(nodeid);
  world.load(spec('i-2'));
  assert.equal(client.open(nodeid).errno, ESTALE);
  const again = client.open(nodeid);
  assert.equal(again.errno, 0);
  assert.equal(client.read(again.get(abi.OpenOut.fh)).text, 'i-0001');
  assert.equal(client.open(nodeid).errno, ESTALE);
  assert.equal(client.open(nodeid, 0, 0, 7).errno, ESTALE, 'another thread');
});

test('OPEN is ESTALE when the thread did something else since, or let too much time pass', () => {
  for (const other of ['STATFS', '']) {
    const { client, world } = begin();
    const first = client.walk('instance/id');
    world.load(spec('i-2'));
    assert.equal(client.open(first).errno, ESTALE);
    const second = client.walk('instance/id');
    if (other !== '') client.send(other);
    else world.clock.advance(6000);
    world.load(spec('i-333'));
    assert.equal(client.open(second).errno, ESTALE, other);
  }
});

/** A file of 1 MiB, `open(2)` of which is tried again by each of these threads, and stops before its OPEN. */
function stoppedRetries(uids: readonly number[]) {
  const megabyte = (fill: string): WorldSpec => ({
    content: { instance: { id: fill.repeat(1024 * 1024) }, guest: {} },
  });
  const world = new World(megabyte('a'));
  const session = new FuseSession(world.fileSystem(ways.virtiofs), { transport: 'virtiofs', clock: world.clock });
  const client = new Client(session);
  client.init();
  const bytes = () => new Map(session.counters()).get('fuse.retryBytes');
  for (const [index, uid] of uids.entries()) {
    const pid = 1000 + index;
    const first = client.walk('instance/id');
    world.load(megabyte(index % 2 === 0 ? 'b' : 'c'));
    assert.equal(client.open(first, 0, uid, pid).errno, ESTALE);
    const directory = client.walk('instance');
    assert.equal(client.send('LOOKUP', { nodeid: directory, uid, pid, rest: ['id'] }).errno, 0);
  }
  return { world, session, client, bytes };
}

test('OPENs that are to be tried again keep old versions for seconds and up to 64 MiB, a uid up to a quarter', () => {
  const one = stoppedRetries(Array.from({ length: 40 }, () => 1000));
  assert.equal(one.bytes(), 16 * 1024 * 1024);
  const six = stoppedRetries(Array.from({ length: 120 }, (_, index) => 1000 + (index % 6)));
  assert.equal(six.bytes(), 64 * 1024 * 1024);
  const { session, world } = six;
  const due = session.nextDeadlineMs();
  assert.ok(due <= world.clock.monotonicMs() + 5000, String(due));
  world.clock.advance(5000);
  session.tick(world.clock.monotonicMs());
  assert.equal(six.bytes(), 0);
  assert.equal(session.nextDeadlineMs(), Number.POSITIVE_INFINITY);
});
