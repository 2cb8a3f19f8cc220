/** A device that ends between any two of its stores: every request is answered once, and nothing is lost or done twice. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Machine } from './machine.ts';
import { Guest, random, specAt, treeOf } from './script.ts';

interface Run {
  readonly story: readonly string[];
  readonly tree: readonly string[];
  readonly points: number;
  readonly deaths: number;
}

function run(seed: number, steps: number, killsAt: readonly number[]): Run {
  using machine = new Machine(specAt(0), killsAt);
  const guest = new Guest(machine);
  const next = random(seed);
  guest.start();
  for (let i = 0; i < steps; i++) guest.step(next);
  guest.finish();
  machine.front.stop();
  assert.deepEqual(machine.faults, []);
  return { story: guest.story, tree: treeOf(machine), points: machine.points, deaths: machine.deaths };
}

function same(seed: number, steps: number, killsAt: readonly number[], expected: Run): void {
  const told = `seed ${seed}, ${steps} steps, killed at ${killsAt.join(', ')}`;
  let got: Run;
  try {
    got = run(seed, steps, killsAt);
  } catch (error) {
    throw new Error(told, { cause: error });
  }
  assert.deepEqual(got.story, expected.story, told);
  assert.deepEqual(got.tree, expected.tree, told);
}

for (const act of ['forgetting', 'exclusive', 'reading', 'naming', 'listing'] as const)
  test(`a device killed at every point of ${act} goes on as if nothing had been`, (t) => {
    let begins = 0;
    let ends = 0;
    const play = (killsAt: readonly number[]): { story: readonly string[]; tree: readonly string[] } => {
      using machine = new Machine(specAt(0), killsAt);
      const guest = new Guest(machine);
      guest.start();
      if (killsAt.length === 0) begins = machine.points;
      guest[act]();
      if (killsAt.length === 0) ends = machine.points;
      assert.deepEqual(machine.faults, []);
      return { story: guest.story, tree: treeOf(machine) };
    };
    const whole = play([]);
    for (let at = begins; at <= ends; at++) assert.deepEqual(play([at]), whole, `killed at ${at}`);
    t.diagnostic(`${ends - begins} points: ${whole.story.join(', ')}`);
  });

test('a device killed at any point of a script goes on as if nothing had been', (t) => {
  const seed = 4;
  const steps = 25;
  const whole = run(seed, steps, []);
  for (let at = 1; at <= whole.points; at += 61) same(seed, steps, [at], whole);
  t.diagnostic(`${whole.points} points, ${whole.story.length} things told`);
});

test('a device killed at random points of random scripts, again and again, goes on as if nothing had been', (t) => {
  let deaths = 0;
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 2 ** 31 }),
      fc.integer({ min: 5, max: 40 }),
      fc.array(fc.integer({ min: 1, max: 1500 }), { minLength: 1, maxLength: 6 }),
      (seed, steps, killsAt) => {
        same(seed, steps, killsAt, run(seed, steps, []));
        deaths += killsAt.length;
      },
    ),
    { numRuns: 50 },
  );
  t.diagnostic(`${deaths} deaths at most`);
});

test('a successor that refuses what was in flight answers it EIO, once, and serves what comes next', () => {
  let refused = 0;
  for (let at = 700; at < 1000; at += 9) {
    using machine = new Machine(specAt(0), [at], true);
    const guest = new Guest(machine);
    guest.start();
    const next = random(4);
    for (let i = 0; i < 5; i++) guest.step(next);
    assert.notEqual(guest.walk('guest'), 0);
    if (guest.story.some((told) => told.endsWith(': 5'))) refused++;
  }
  assert.ok(refused > 0, 'some request was in flight');
});
