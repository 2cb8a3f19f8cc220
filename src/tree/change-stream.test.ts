import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World, type WorldSpec } from '../../test/tree/world.ts';
import { EBUSY, EINTR, EMFILE, ENFILE, O_RDONLY } from '../wire/index.ts';
import { type Caller, ways } from './caller.ts';
import { changeLimits } from './change-stream.ts';
import { type Handle, PENDING } from './file-system.ts';
import type { Node } from './node.ts';
import { Replica } from './replica.ts';
import { TreeFileSystem } from './tree-file-system.ts';

const as = (uid: number): Caller => ({ uid, gid: uid, pid: 1 });
const app = as(1000);
const ENOUGH = 1 << 20;

interface Line {
  readonly revision: number;
  readonly missed?: true;
  readonly heartbeat?: true;
  readonly changes?: readonly { readonly path: string; readonly change: string }[];
}

const parse = (text: string): Line[] => {
  assert.ok(text === '' || text.endsWith('\n'), 'a cut line');
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Line);
};
const told = (lines: readonly Line[]) =>
  lines.flatMap(({ changes = [] }) => changes.map(({ path, change }) => `${change} ${path}`)).toSorted();

class Reader {
  readonly handle: Handle;
  readonly fileSystem: TreeFileSystem;

  constructor(fileSystem: TreeFileSystem, caller: Caller) {
    this.fileSystem = fileSystem;
    const node = fileSystem.lookup(caller, 1, '.changes');
    assert.ok(typeof node === 'object');
    const handle = fileSystem.open(caller, node.ino, O_RDONLY);
    assert.ok(typeof handle === 'object');
    this.handle = handle;
  }

  /** Everything that is there to read, in reads of `sizeBytes`. */
  drain(sizeBytes = ENOUGH): Line[] {
    let text = '';
    for (;;) {
      const bytes = this.fileSystem.read(this.handle, 0, sizeBytes);
      if (bytes === PENDING) return parse(text);
      assert.ok(typeof bytes === 'object' && bytes.length > 0 && bytes.length <= sizeBytes);
      text += new TextDecoder().decode(bytes);
    }
  }

  wait(sizeBytes = ENOUGH) {
    const waiting = { errno: undefined as number | undefined, text: '', giveUp: () => {} };
    waiting.giveUp = this.fileSystem.waitRead(this.handle, 0, sizeBytes, (errno, bytes) => {
      assert.equal(waiting.errno, undefined, 'answered twice');
      waiting.errno = errno;
      waiting.text = new TextDecoder().decode(bytes);
    });
    return waiting;
  }
}

const valued = (value: string, rules: WorldSpec['rules'] = []): WorldSpec => ({
  content: { instance: { id: value }, guest: {} },
  rules,
});
const make = (world: World, uid: number, op: 'create' | 'mkdir', path: string, name: string, mode: number) =>
  assert.equal(
    world.commit({ op, caller: as(uid), parentIno: world.authority.snapshot.resolve(path)!.ino, name, mode, umask: 0 })
      .errno,
    0,
  );

test('/.changes gives one line a commit when it is read in pieces of any size', () => {
  const world = new World(valued('0'));
  for (const sizeBytes of [1, 7, 64, ENOUGH]) {
    const reader = new Reader(world.fileSystem(ways.direct), app);
    const { revision } = world.authority.snapshot;
    for (const value of ['a', 'b', 'c']) world.load(valued(`${value}${sizeBytes}`));
    const changes = [{ path: '/instance/id', change: 'changed' }];
    assert.deepEqual(
      reader.drain(sizeBytes),
      [1, 2, 3].map((step) => ({ revision: revision + step, changes })),
    );
    assert.deepEqual(reader.drain(), []);
  }
});

test('/.changes says what was missed when a reader is further behind than the backlog', () => {
  const world = new World(valued('start'));
  const reader = new Reader(world.fileSystem(ways.direct), app);
  const { revision } = world.authority.snapshot;
  const commits = changeLimits.backlog + 10;
  for (let i = 0; i < commits; i++) world.load(valued(`${i}`));
  const lines = reader.drain();
  assert.deepEqual(lines[0], { revision: revision + 10, missed: true });
  assert.deepEqual(
    lines.slice(1).map((line) => line.revision),
    Array.from({ length: changeLimits.backlog }, (_, i) => revision + 11 + i),
  );
});

test('/.changes tells of a commit as missed when its line would be too long', () => {
  const world = new World(valued('start'));
  const reader = new Reader(world.fileSystem(ways.direct), app);
  world.load({
    content: { instance: Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`a-long-name-${i}`, ''])) },
  });
  assert.deepEqual(reader.drain(), [{ revision: world.authority.snapshot.revision, missed: true }]);
});

test('/.changes tells nobody a name that the caller could not learn, neither before nor after a move', () => {
  const world = new World({
    content: { instance: { id: 'x' }, secrets: { key: '1', open: '2' } },
    rules: [{ path: '/secrets/open', mode: 0o444 }],
  });
  const fileSystem = world.fileSystem(ways.direct);
  const [owner, stranger, root] = [as(1000), as(1001), as(0)].map((caller) => new Reader(fileSystem, caller));
  const inoOf = (path: string) => world.authority.snapshot.resolve(path)!.ino;
  world.load({
    content: { instance: { id: 'y' }, secrets: { key: '3', open: '4' } },
    rules: [{ path: '/secrets/open', mode: 0o444 }],
  });
  assert.deepEqual(told(stranger!.drain()), ['changed /instance/id', 'changed /secrets/open']);
  assert.deepEqual(told(root!.drain()), ['changed /instance/id', 'changed /secrets/key', 'changed /secrets/open']);
  owner!.drain();
  make(world, 1000, 'mkdir', '/guest', 'private', 0o700);
  make(world, 1000, 'create', '/guest/private', 'f', 0o644);
  const rename = {
    op: 'rename',
    caller: as(1000),
    parentIno: inoOf('/guest/private'),
    name: 'f',
    newParentIno: inoOf('/guest'),
    newName: 'g',
    flags: 0,
  } as const;
  assert.equal(world.commit(rename).errno, 0);
  assert.deepEqual(told(stranger!.drain()), ['created /guest/g', 'created /guest/private']);
  assert.deepEqual(told(owner!.drain()), [
    'created /guest/g',
    'created /guest/private',
    'created /guest/private/f',
    'removed /guest/private/f',
  ]);
  // Removed together with the directory that held it.
  world.load({ content: { instance: {} } });
  assert.ok(told(stranger!.drain()).includes('removed /secrets/open'));
  assert.ok(told(root!.drain()).includes('removed /secrets/key'));
});

test('waitRead is answered by the next commit that the caller may see, and by a heartbeat when there is none', () => {
  const rules = [{ path: '/instance/id', mode: 0o400, owner: 1000 }];
  const world = new World(valued('0', rules));
  const fileSystem = world.fileSystem(ways.virtiofs);
  const mine = new Reader(fileSystem, app).wait();
  const blind = new Reader(fileSystem, as(1001));
  world.load({ content: { instance: { id: '0' }, secrets: { k: 'x' } }, rules });
  blind.drain();
  const other = blind.wait();
  world.load({ content: { instance: { id: '0' }, secrets: { k: 'y' } }, rules });
  assert.equal(other.errno, undefined);
  assert.equal(fileSystem.nextDeadlineMs(), world.clock.monotonicMs() + ways.virtiofs.heartbeatMs);
  fileSystem.tick(world.clock.monotonicMs());
  assert.equal(other.errno, undefined);
  world.clock.advance(ways.virtiofs.heartbeatMs);
  fileSystem.tick(world.clock.monotonicMs());
  assert.deepEqual(parse(other.text), [{ revision: world.authority.snapshot.revision, heartbeat: true }]);
  assert.equal(mine.errno, 0);
  assert.equal(fileSystem.nextDeadlineMs(), Number.POSITIVE_INFINITY);
});

test('waitRead is answered at once when there is something to tell, with EINTR when it is given up or closed', () => {
  const world = new World(valued('0'));
  const fileSystem = world.fileSystem(ways.direct);
  const reader = new Reader(fileSystem, app);
  world.load(valued('1'));
  assert.equal(reader.wait().errno, 0);
  const given = reader.wait();
  given.giveUp();
  given.giveUp();
  assert.equal(given.errno, EINTR);
  const closed = reader.wait();
  fileSystem.release(reader.handle, () => {});
  assert.equal(closed.errno, EINTR);
});

test('waitRead gives two readers of one handle whole lines between them', () => {
  const world = new World(valued('0'));
  const fileSystem = world.fileSystem(ways.direct);
  const reader = new Reader(fileSystem, app);
  const [first, second] = [reader.wait(10), reader.wait(ENOUGH)];
  fileSystem.flushWaiters();
  assert.equal(first.text.length, 10);
  assert.equal(parse(first.text + second.text).length, 1);
});

test('waitRead answers EBUSY when a uid has a quarter of the waiting readers, or all are taken', () => {
  const world = new World(valued('0'));
  const fileSystem = world.fileSystem(ways.direct);
  const share = changeLimits.waiters / 4;
  const waiting = [1, 2, 3, 4].flatMap((uid) =>
    Array.from({ length: share }, () => new Reader(fileSystem, as(uid)).wait()),
  );
  assert.equal(new Reader(fileSystem, as(1)).wait().errno, EBUSY);
  assert.equal(new Reader(fileSystem, as(5)).wait().errno, EBUSY);
  assert.ok(waiting.every(({ errno }) => errno === undefined));
  world.load(valued('1'));
  assert.ok(waiting.every(({ errno, text }) => errno === 0 && parse(text).length === 1));
  assert.equal(new Reader(fileSystem, as(5)).wait().errno, undefined);
});

test('/.changes tells of a gap when a replica is sent the whole tree again after an outage', () => {
  const world = new World(valued('0'));
  const replica = new Replica();
  const fileSystem = new TreeFileSystem({
    replica,
    way: ways.direct,
    upstream: world.authority.upstream(ways.direct, 'replica'),
    audit: world.sink,
    vm: 'test',
    clock: world.clock,
  });
  world.authority.subscribe('replica', (delta) => replica.apply(delta))();
  const current = new Reader(fileSystem, app);
  replica.apply(world.authority.full());
  assert.deepEqual(current.drain(), [], 'nothing was missed');
  world.load(valued('1'));
  const waiting = current.wait();
  replica.apply(world.authority.full());
  assert.deepEqual(parse(waiting.text), [{ revision: world.authority.snapshot.revision, missed: true }]);
});

test('/.changes can not be written, whatever a rule says', () => {
  const world = new World({ content: {}, rules: [{ path: '/.changes', mode: 0o666 }] });
  const write = {
    op: 'write',
    caller: app,
    ino: 2,
    offset: 0,
    data: new Uint8Array(3),
    append: false,
    truncate: false,
    grantedAtOpen: true,
  } as const;
  assert.notEqual(world.commit(write).errno, 0);
  assert.notEqual(world.commit({ op: 'truncate', caller: app, ino: 2, sizeBytes: 5, grantedAtOpen: false }).errno, 0);
});

test('a reader is told nothing of what only a group may read that it is in for all that is known, though a kernel checks', () => {
  const spec = (value: string): WorldSpec => ({
    content: { instance: { ours: { key: value } } },
    rules: [
      { path: '/instance/ours', group: 50, mode: 0o750 },
      { path: '/instance/ours/key', group: 50, mode: 0o440 },
    ],
  });
  const world = new World(spec('1'));
  const fileSystem = world.fileSystem(ways.virtiofs);
  const stranger = new Reader(fileSystem, as(2000));
  const member = new Reader(fileSystem, { uid: 1000, gid: 50, pid: 1 });
  world.load(spec('2'));
  assert.deepEqual(told(stranger.drain()), []);
  assert.deepEqual(told(member.drain()), ['changed /instance/ours/key']);
});

test('a reader is told nothing of what lies in a directory that is hidden from it, though it may search it', () => {
  const spec = (value: string): WorldSpec => ({
    content: { instance: { ghost: { key: value } } },
    rules: [
      { path: '/instance/ghost', owner: 1000, mode: 0o711, hidden: true },
      { path: '/instance/ghost/key', mode: 0o444 },
    ],
  });
  const world = new World(spec('1'));
  const fileSystem = world.fileSystem(ways.direct);
  const stranger = new Reader(fileSystem, as(2000));
  const owner = new Reader(fileSystem, app);
  world.load(spec('2'));
  assert.deepEqual(told(stranger.drain()), []);
  assert.deepEqual(told(owner.drain()), ['changed /instance/ghost/key']);
});

test('open of /.changes is refused to a uid beyond a quarter of the handles, and to all beyond all of them', () => {
  const world = new World({ content: {} });
  const fileSystem = world.fileSystem(ways.virtiofs);
  const { ino } = fileSystem.lookup(app, 1, '.changes') as Node;
  const open = (uid: number) => fileSystem.open(as(uid), ino, O_RDONLY);
  const share = changeLimits.handles / 4;
  const fill = (uid: number) => Array.from({ length: share }, () => open(uid) as Handle);
  const first = fill(1000);
  assert.ok(first.every((handle) => typeof handle === 'object'));
  assert.equal(open(1000), EMFILE);
  for (const uid of [1001, 1002, 1003]) fill(uid);
  assert.equal(open(1004), ENFILE);
  fileSystem.release(first[0]!, () => undefined);
  assert.equal(typeof open(1004), 'object');
  assert.equal(open(1000), ENFILE);
  fileSystem.reset();
  assert.equal(typeof open(1000), 'object');
});

test('/.changes tells of a commit of more changes than it remembers that something was missed, and remembers no more', () => {
  const many = (value: string) =>
    Object.fromEntries(Array.from({ length: changeLimits.commitChanges / 2 }, (_, i) => [`f${i}`, value]));
  const of = (more: string, ...values: string[]): WorldSpec => ({
    content: { instance: { ...Object.fromEntries(values.map((value, i) => [`d${i}`, many(value)])), more } },
  });
  const world = new World(of('', 'a', 'a', 'a'));
  const fileSystem = world.fileSystem(ways.virtiofs);
  const reader = new Reader(fileSystem, app);
  const { revision } = world.load(of('', 'b', 'b', 'b'));
  assert.deepEqual(reader.drain(), [{ revision, missed: true }]);
  const late = new Reader(fileSystem, app);
  // Each is remembered, and all together are too many.
  const commits = Math.floor(changeLimits.backlogChanges / (changeLimits.commitChanges / 2)) + 2;
  for (let i = 0; i < commits; i++) world.load(of('', `${i}`, 'b', 'b'));
  const { revision: last } = world.load(of('new', `${commits - 1}`, 'b', 'b'));
  const lines = late.drain();
  assert.equal(lines[0]?.missed, true);
  assert.deepEqual(told(lines.slice(-1)), ['changed /instance/more']);
  assert.equal(lines.at(-1)?.revision, last);
});
