import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TreeCommit } from '../records/index.ts';
import { HostRefusal } from './host-error.ts';
import { TreeHistory } from './tree-history.ts';

const commit = (revision: number, ...paths: string[]): TreeCommit => ({
  epoch: 1,
  revision,
  changes: paths.map((path) => ({ path, what: 'changed' })),
  policyChanged: false,
});

async function take(watch: AsyncIterable<TreeCommit>, count: number): Promise<number[]> {
  const revisions: number[] = [];
  for await (const { revision } of watch) {
    revisions.push(revision);
    if (revisions.length === count) break;
  }
  return revisions;
}

test('TreeHistory tells every commit from a revision on, at or below a path', async () => {
  const history = new TreeHistory(1, 5);
  history.add(commit(6, '/a', '/b/c'));
  history.add(commit(8, '/b'));
  history.add(commit(9, '/bc'));
  assert.deepEqual(await take(history.watch('/', 6, undefined), 3), [6, 8, 9]);
  assert.deepEqual(await take(history.watch('/b', 6, undefined), 2), [6, 8]);
  const waiting = take(history.watch('/b', undefined, undefined), 2);
  history.add(commit(10, '/a'));
  history.add(commit(11, '/b/d/e'));
  history.add(commit(12, '/b'));
  assert.deepEqual(await waiting, [11, 12]);
});

test('TreeHistory tells how far it has looked, without changes, when nothing is at or below the path', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let nowMs = 0;
  t.mock.method(performance, 'now', () => nowMs);
  const history = new TreeHistory(1, 5);
  const watching = history.watch('/b', undefined, undefined)[Symbol.asyncIterator]();
  const next = watching.next();
  history.add(commit(6, '/a'));
  history.passed(7);
  await new Promise((resolve) => setImmediate(resolve));
  nowMs += 1_000;
  t.mock.timers.tick(1_000);
  const { value } = await next;
  assert.deepEqual([value.revision, value.changes, value.policyChanged], [7, [], false]);
  const later = watching.next();
  history.add(commit(8, '/b'));
  assert.equal((await later).value.revision, 8);
});

test('TreeHistory says what is too old, what lies ahead, and when it ends', async () => {
  const history = new TreeHistory(1, 5);
  const refusal = (code: string) => (error: unknown) => error instanceof HostRefusal && error.code === code;
  assert.throws(() => history.watch('/', 5, undefined), refusal('HOST_COMPACTED'));
  assert.throws(() => history.watch('/', 7, undefined), refusal('HOST_INVALID'));
  const slow = history.watch('/', 6, undefined)[Symbol.asyncIterator]();
  for (let revision = 6; revision < 6 + 5000; revision++) history.add(commit(revision, '/a'));
  await assert.rejects(slow.next(), refusal('HOST_COMPACTED'));
  const stop = new AbortController();
  const aborted = take(history.watch('/', undefined, stop.signal), 1);
  stop.abort(new Error('enough'));
  await assert.rejects(aborted, /enough/);
  const ended = take(history.watch('/', undefined, undefined), 1);
  history.end(new HostRefusal('HOST_NO_VM', 'the VM is deleted'));
  await assert.rejects(ended, refusal('HOST_NO_VM'));
});
