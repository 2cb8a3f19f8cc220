import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turnOfNode } from 'node:timers/promises';
import { Turns } from './turns.ts';

const limits = { atOnce: 4, atOnceOfUid: 2, waitingOfUid: 3, bytes: 100, bytesOfUid: 40 };

test('Turns gives a uid its share, lets so many wait, and refuses the rest', async () => {
  const turns = new Turns(limits);
  const started: string[] = [];
  const ends: (() => void)[] = [];
  const begin = async (turn: (() => void) | Promise<() => void>, name: string): Promise<void> => {
    ends.push(await turn);
    started.push(name);
  };
  const take = (uid: number, name: string): boolean => {
    const turn = turns.take(uid);
    if (turn === undefined) return false;
    void begin(turn, name);
    return true;
  };
  const flood = Array.from({ length: 7 }, (_, i) => take(1000, `flood ${i}`));
  assert.deepEqual(flood, [true, true, true, true, true, false, false]);
  assert.ok(take(1001, 'other') && take(1002, 'third') && take(1003, 'fourth'));
  await turnOfNode();
  assert.deepEqual(started, ['flood 0', 'flood 1', 'other', 'third']);
  ends[0]!();
  ends[0]!();
  await turnOfNode();
  assert.equal(started.at(-1), 'flood 2', 'it had waited longest');
  ends[1]!();
  await turnOfNode();
  assert.equal(started.at(-1), 'fourth', 'and then it is the next one’s turn');
  for (let i = 2; i < ends.length; i++) {
    ends[i]!();
    await turnOfNode();
  }
  assert.deepEqual(started.slice(-2), ['flood 3', 'flood 4']);
  assert.equal(started.length, 8);
});

test('Turns counts the bytes of what has a turn or waits for one, until that ends', async () => {
  const turns = new Turns(limits);
  const first = turns.take(1000, 20);
  const second = turns.take(1000);
  const third = turns.take(1000, 20);
  assert.ok(typeof first === 'function' && typeof second === 'function' && third instanceof Promise);
  assert.equal(turns.take(1000, 1), undefined, 'that would be more than the uid may have');
  const fourth = turns.take(1001, 40);
  assert.ok(typeof fourth === 'function');
  assert.ok(turns.take(1002, 20) !== undefined);
  assert.equal(turns.take(1003, 1), undefined, 'that would be more than all may have');
  assert.ok(turns.take(1003) !== undefined);
  fourth();
  assert.ok(turns.take(1003, 40) !== undefined);
  first();
  (await third)();
  second();
  assert.ok(turns.take(1000, 40) !== undefined);
});
