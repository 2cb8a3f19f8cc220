import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Renewals } from './renewals.ts';

class Stage {
  readonly renewed: string[] = [];
  readonly trouble: string[] = [];
  readonly waited: number[] = [];
  readonly broken = new Set<string>();
  readonly unserved = new Set<string>();
  underway = 0;
  most = 0;
  readonly renewals = new Renewals({
    renew: async (vm) => {
      this.most = Math.max(this.most, ++this.underway);
      await Promise.resolve();
      this.underway--;
      this.renewed.push(vm);
      if (this.broken.has(vm)) throw new Error('it does not start');
    },
    isServed: (vm) => !this.unserved.has(vm),
    onTrouble: (vm, what) => this.trouble.push(`${vm}: ${what}`),
    wait: async (ms, signal) => {
      this.waited.push(ms);
      signal.throwIfAborted();
    },
  });
}

test('Renewals renews one VM at a time, each once', async () => {
  const stage = new Stage();
  for (const vm of ['a', 'b', 'b', 'c']) stage.renewals.add(vm);
  stage.renewals.remove('c');
  await stage.renewals.idle;
  assert.deepEqual([stage.renewed, stage.most], [['a', 'b'], 1]);
  stage.renewals.add('d');
  await stage.renewals.idle;
  assert.deepEqual(stage.renewed, ['a', 'b', 'd']);
  assert.equal(stage.renewals.givenUp, undefined);
});

test('Renewals goes on after a failure only when that VM is served again', async () => {
  const stage = new Stage();
  stage.broken.add('a');
  stage.renewals.add('a');
  stage.renewals.add('b');
  await stage.renewals.idle;
  assert.deepEqual([stage.renewed, stage.waited[0]], [['a', 'b'], 1_000]);
  assert.match(stage.trouble[0]!, /^a: replacing .* failed: it does not start$/);

  stage.broken.add('c');
  stage.unserved.add('c');
  for (const vm of ['c', 'd']) stage.renewals.add(vm);
  await stage.renewals.idle;
  assert.deepEqual(stage.renewed, ['a', 'b', 'c'], 'd is left as it is');
  assert.match(stage.renewals.givenUp!, /it does not start/);
  stage.renewals.add('e');
  await stage.renewals.idle;
  assert.deepEqual(stage.renewed, ['a', 'b', 'c']);
});

test('Renewals gives up after three failures', async () => {
  const stage = new Stage();
  for (const vm of ['a', 'b', 'c', 'd']) {
    stage.broken.add(vm);
    stage.renewals.add(vm);
  }
  await stage.renewals.idle;
  assert.deepEqual(stage.renewed, ['a', 'b', 'c']);
  assert.ok(stage.renewals.givenUp !== undefined);
});

test('Renewals stops where it is when it is closed', async () => {
  const stage = new Stage();
  for (const vm of ['a', 'b']) stage.renewals.add(vm);
  await stage.renewals.close();
  assert.deepEqual([stage.renewed, stage.trouble], [['a'], []]);
});
