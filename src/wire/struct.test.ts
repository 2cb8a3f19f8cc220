import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { struct } from './struct.ts';

const table = struct({
  tag: 'u8',
  code: 'u16',
  length: 'u32',
  error: 'i32',
  unique: 'u64',
  name: 'bytes3',
  last: 'u8',
});

test('struct lays fields one after the other when they have odd sizes', () => {
  assert.deepEqual(table.fields, ['tag', 'code', 'length', 'error', 'unique', 'name', 'last']);
  assert.deepEqual(
    table.fields.map((name) => [table[name].offset, table[name].size]),
    [[0, 1], [1, 2], [3, 4], [7, 4], [11, 8], [19, 3], [22, 1]], // biome-ignore format: a table
  );
  assert.equal(table.sizeBytes, 23);
});

test('struct reads what it wrote, and touches no other byte, when a message starts anywhere', () => {
  fc.assert(
    fc.property(
      fc.nat(20),
      fc.record({
        tag: fc.nat(0xff),
        code: fc.nat(0xffff),
        length: fc.nat({ max: 0xffff_ffff }),
        error: fc.integer(),
        unique: fc.maxSafeNat(),
        last: fc.nat(0xff),
      }),
      (base, values) => {
        const bytes = new Uint8Array(base + table.sizeBytes + 4).fill(0xaa);
        const view = new DataView(bytes.buffer);
        for (const [name, value] of Object.entries(values)) table[name as keyof typeof values].set(view, base, value);
        for (const [name, value] of Object.entries(values))
          assert.equal(table[name as keyof typeof values].get(view, base), value, name);
        assert.equal(table.unique.lo(view, base) + table.unique.hi(view, base) * 2 ** 32, values.unique);
        assert.equal(view.getUint32(base + 3, true), values.length, 'little-endian');
        const around = [
          ...bytes.subarray(0, base),
          ...bytes.subarray(base + 19, base + 22),
          ...bytes.subarray(base + 23),
        ];
        assert.ok(around.every((byte) => byte === 0xaa));
      },
    ),
  );
});

test('struct throws when an array of bytes is used as a number', () => {
  const view = new DataView(new ArrayBuffer(64));
  assert.throws(() => table.name.get(view, 0), TypeError);
  assert.throws(() => table.name.set(view, 0, 1), TypeError);
  assert.throws(() => table.code.lo(view, 0), TypeError);
});

test('struct throws RangeError when the message is too short for the field', () => {
  const view = new DataView(new ArrayBuffer(table.sizeBytes - 1));
  assert.throws(() => table.last.get(view, 0), RangeError);
});
