import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { IntMap, NameMap } from './persistent.ts';

test('IntMap agrees with Map and leaves older versions alone when changed', () => {
  const key = fc.oneof(fc.nat(100), fc.nat(100_000), fc.nat(2 ** 31 - 1));
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

test('IntMap.get answers undefined when the key is no index', () => {
  const map = IntMap.empty<string>().set(1, 'a').set(40, 'b');
  for (const key of [-1, 0.5 + 2 ** 40, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, 2 ** 53])
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
