import assert from 'node:assert/strict';
import { mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';
import { type Reload, ServedTree } from './served-tree.ts';
import { loadSpecOrThrow } from './spec-file.ts';

const withinMs = 5_000;

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

async function until(what: () => boolean, words: string): Promise<void> {
  const end = performance.now() + withinMs;
  while (!what()) {
    assert.ok(performance.now() < end, `${words} within ${withinMs} ms`);
    await wait(10);
  }
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
  await until(() => modeOf(tree) === 0o400, 'a rule was not taken up');
  assert.equal(noteOf(tree), 'two');
});

test('ServedTree tells of a reload that changed rules alone, and not of one that changed nothing', async (t) => {
  const { write, serve, reloads } = stage(t);
  const tree = serve();
  write('policy: [{ path: /instance/id, root: deny }]\n');
  await until(() => reloads.length > 0, 'the rule was not told of');
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
    await until(() => rejected.length > 0, `the path "${name}" was not rejected`);
    assert.match(rejected.splice(0).join('\n'), /reading ".*" failed/);
  }
  assert.equal(modeOf(tree), 0o444);
  write('policy: [{ path: /instance/id, mode: "0400" }]\n');
  await until(() => reloads.length > 0, 'the mended file was not taken up');
  assert.equal(modeOf(tree), 0o400);
});
