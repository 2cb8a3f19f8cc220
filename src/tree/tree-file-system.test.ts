import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Symlink, World } from '../../test/tree/world.ts';
import {
  EACCES,
  EEXIST,
  EINVAL,
  ENOENT,
  O_CREAT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  RENAME_NOREPLACE,
} from '../wire/index.ts';
import { type Caller, type Way, ways } from './caller.ts';
import type { Handle } from './file-system.ts';
import type { TreeFileSystem } from './tree-file-system.ts';

const root: Caller = { uid: 0, gid: 0, pid: 1 };
const as = (uid: number, gid = uid): Caller => ({ uid, gid, pid: 1 });
const app = as(1000);
const stranger = as(2000);
const bytes = (text: string) => new TextEncoder().encode(text);
const text = (value: Uint8Array | number) => (typeof value === 'number' ? value : new TextDecoder().decode(value));

const inoOf = (world: World, path: string): number => {
  const node = world.authority.snapshot.resolve(path);
  assert.ok(node !== undefined, `${path} is not there`);
  return node.ino;
};

/** The errno of an operation that is answered before it returns. */
function errnoOf(ask: (done: (errno: number) => void) => void): number {
  let got: number | undefined;
  ask((errno) => {
    got = errno;
  });
  assert.ok(got !== undefined, 'not answered');
  return got;
}

const opened = (handle: Handle | number): Handle => {
  if (typeof handle === 'number') assert.fail(`open answered ${handle}`);
  return handle;
};

const names = (fileSystem: TreeFileSystem, caller: Caller, ino: number): string[] => {
  const directory = fileSystem.opendir(caller, ino);
  if (typeof directory === 'number') assert.fail(`opendir answered ${directory}`);
  const found: string[] = [];
  for (let index = 2; ; index++) {
    const entry = fileSystem.entry(caller, directory, index);
    if (entry === undefined) return found;
    found.push(entry.name);
  }
};

for (const way of [ways.virtiofs, ways.mount] satisfies Way[])
  test(`lookup and readdir hide a hidden file from who is in none of its groups for all we know, on ${way.name}`, () => {
    const world = new World({
      content: { instance: { id: 'x', ghost: 'secret' } },
      rules: [{ path: '/instance/ghost', group: 50, mode: 0o440, hidden: true }],
    });
    const fileSystem = world.fileSystem(way);
    const instance = inoOf(world, '/instance');
    assert.equal(fileSystem.lookup(stranger, instance, 'ghost'), ENOENT);
    assert.equal(fileSystem.getattr(stranger, inoOf(world, '/instance/ghost')), ENOENT);
    assert.deepEqual(names(fileSystem, stranger, instance), ['id']);
    assert.equal(typeof fileSystem.lookup(as(2000, 50), instance, 'ghost'), 'object');
  });

test('create, mkdir, symlink, rename and unlink tell no stranger of a hidden name in a directory that it cannot write', () => {
  const world = new World({
    content: { instance: { ghost: 'secret', hollow: {} } },
    rules: [
      { path: '/instance/ghost', owner: 1000, mode: 0o400, hidden: true },
      { path: '/instance/hollow', owner: 1000, mode: 0o700, hidden: true },
    ],
  });
  const fileSystem = world.fileSystem(ways.mount);
  const instance = inoOf(world, '/instance');
  const guest = inoOf(world, '/guest');
  assert.equal(
    errnoOf((done) => fileSystem.create(stranger, guest, 'mine', 0o600, 0, O_RDWR | O_CREAT, done)),
    0,
  );
  const attempts: Record<string, (name: string) => number> = {
    create: (name) => errnoOf((done) => fileSystem.create(stranger, instance, name, 0o600, 0, O_WRONLY, done)),
    createExclusive: (name) =>
      errnoOf((done) => fileSystem.create(stranger, instance, name, 0o600, 0, O_WRONLY | O_EXCL, done)),
    mkdir: (name) => errnoOf((done) => fileSystem.mkdir(stranger, instance, name, 0o700, 0, done)),
    symlink: (name) => errnoOf((done) => fileSystem.symlink(stranger, instance, name, bytes('x'), done)),
    unlink: (name) => errnoOf((done) => fileSystem.unlink(stranger, instance, name, done)),
    rmdir: (name) => errnoOf((done) => fileSystem.rmdir(stranger, instance, name, done)),
    renameFrom: (name) => errnoOf((done) => fileSystem.rename(stranger, instance, name, guest, 'other', 0, done)),
    renameOver: (name) => errnoOf((done) => fileSystem.rename(stranger, guest, 'mine', instance, name, 0, done)),
    renameNoReplace: (name) =>
      errnoOf((done) => fileSystem.rename(stranger, guest, 'mine', instance, name, RENAME_NOREPLACE, done)),
  };
  for (const [what, attempt] of Object.entries(attempts))
    for (const hidden of ['ghost', 'hollow'])
      assert.equal(attempt(hidden), attempt('absent'), `${what} of "${hidden}" tells that it is there`);
  // Who may see it is told as ever.
  assert.equal(
    errnoOf((done) => fileSystem.mkdir(app, instance, 'ghost', 0o700, 0, done)),
    EEXIST,
  );
});

test('open gives no version that its caller could not read, when the value was replaced and made public at once', () => {
  const world = new World({
    content: { secrets: { key: 'old and secret' } },
    rules: [{ path: '/secrets/key', owner: 1000, mode: 0o400 }],
  });
  const fileSystem = world.fileSystem(ways.mount);
  const old = fileSystem.node(inoOf(world, '/secrets/key'));
  assert.ok(old !== undefined);
  world.load({ content: { secrets: { key: 'new and public' } }, rules: [{ path: '/secrets/key', mode: 0o444 }] });
  assert.equal(fileSystem.open(stranger, old.ino, O_RDONLY, old), EACCES);
  assert.equal(world.audit.at(-1)?.verdict, 'denied');
  assert.equal(text(fileSystem.read(opened(fileSystem.open(stranger, old.ino, O_RDONLY)), 0, 99)), 'new and public');
  assert.equal(text(fileSystem.read(opened(fileSystem.open(root, old.ino, O_RDONLY, old)), 0, 99)), 'old and secret');
});

test('readlink refuses what the special keys of a rule refuse, and records it', () => {
  const world = new World({
    content: { instance: { link: new Symlink('/a/secret/place') } },
    rules: [{ path: '/instance/link', root: 'deny', untilMs: Date.UTC(2026, 0, 2) }],
  });
  const fileSystem = world.fileSystem(ways.virtiofs);
  const link = inoOf(world, '/instance/link');
  assert.equal(fileSystem.readlink(root, link), EACCES);
  assert.deepEqual(
    world.audit.map(({ operation, verdict }) => ({ operation, verdict })),
    [{ operation: 'readlink', verdict: 'denied' }],
  );
  assert.equal(text(fileSystem.readlink(app, link)), '/a/secret/place');
  world.clock.advance(48 * 3_600_000);
  assert.equal(fileSystem.readlink(app, link), EACCES);
});

test('readlink of a link under a once rule gives its target, and only files burn', () => {
  const world = new World({ content: { secrets: {} }, rules: [{ path: '/guest/box/**', once: true }] });
  const fileSystem = world.fileSystem(ways.virtiofs);
  assert.equal(
    errnoOf((done) => fileSystem.mkdir(app, inoOf(world, '/guest'), 'box', 0o700, 0, done)),
    0,
  );
  const box = inoOf(world, '/guest/box');
  assert.equal(
    errnoOf((done) => fileSystem.symlink(app, box, 'link', bytes('target'), done)),
    0,
  );
  assert.equal(
    errnoOf((done) => fileSystem.mkdir(app, box, 'below', 0o700, 0, done)),
    0,
  );
  assert.equal(text(fileSystem.readlink(app, inoOf(world, '/guest/box/link'))), 'target');
  for (const path of ['/guest/box/link', '/guest/box/below']) {
    assert.equal(world.commit({ op: 'burn', caller: app, ino: inoOf(world, path) }).errno, EINVAL);
    assert.equal(world.authority.snapshot.resolve(path)!.burned, false);
  }
});

test('a rewound directory lists nothing any more to an opener who may no longer read it', () => {
  const content = { instance: { box: { a: '1' } } };
  const world = new World({ content, rules: [{ path: '/instance/box', mode: 0o755 }] });
  const fileSystem = world.fileSystem(ways.virtiofs);
  const box = fileSystem.opendir(stranger, inoOf(world, '/instance/box'));
  assert.ok(typeof box === 'object');
  assert.equal(fileSystem.entry(stranger, box, 2)?.name, 'a');
  world.load({
    content: { instance: { box: { a: '1', b: '2' } } },
    rules: [{ path: '/instance/box', owner: 1000, mode: 0o711 }],
  });
  assert.equal(fileSystem.entry(stranger, box, 0)?.name, '.');
  assert.equal(fileSystem.entry(stranger, box, 2), undefined);
});

test('special keys bind open handles of what guests made', () => {
  const world = new World({
    content: {},
    rules: [{ path: '/guest/**', untilMs: Date.UTC(2026, 0, 2) }],
  });
  const fileSystem = world.fileSystem(ways.virtiofs);
  let handle: Handle | undefined;
  fileSystem.create(app, inoOf(world, '/guest'), 'f', 0o600, 0, O_RDWR, (_, made) => {
    handle = made?.handle;
  });
  assert.ok(handle !== undefined);
  const write = () => errnoOf((done) => fileSystem.write(handle!, 0, bytes('value'), done));
  assert.equal(write(), 0);
  assert.equal(text(fileSystem.read(handle, 0, 99)), 'value');
  world.clock.advance(48 * 3_600_000);
  assert.equal(fileSystem.read(handle, 0, 99), EACCES);
  assert.equal(write(), EACCES);
});

test('caching is not shared where a rule bounds how old a value may be', () => {
  const world = new World({
    content: { instance: { id: 'x', lease: 'y' } },
    rules: [{ path: '/instance/lease', maxStaleMs: 60_000 }],
  });
  const fileSystem = world.fileSystem(ways.virtiofs);
  assert.equal(fileSystem.caching(fileSystem.node(inoOf(world, '/instance/id'))!), 'shared');
  assert.equal(fileSystem.caching(fileSystem.node(inoOf(world, '/instance/lease'))!), 'private');
});

test('create of a name that is there lets nobody in by a group that no kernel has checked', () => {
  const world = new World({ content: {} });
  const fileSystem = world.fileSystem(ways.virtiofs);
  const guest = inoOf(world, '/guest');
  const create = (caller: Caller) =>
    errnoOf((done) => fileSystem.create(caller, guest, 'f', 0o660, 0, O_RDWR | O_CREAT, done));
  assert.equal(create(as(1000, 50)), 0);
  // The kernel asks for CREATE where it knows of no file, and so has checked none.
  assert.equal(create(stranger), EACCES);
  assert.equal(create(as(2000, 50)), 0);
  opened(fileSystem.open(stranger, inoOf(world, '/guest/f'), O_RDWR));
});
