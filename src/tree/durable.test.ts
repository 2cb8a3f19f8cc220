import assert from 'node:assert/strict';
import { test } from 'node:test';
import { specOf, World } from '../../test/tree/world.ts';
import { O_CREAT, O_RDWR } from '../wire/index.ts';
import { ways } from './caller.ts';
import { nodesToKeep } from './durable.ts';
import { Policy } from './policy.ts';

const root = { uid: 0, gid: 0, pid: 1 };

function begin(durable?: 'host') {
  const rules = durable === undefined ? [] : [{ path: '/guest/.agent/*', durable }];
  const given = { content: { guest: { '.agent': {} } }, rules };
  const world = new World(given);
  const policy = new Policy(specOf(given).policy);
  const fileSystem = world.fileSystem(ways.mount);
  const { authority } = world;
  const inoOf = (path: string) => authority.snapshot.resolve(path)!.ino;
  const keptOf = (change: () => void): string[] => {
    const before = authority.snapshot;
    change();
    const next = authority.snapshot;
    const put = [...next.nodes.values()].filter((node) => before.node(node.ino) !== node && node.madeBy === 'guest');
    return nodesToKeep(before, next, put, policy, true).kept.map((node) => next.path(node));
  };
  return { fileSystem, inoOf, keptOf };
}

const create = ({ fileSystem, inoOf, keptOf }: ReturnType<typeof begin>, parent: string, name: string): string[] =>
  keptOf(() => fileSystem.create(root, inoOf(parent), name, 0o600, 0, O_CREAT | O_RDWR, () => undefined));

test('nodesToKeep leaves out what an agent tells of its guest, where no rule keeps it', () => {
  const world = begin();
  assert.deepEqual(create(world, '/guest/.agent', 'status.json'), []);
  assert.deepEqual(create(world, '/guest', 'status.json'), ['/guest/status.json']);
  assert.deepEqual(create(begin('host'), '/guest/.agent', 'status.json'), ['/guest/.agent/status.json']);
});

test('nodesToKeep keeps what moves out of it, with all that lies below', () => {
  const world = begin();
  const { fileSystem, inoOf, keptOf } = world;
  fileSystem.mkdir(root, inoOf('/guest/.agent'), 'd', 0o700, 0, () => undefined);
  create(world, '/guest/.agent/d', 'f');
  const move = () => fileSystem.rename(root, inoOf('/guest/.agent'), 'd', inoOf('/guest'), 'd', 0, () => undefined);
  assert.deepEqual(keptOf(move), ['/guest/d', '/guest/d/f']);
});
