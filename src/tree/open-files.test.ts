import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { World } from '../../test/tree/world.ts';
import {
  EACCES,
  EBADF,
  EINTR,
  EINVAL,
  EMFILE,
  ENFILE,
  ESTALE,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
} from '../wire/index.ts';
import { type Caller, ways } from './caller.ts';
import { type Handle, PENDING } from './file-system.ts';
import { openLimits } from './open-files.ts';
import { Replica } from './replica.ts';
import { TreeFileSystem } from './tree-file-system.ts';

const app: Caller = { uid: 1000, gid: 1000, pid: 1 };
const root: Caller = { uid: 0, gid: 0, pid: 1 };
const as = (uid: number): Caller => ({ uid, gid: uid, pid: 1 });
const text = (bytes: Uint8Array | number) => (typeof bytes === 'number' ? bytes : new TextDecoder().decode(bytes));

function opened(world: World, caller: Caller, path: string, flags: number, fileSystem: TreeFileSystem): Handle {
  const handle = fileSystem.open(caller, world.authority.snapshot.resolve(path)!.ino, flags);
  if (typeof handle === 'number') assert.fail(`open of ${path} answered ${handle}`);
  return handle;
}

/** The answer of an operation that is answered before it returns. */
function answer<T>(ask: (done: (errno: number, value: T | undefined) => void) => void): {
  errno: number;
  value: T | undefined;
} {
  let got: { errno: number; value: T | undefined } | undefined;
  ask((errno, value) => {
    assert.equal(got, undefined, 'answered twice');
    got = { errno, value };
  });
  return got!;
}

test('open answers EMFILE when a uid has a quarter of the handles, ENFILE when all are taken', () => {
  const world = new World({ content: { instance: { id: 'x' } } });
  const fileSystem = world.fileSystem(ways.direct);
  const { ino } = world.authority.snapshot.resolve('/instance/id')!;
  const directory = world.authority.snapshot.resolve('/instance')!.ino;
  const quarter = openLimits.handles / 4;
  const handles: Handle[] = [];
  for (const uid of [1, 2, 3, 4]) {
    for (let i = 0; i < quarter; i++) handles.push(opened(world, as(uid), '/instance/id', O_RDONLY, fileSystem));
    if (uid < 4) assert.equal(fileSystem.open(as(uid), ino, O_RDONLY), EMFILE);
  }
  assert.equal(fileSystem.open(as(5), ino, O_RDONLY), ENFILE);
  assert.equal(fileSystem.opendir(as(5), directory), ENFILE);
  for (const handle of handles.splice(0, 2)) fileSystem.release(handle, () => {});
  const listing = fileSystem.opendir(as(5), directory);
  assert.ok(typeof listing === 'object');
  fileSystem.releasedir(listing);
  fileSystem.releasedir(listing);
  for (const handle of handles) fileSystem.release(handle, () => {});
  assert.equal(fileSystem.openHandles, 0);
});

test('release counts each handle once, in any order', () => {
  const world = new World({ content: { instance: { a: '1', b: '2' } } });
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.boolean(), fc.nat(20), fc.boolean()), { maxLength: 60 }), (steps) => {
      const fileSystem = world.fileSystem(ways.direct);
      const open: Handle[] = [];
      for (const [opens, which, b] of steps) {
        if (opens) open.push(opened(world, app, b ? '/instance/b' : '/instance/a', O_RDONLY, fileSystem));
        else if (open.length > 0) {
          const [handle] = open.splice(which % open.length, 1);
          assert.equal(answer((done) => fileSystem.release(handle!, done)).errno, 0);
          assert.equal(answer((done) => fileSystem.release(handle!, done)).errno, EBADF);
          assert.equal(fileSystem.read(handle!, 0, 10), EBADF);
        }
        assert.equal(fileSystem.openHandles, open.length);
        for (const handle of open) assert.ok(typeof fileSystem.read(handle, 0, 10) === 'object');
      }
      fileSystem.close();
    }),
  );
});

test('a handle keeps the version that it opened, until old versions take too much', () => {
  const mebibyte = (fill: number) => new Uint8Array(1024 * 1024).fill(fill);
  const world = new World({ content: { instance: { big: mebibyte(0) } } });
  const fileSystem = world.fileSystem(ways.direct);
  const versions = openLimits.oldVersionBytes / (1024 * 1024);
  const handles: Handle[] = [];
  for (let fill = 1; fill <= versions + 4; fill++) {
    handles.push(opened(world, app, '/instance/big', O_RDONLY, fileSystem));
    world.load({ content: { instance: { big: mebibyte(fill) } } });
  }
  const first = handles.map((handle) => fileSystem.read(handle, 0, 1));
  assert.deepEqual(first.slice(0, 4), [ESTALE, ESTALE, ESTALE, ESTALE]);
  assert.deepEqual(
    first.slice(4).map((bytes) => (bytes as Uint8Array)[0]),
    Array.from({ length: versions }, (_, i) => i + 4),
  );
  assert.equal(handles[0]!.node.bytes, undefined, 'what was given up is not kept alive');
  for (const handle of handles) fileSystem.release(handle, () => {});
});

test('a handle of what guests write keeps no version alive', () => {
  const world = new World({ content: { instance: { f: 'old' } }, rules: [{ path: '/instance/f', mode: 0o666 }] });
  const handle = opened(world, app, '/instance/f', O_RDWR, world.fileSystem(ways.direct));
  assert.equal(handle.node.bytes, undefined);
});

test('O_TRUNC stays pending when the write that brings it is refused', () => {
  const world = new World({
    content: { instance: { f: 'a longer old value' } },
    rules: [{ path: '/instance/f', mode: 0o666 }],
    policy: { quota: { bytes: 40, nodes: 9 } },
  });
  const fileSystem = world.fileSystem(ways.direct);
  const handle = opened(world, app, '/instance/f', O_WRONLY | O_TRUNC, fileSystem);
  assert.ok(fileSystem.pendingTruncation(handle.ino));
  assert.notEqual(answer((done) => fileSystem.write(handle, 0, new Uint8Array(41), done)).errno, 0);
  assert.ok(fileSystem.pendingTruncation(handle.ino));
  assert.equal(answer((done) => fileSystem.write(handle, 0, new TextEncoder().encode('new'), done)).errno, 0);
  assert.ok(!fileSystem.pendingTruncation(handle.ino));
  assert.equal(text(world.authority.snapshot.resolve('/instance/f')!.bytes!), 'new');
});

test('ftruncate by a handle of another file is EINVAL', () => {
  const world = new World({
    content: { instance: { f: 'one', g: 'two' } },
    rules: [{ path: '/instance/*', mode: 0o666 }],
  });
  const fileSystem = world.fileSystem(ways.direct);
  const handle = opened(world, app, '/instance/f', O_RDWR, fileSystem);
  const { ino } = world.authority.snapshot.resolve('/instance/g')!;
  assert.equal(answer((done) => fileSystem.setattr(app, ino, { sizeBytes: 0 }, handle, done)).errno, EINVAL);
});

test('reset ends every handle, and late answers find nothing to count', () => {
  const world = new World({ content: { instance: { f: 'value' } }, rules: [{ path: '/instance/f', mode: 0o666 }] });
  const fileSystem = world.fileSystem(ways.direct);
  const handle = opened(world, app, '/instance/f', O_RDWR | O_TRUNC, fileSystem);
  const listing = fileSystem.opendir(app, 1);
  assert.ok(typeof listing === 'object');
  fileSystem.reset();
  assert.equal(fileSystem.openHandles, 0);
  assert.equal(answer((done) => fileSystem.write(handle, 0, new Uint8Array(3), done)).errno, EBADF);
  assert.equal(answer((done) => fileSystem.release(handle, done)).errno, EBADF);
  fileSystem.releasedir(listing);
  assert.equal(fileSystem.openHandles, 0);
  assert.ok(!fileSystem.pendingTruncation(handle.ino));
  assert.equal(text(world.authority.snapshot.resolve('/instance/f')!.bytes!), 'value');
});

test('every read of a secret is recorded, also of one that its owner may write', () => {
  const world = new World({
    content: { secrets: { a: '1', b: '2', c: '3' }, instance: { id: 'x' } },
    rules: [
      { path: '/secrets/a', mode: 0o600, owner: 1000 },
      { path: '/secrets/b', mode: 0o400, owner: 1000 },
      { path: '/secrets/c', mode: 0o444 },
    ],
  });
  const fileSystem = world.fileSystem(ways.direct);
  for (const path of ['/secrets/a', '/secrets/b', '/secrets/c', '/instance/id'])
    opened(world, app, path, O_RDONLY, fileSystem);
  assert.deepEqual(
    world.audit.map(({ path, verdict }) => `${path} ${verdict}`),
    ['/secrets/a allowed', '/secrets/b allowed'],
  );
  world.auditWorks = false;
  assert.ok(typeof fileSystem.open(app, world.authority.snapshot.resolve('/secrets/a')!.ino, O_RDONLY) === 'number');
});

test('opendir needs the read bit of a directory that all may search', () => {
  const world = new World({ content: { secrets: { a: '1' } } });
  const fileSystem = world.fileSystem(ways.direct);
  const { ino } = world.authority.snapshot.resolve('/secrets')!;
  assert.equal(fileSystem.opendir(app, ino), EACCES);
  assert.ok(typeof fileSystem.opendir(root, ino) === 'object');
});

test('entry lists what the caller is told of, as it was when it was opened', () => {
  const world = new World({
    content: { user: { a: '', b: '', c: '', d: '', e: '' } },
    rules: [
      { path: '/user/b', hidden: true, mode: 0o400 },
      { path: '/user/d', hidden: true, mode: 0o400 },
    ],
  });
  const fileSystem = world.fileSystem(ways.direct);
  const { ino } = world.authority.snapshot.resolve('/user')!;
  const list = (caller: Caller) => {
    const directory = fileSystem.opendir(caller, ino);
    assert.ok(typeof directory === 'object');
    const names: string[] = [];
    for (
      let index = 0, entry = fileSystem.entry(caller, directory, 0);
      entry !== undefined;
      entry = fileSystem.entry(caller, directory, ++index)
    ) {
      names.push(entry.name);
      if (index === 3) world.load({ content: { user: { z: '' } } });
    }
    fileSystem.releasedir(directory);
    return names;
  };
  assert.deepEqual(list(app), ['.', '..', 'a', 'c', 'e']);
  assert.deepEqual(list(root), ['.', '..', 'z']);
});

/** A file system whose mutations are committed one by one, by `commit`. */
function slowly(world: World) {
  const replica = new Replica();
  const upstream = world.authority.upstream(ways.direct, 'slow');
  const sent: (() => void)[] = [];
  const fileSystem = new TreeFileSystem({
    replica,
    way: ways.direct,
    upstream: { submit: (mutation, settle) => sent.push(() => upstream.submit(mutation, settle)) },
    audit: world.sink,
    vm: 'test',
    clock: world.clock,
  });
  world.authority.subscribe('slow', (delta) => replica.apply(delta));
  return { fileSystem, commit: () => sent.shift()!() };
}

const writable = { content: { instance: { f: 'old' } }, rules: [{ path: '/instance/f', mode: 0o666 }] };

test('release with a truncation shows size 0 and makes reads wait until it is answered, for close(2) does not', () => {
  const world = new World(writable);
  const { fileSystem, commit } = slowly(world);
  const writer = opened(world, app, '/instance/f', O_WRONLY | O_TRUNC, fileSystem);
  const reader = opened(world, root, '/instance/f', O_RDONLY, fileSystem);
  assert.equal(text(fileSystem.read(reader, 0, 9)), 'old', 'until the release');
  fileSystem.release(writer, () => {});
  assert.ok(fileSystem.pendingTruncation(reader.ino));
  assert.equal(fileSystem.read(reader, 0, 9), PENDING);
  const read: (string | number)[] = [];
  const wait = () => fileSystem.waitRead(reader, 0, 9, (errno, bytes) => read.push(errno === 0 ? text(bytes!) : errno));
  wait();
  wait()();
  assert.deepEqual(read, [EINTR]);
  commit();
  assert.deepEqual(read, [EINTR, '']);
  assert.ok(!fileSystem.pendingTruncation(reader.ino));
  assert.equal(text(fileSystem.read(reader, 0, 9)), '');
});

test('a truncation that a release sent and that was refused leaves the old bytes to who waited', () => {
  const world = new World(writable);
  const { fileSystem, commit } = slowly(world);
  const writer = opened(world, app, '/instance/f', O_WRONLY | O_TRUNC, fileSystem);
  const reader = opened(world, root, '/instance/f', O_RDONLY, fileSystem);
  fileSystem.release(writer, () => {});
  const read: (string | number)[] = [];
  fileSystem.waitRead(reader, 0, 9, (_, bytes) => read.push(text(bytes!)));
  world.load({ ...writable, rules: [{ path: '/instance/f', mode: 0o444 }] });
  commit();
  assert.deepEqual(read, ['old']);
  assert.ok(!fileSystem.pendingTruncation(reader.ino));
});

test('write with a truncation shows size 0 until it is answered, and others read the old bytes', () => {
  const world = new World(writable);
  const { fileSystem, commit } = slowly(world);
  const writer = opened(world, app, '/instance/f', O_WRONLY | O_TRUNC, fileSystem);
  const reader = opened(world, root, '/instance/f', O_RDONLY, fileSystem);
  fileSystem.write(writer, 0, new TextEncoder().encode('new'), () => {});
  fileSystem.write(writer, 3, new TextEncoder().encode('er'), () => {});
  assert.ok(fileSystem.pendingTruncation(reader.ino));
  assert.equal(text(fileSystem.read(reader, 0, 9)), 'old');
  commit();
  assert.ok(!fileSystem.pendingTruncation(reader.ino));
  assert.equal(text(fileSystem.read(reader, 0, 9)), 'new');
  commit();
  assert.equal(text(fileSystem.read(reader, 0, 9)), 'newer');
});
