/** What rules say of files that lost their name while they were open. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { EACCES, EDQUOT, O_CREAT, O_RDWR } from '../wire/index.ts';
import { ways } from './caller.ts';
import type { Handle } from './file-system.ts';
import type { Rule } from './spec.ts';

const app = { uid: 1000, gid: 1000, pid: 1 };
const root = { uid: 0, gid: 0, pid: 1 };
const text = (value: string) => new TextEncoder().encode(value);

function begin(...rules: Rule[]) {
  const world = new World({ content: { guest: {} }, rules });
  const fileSystem = world.fileSystem(ways.mount);
  let errno = -1;
  const told = (answer: number): void => void (errno = answer);
  const inoOf = (path: string) => world.authority.snapshot.resolve(path)!.ino;
  return {
    world,
    fileSystem,
    mkdir: (parent: string, name: string) => {
      fileSystem.mkdir(app, inoOf(parent), name, 0o755, 0, told);
      return errno;
    },
    create: (parent: string, name: string): Handle => {
      let handle: Handle | undefined;
      fileSystem.create(app, inoOf(parent), name, 0o600, 0, O_CREAT | O_RDWR, (_, made) => (handle = made?.handle));
      assert.ok(handle);
      return handle;
    },
    unlink: (parent: string, name: string) => {
      fileSystem.unlink(app, inoOf(parent), name, told);
      return errno;
    },
    rmdir: (parent: string, name: string) => {
      fileSystem.rmdir(app, inoOf(parent), name, told);
      return errno;
    },
    write: (handle: Handle, value: string) => {
      fileSystem.write(handle, 0, text(value), told);
      return errno;
    },
    read: (handle: Handle) => fileSystem.read(handle, 0, 100),
    release: (handle: Handle) => fileSystem.release(handle, told),
  };
}

test('a rule’s time window ends for a handle whose file lost its name', () => {
  const { world, create, unlink, write, read } = begin({ path: '/guest/*', untilMs: Date.UTC(2026, 0, 1) + 1000 });
  const handle = create('/guest', 'f');
  assert.equal(write(handle, 'x'), 0);
  assert.equal(unlink('/guest', 'f'), 0);
  assert.deepEqual(read(handle), text('x'));
  world.clock.advance(1000);
  assert.equal(read(handle), EACCES);
  assert.equal(write(handle, 'y'), EACCES);
});

test('a rule that comes later guards a file that lost its name under another', () => {
  const content = { guest: {} };
  const { world, create, unlink, write, read } = begin({ path: '/guest/*', durable: 'host' });
  const handle = create('/guest', 'f');
  write(handle, 'x');
  unlink('/guest', 'f');
  world.load({ content, rules: [{ path: '/guest/f', untilMs: 1 }] });
  assert.equal(read(handle), EACCES);
});

test('a rule’s quota counts what lost its name until it is closed, though its directory is gone', () => {
  const { world, mkdir, rmdir, create, unlink, write, release } = begin({ path: '/guest/box', quota: { bytes: 100 } });
  assert.equal(mkdir('/guest', 'box'), 0);
  assert.equal(mkdir('/guest/box', 'd'), 0);
  const held = create('/guest/box/d', 'f');
  assert.equal(unlink('/guest/box/d', 'f'), 0);
  assert.equal(write(held, 'x'.repeat(101)), EDQUOT);
  assert.equal(write(held, 'x'.repeat(80)), 0);
  assert.equal(rmdir('/guest/box', 'd'), 0);
  const other = create('/guest/box', 'g');
  assert.equal(write(other, 'x'.repeat(21)), EDQUOT);
  // A directory that moves has all counted anew.
  mkdir('/guest', 'a');
  world.commit({
    op: 'rename',
    caller: root,
    parentIno: world.authority.snapshot.resolve('/guest')!.ino,
    name: 'a',
    newParentIno: world.authority.snapshot.resolve('/guest')!.ino,
    newName: 'b',
    flags: 0,
  });
  assert.equal(write(other, 'x'.repeat(21)), EDQUOT);
  assert.equal(write(other, 'x'.repeat(20)), 0);
  release(held);
  assert.equal(write(other, 'x'.repeat(100)), 0);
  assert.equal(write(other, 'x'.repeat(101)), EDQUOT);
});

test('a file whose path is too long to be remembered loses its value with its name, where a rule guards it', () => {
  const { mkdir, create, unlink, write, read } = begin({ path: '/guest/**', untilMs: Date.UTC(2027, 0, 1) });
  let directory = '/guest';
  for (let i = 0; i < 5; i++) {
    assert.equal(mkdir(directory, 'd'.repeat(250)), 0);
    directory += `/${'d'.repeat(250)}`;
  }
  const handle = create(directory, 'f');
  assert.equal(write(handle, 'x'), 0);
  assert.equal(unlink(directory, 'f'), 0);
  assert.equal(read(handle), EACCES);
});
