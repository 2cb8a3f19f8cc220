import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { EACCES, ENOENT, ESTALE, O_RDONLY, O_WRONLY } from '../wire/index.ts';
import { type Way, ways } from './caller.ts';
import type { Handle } from './file-system.ts';
import type { Mutation, Settle, Upstream } from './mutation.ts';
import { Replica } from './replica.ts';
import { TreeFileSystem } from './tree-file-system.ts';

const root = { uid: 0, gid: 0, pid: 1 };

/** Two file systems on one replica, as in a device process, whose drops wait until they are let through. */
function begin() {
  const world = new World({ content: { guest: { 'f-one': '', 'f-two': '' } } });
  const replica = new Replica();
  const drops: (() => void)[] = [];
  const fileSystem = (way: Way): TreeFileSystem => {
    const through = world.authority.upstream(way, 'device');
    const upstream: Upstream = {
      submit: (mutation: Mutation, settle: Settle) => {
        if (mutation.op === 'drop') drops.push(() => through.submit(mutation, settle));
        else through.submit(mutation, settle);
      },
    };
    const { clock, sink: audit } = world;
    return new TreeFileSystem({ replica, way, upstream, audit, vm: 'test', clock });
  };
  const guest = fileSystem(ways.virtiofs);
  const mount = fileSystem(ways.mount);
  world.authority.subscribe('device', (delta) => replica.apply(delta));
  const directory = replica.snapshot.resolve('/guest')!.ino;
  let made: { readonly ino: number; readonly handle: Handle } | undefined;
  guest.create(root, directory, 'f', 0o600, 0, O_WRONLY, (_errno, value) => {
    made = { ino: value!.node.ino, handle: value!.handle };
  });
  const { ino, handle } = made!;
  guest.write(handle, 0, new TextEncoder().encode('bytes'), (errno) => assert.equal(errno, 0));
  guest.release(handle, (errno) => assert.equal(errno, 0));
  const unlink = (): void => guest.unlink(root, directory, 'f', (errno) => assert.equal(errno, 0));
  const letThrough = (): void => {
    for (const drop of drops.splice(0)) drop();
  };
  return { world, guest, mount, ino, unlink, drops, letThrough };
}

const text = (bytes: Uint8Array | number): string | number =>
  typeof bytes === 'number' ? bytes : new TextDecoder().decode(bytes);

test('unlink leaves the file to whoever has it open by another way in, until it is closed', () => {
  const { world, guest, mount, ino, unlink, drops, letThrough } = begin();
  const handle = mount.open(root, ino, O_RDONLY) as Handle;
  unlink();
  letThrough();
  assert.equal(text(mount.read(handle, 0, 100)), 'bytes');
  const again = guest.open(root, ino, O_RDONLY) as Handle;
  mount.release(handle, () => undefined);
  assert.equal(drops.length, 0, 'the other has it open');
  guest.release(again, () => undefined);
  assert.equal(drops.length, 1);
  letThrough();
  assert.equal(world.authority.snapshot.node(ino), undefined);
});

test('open of a file on its way out is ESTALE, or reads the version that was looked up', () => {
  const { world, guest, mount, ino, unlink, drops, letThrough } = begin();
  const version = guest.node(ino)!;
  unlink();
  assert.equal(drops.length, 1);
  assert.equal(mount.open(root, ino, O_RDONLY), ESTALE);
  assert.equal(mount.open(root, ino, O_WRONLY, version), ENOENT);
  const handle = mount.open(root, ino, O_RDONLY, version) as Handle;
  assert.equal(text(mount.read(handle, 0, 100)), 'bytes');
  letThrough();
  assert.equal(world.authority.snapshot.node(ino), undefined);
  assert.equal(text(mount.read(handle, 0, 100)), 'bytes');
  assert.equal(mount.open({ ...root, uid: 1000 }, ino, O_RDONLY, version), EACCES);
  mount.release(handle, (errno) => assert.equal(errno, 0));
  assert.equal(mount.openHandles, 0);
  assert.equal(drops.length, 0);
});

test('a file system that leaves the replica leaves the open unlinked files to the others', () => {
  const { world, guest, mount, ino, unlink, letThrough } = begin();
  const handle = guest.open(root, ino, O_RDONLY) as Handle;
  mount.open(root, ino, O_RDONLY);
  unlink();
  mount.close();
  letThrough();
  assert.equal(text(guest.read(handle, 0, 100)), 'bytes');
  guest.close();
  letThrough();
  assert.equal(world.authority.snapshot.node(ino), undefined);
});
