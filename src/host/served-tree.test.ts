import assert from 'node:assert/strict';
import { mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/until.ts';
import { type Reload, ServedTree } from './served-tree.ts';
import { loadSpecOrThrow } from './spec-file.ts';

function stage(t: TestContext) {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-served-tree-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const file = join(directory, 'web.yaml');
  const write = (policy: string) => {
    const text = `porthole: 1\nmetadata: { instance: { id: x, note: { file: note.txt } } }\n${policy}`;
    writeFileSync(`${file}.new`, text);
    renameSync(`${file}.new`, file);
  };
  writeFileSync(join(directory, 'note.txt'), 'one');
  write('');
  const reloads: Reload[] = [];
  const rejected: string[] = [];
  const serve = (loaded = loadSpecOrThrow(file)) => {
    const tree = new ServedTree({ vm: 'web', file, loaded, state: undefined, audit: () => true, wallMs: Date.now });
    t.after(() => tree[Symbol.dispose]());
    tree.watch({ onReload: (reload) => reloads.push(reload), onRejected: (error) => rejected.push(error.message) });
    t.after(() => assert.deepEqual(rejected, []));
    return tree;
  };
  return { directory, file, write, serve, reloads, rejected };
}

const modeOf = (tree: ServedTree) => tree.authority.snapshot.resolve('/instance/id')!.mode & 0o777;
const noteOf = (tree: ServedTree) => new TextDecoder().decode(tree.authority.snapshot.resolve('/instance/note')!.bytes);

test('ServedTree takes up what changed between its loading and the beginning of its watch', async (t) => {
  const { directory, file, write, serve } = stage(t);
  const loaded = loadSpecOrThrow(file);
  write('policy: [{ path: /instance/id, mode: "0400" }]\n');
  writeFileSync(join(directory, 'note.txt'), 'two');
  const tree = serve(loaded);
  assert.equal(modeOf(tree), 0o444);
  await until('the rule', () => modeOf(tree) === 0o400);
  assert.equal(noteOf(tree), 'two');
});

test('ServedTree tells of a reload that changed rules alone, and not of one that changed nothing', async (t) => {
  const { write, serve, reloads } = stage(t);
  const tree = serve();
  write('policy: [{ path: /instance/id, root: deny }]\n');
  await until('word of the rule', () => reloads.length > 0);
  assert.deepEqual(
    reloads.map(({ changes, changed }) => ({ changes, changed })),
    [{ changes: 0, changed: true }],
  );
  assert.equal(tree.authority.replica.policy.effective('/instance/id').rootDenied, true);
});

test('ServedTree keeps the tree and goes on watching when a value comes from a path that nothing can be at', async (t) => {
  const { directory, write, serve, reloads, rejected } = stage(t);
  symlinkSync('loop', join(directory, 'loop'));
  const tree = serve();
  for (const name of ['loop', 'n'.repeat(300), 'note.txt/below']) {
    writeFileSync(join(directory, 'web.yaml'), `porthole: 1\nmetadata: { instance: { id: { file: ${name} } } }\n`);
    await until(`the path "${name}" to be rejected`, () => rejected.length > 0);
    assert.match(rejected.splice(0).join('\n'), /reading ".*" failed/);
  }
  assert.equal(modeOf(tree), 0o444);
  write('policy: [{ path: /instance/id, mode: "0400" }]\n');
  await until('the mended file', () => reloads.length > 0);
  assert.equal(modeOf(tree), 0o400);
});
