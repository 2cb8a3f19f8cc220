import assert from 'node:assert/strict';
import { test } from 'node:test';
import { firstTwo } from './cpus.ts';
import { compare, median, meets, percentile, type Sample } from './measure.ts';
import { table } from './report.ts';

test('median takes the middle, or the mean of the two in the middle', () => {
  assert.equal(median([9, 1, 5]), 5);
  assert.equal(median([4, 1, 3, 2]), 2.5);
  assert.throws(() => median([]), RangeError);
});

test('percentile stays inside the values when the share is 1', () => {
  assert.equal(percentile([1, 2, 3, 4], 0.5), 3);
  assert.equal(percentile([1, 2, 3, 4], 1), 4);
});

test('meets holds a ratio to an upper or a lower bound', () => {
  assert.ok(meets(1.1, { atMost: 1.1 }));
  assert.ok(!meets(1.11, { atMost: 1.1 }));
  assert.ok(meets(2.5, { atLeast: 2.5 }));
  assert.ok(!meets(2.4, { atLeast: 2.5 }));
});

test('compare takes turns and gives the median of the ratios when rounds differ', async () => {
  const turns: string[] = [];
  const side = (name: string, values: number[]) => async (): Promise<Sample> => {
    turns.push(name);
    return { n: 7, p50: values.shift()!, p99: 10 };
  };
  const row = await compare(
    { name: 'x', unit: 'us', target: { atMost: 1.5 }, ours: side('A', [4, 100, 6]), peer: side('B', [2, 3, 3]) },
    { group: 'c', peerName: 'peer', rounds: 3 },
  );
  assert.equal(turns.join(''), 'ABABAB');
  assert.equal(row.ratio, 2);
  assert.equal(row.ours.p50, 6);
  assert.deepEqual(row.ratioRange, [2, 100 / 3]);
  assert.equal(row.pass, false);
  const [, line] = table([row]);
  assert.match(line!, /2\.00 .*<= 1\.50 +MISS$/);
});

test('firstTwo reads lists of CPUs as Linux writes them, and refuses one CPU', () => {
  assert.deepEqual(firstTwo('0-3,8'), [0, 1]);
  assert.deepEqual(firstTwo('2,5-7'), [2, 5]);
  assert.throws(() => firstTwo('4'), /two CPUs/);
});
