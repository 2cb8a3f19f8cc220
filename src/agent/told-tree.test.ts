import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AgentError } from './agent-error.ts';
import { commitOf, treeOf } from './told-tree.ts';

const node = {
  ino: 1,
  parent: 1,
  name: '',
  madeBy: 'outside',
  mode: 0o40755,
  uid: 0,
  gid: 0,
  nlink: 1,
  size: 0,
  dataRevision: 1,
  revision: 1,
  atime: [0, 0],
  mtime: [0, 0],
  ctime: [0, 0],
};
const file = { ...node, ino: 5, parent: 3, name: 'f', mode: 0o100444, size: 2, bytes: 'aGk=' };
const directory = { ...node, ino: 3, parent: 1, name: 'd' };
const tree = {
  boot: 'b',
  revision: 7,
  policy: { rules: [], users: {}, groups: {}, quota: {} },
  usage: { bytes: 0, nodes: 0 },
  nodes: [file, node, directory],
};
const isGarbage = (error: unknown): boolean => error instanceof AgentError && error.code === 'SERVER_GARBAGE';

test('treeOf puts parents before children', () => {
  const { boot, delta } = treeOf(tree);
  assert.equal(boot, 'b');
  assert.deepEqual(
    delta.put.map(({ ino }) => ino),
    [1, 3, 5],
  );
  assert.deepEqual([...delta.put[2]!.bytes!], [104, 105]);
});

test('treeOf takes no tree that is none', () => {
  const trees: unknown[] = [
    undefined,
    [],
    {},
    { ...tree, nodes: [] },
    { ...tree, nodes: [node, file] },
    { ...tree, nodes: [node, { ...directory, parent: 3 }, { ...directory, ino: 4, parent: 6 }] },
    { ...tree, revision: -1 },
    { ...tree, revision: '7' },
    { ...tree, policy: { rules: 1 } },
    ...Object.keys(node)
      .filter((key) => key !== 'ino')
      .map((key) => ({ ...tree, nodes: [{ ...node, [key]: {} }] })),
  ];
  for (const one of trees) assert.throws(() => treeOf(one), isGarbage, JSON.stringify(one));
});

test('commitOf reads a commit and a heartbeat, and nothing else', () => {
  const commit = { revision: 8, put: [file], remove: [3], changes: [], usage: tree.usage };
  assert.equal(commitOf(JSON.stringify(commit))?.put[0]?.ino, 5);
  assert.equal(commitOf('{"revision":8,"heartbeat":true}'), undefined);
  for (const line of ['', '{', 'null', '[]', '{}', '{"revision":1e99}', JSON.stringify({ ...commit, remove: [-1] })])
    assert.throws(() => commitOf(line), isGarbage, line);
});
