import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { IntMap, NameMap } from './persistent.ts';

test('IntMap agrees with Map and leaves older versions alone when changed', () => {
  const key = fc.oneof(fc.nat(100), fc.nat(100_000), fc.nat(2 ** 31 - 1), fc.maxSafeNat());
  fc.assert(
    fc.property(fc.array(fc.tuple(key, fc.boolean())), (steps) => {
      let map = IntMap.empty<number>();
      const model = new Map<number, number>();
      const versions: { map: IntMap<number>; model: Map<number, number> }[] = [];
      for (const [index, [k, put]] of steps.entries()) {
        versions.push({ map, model: new Map(model) });
        map = put ? map.set(k, index) : map.delete(k);
        if (put) model.set(k, index);
        else model.delete(k);
      }
      versions.push({ map, model });
      for (const version of versions) {
        assert.equal(version.map.size, version.model.size);
        for (const [k] of steps) assert.equal(version.map.get(k), version.model.get(k));
        const sorted = [...version.model].toSorted(([a], [b]) => a - b).map(([, value]) => value);
        assert.deepEqual([...version.map.values()], sorted);
      }
    }),
  );
});

test('IntMap.get answers undefined when the key is no key', () => {
  const map = IntMap.empty<string>().set(1, 'a').set(40, 'b');
  for (const key of [-1, 1.5, -0.5, 0.5 + 2 ** 40, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, 2 ** 32 + 1, 2 ** 53])
    assert.equal(map.get(key), undefined);
});

test('NameMap agrees with Map in order of names and leaves older versions alone when changed', () => {
  const name = fc.oneof(fc.constantFrom('a', 'b', 'c', 'dd'), fc.string({ unit: 'binary' }));
  fc.assert(
    fc.property(fc.array(fc.tuple(name, fc.boolean())), (steps) => {
      let map = NameMap.empty;
      const model = new Map<string, number>();
      const versions: { map: NameMap; model: Map<string, number> }[] = [];
      for (const [index, [k, put]] of steps.entries()) {
        versions.push({ map, model: new Map(model) });
        map = put ? map.set(k, index) : map.delete(k);
        if (put) model.set(k, index);
        else model.delete(k);
      }
      versions.push({ map, model });
      for (const version of versions) {
        assert.equal(version.map.size, version.model.size);
        assert.deepEqual(
          [...version.map],
          [...version.model].toSorted(([a], [b]) => (a < b ? -1 : 1)),
        );
        for (const [k] of steps) assert.equal(version.map.get(k), version.model.get(k));
      }
    }),
  );
});

test('IntMap keeps nothing of deleted keys when keys go up and up', () => {
  let map = IntMap.empty<number>().set(1, 1);
  for (let key = 2; key < 300_000; key++) map = map.set(key, key).delete(key);
  assert.equal(map.size, 1);
  const { heapUsed } = process.memoryUsage();
  const kept: IntMap<number>[] = [];
  for (let copy = 0; copy < 8; copy++) {
    let other = IntMap.empty<number>().set(1, 1);
    for (let key = 2; key < 300_000; key++) other = other.set(key, key).delete(key);
    kept.push(other);
  }
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
  const grownBytes = process.memoryUsage().heapUsed - heapUsed;
  assert.equal(kept.length, 8);
  assert.ok(grownBytes < 4 * 1024 * 1024, `eight maps of one entry keep ${grownBytes} bytes`);
});

test('NameMap.at agrees with the order of iteration', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.string({ maxLength: 3 })), (names) => {
      let map = NameMap.empty;
      for (const [index, name] of names.entries()) map = map.set(name, index);
      const inOrder = [...map];
      assert.deepEqual(
        inOrder.map((_, rank) => map.at(rank)),
        inOrder,
      );
      for (const past of [names.length, -1, Number.NaN, 0.5]) assert.equal(map.at(past), undefined);
    }),
  );
});
