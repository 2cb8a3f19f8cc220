import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Queue } from './queue.ts';

test('Queue gives turns in order, so many at once and so many of one', async () => {
  const queue = new Queue({ most: 3, mostOfOne: 2 });
  const { signal } = new AbortController();
  const leaving = new AbortController();
  const got: string[] = [];
  const take = async (who: string, until: AbortSignal = signal): Promise<() => void> => {
    const giveBack = await queue.take(who, until);
    got.push(who);
    return giveBack;
  };
  const [first] = [take('a'), take('a'), take('a'), take('b')];
  const left = assert.rejects(take('c', leaving.signal), /gone/);
  const last = take('c');
  leaving.abort(new Error('gone'));
  await left;
  assert.deepEqual(got, ['a', 'a', 'b']);
  const giveBack = await first!;
  giveBack();
  giveBack();
  await new Promise(setImmediate);
  assert.deepEqual(got, ['a', 'a', 'b', 'a']);
  void last;
});
