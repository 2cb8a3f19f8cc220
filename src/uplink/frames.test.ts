import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { encodeFrame, FrameReader, frameLimits, MalformedFrame } from './frames.ts';

const value = fc.letrec((tie) => ({
  any: fc.oneof(
    { maxDepth: 4 },
    fc.string(),
    fc.maxSafeInteger(),
    fc.boolean(),
    fc.constant(null),
    fc.uint8Array({ maxLength: 300 }).map((bytes) => new Uint8Array(bytes)),
    fc.array(tie('any'), { maxLength: 5 }),
    fc.dictionary(
      fc.string({ minLength: 1 }).filter((key) => key !== '__proto__'),
      tie('any'),
      { maxKeys: 5, noNullPrototype: true },
    ),
  ),
})).any;

test('FrameReader gives what was encoded wherever the bytes are cut', () => {
  fc.assert(
    fc.property(fc.array(value, { maxLength: 6 }), fc.array(fc.nat(), { maxLength: 12 }), (values, cuts) => {
      const frames = values.map(encodeFrame);
      const bytes = new Uint8Array(Buffer.concat(frames));
      const at = [...new Set([0, ...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length])].toSorted(
        (a, b) => a - b,
      );
      const reader = new FrameReader();
      const found = at.slice(1).flatMap((end, i) => [...reader.push(bytes.slice(at[i], end))]);
      assert.deepEqual(found, values);
      assert(reader.isBetween);
    }),
    { numRuns: 300 },
  );
});

test('FrameReader refuses a frame that is longer than is allowed before any of it has come', () => {
  const reader = new FrameReader(10);
  assert.deepEqual([...reader.push(encodeFrame('12345678'))], ['12345678']);
  assert.throws(() => [...reader.push(encodeFrame('0123456789').subarray(0, 4))], MalformedFrame);
});

test('FrameReader refuses a frame of very many small values', () => {
  const body = new Uint8Array(5 + 2 * frameLimits.values).fill(0x80);
  body[0] = 0xdd;
  new DataView(body.buffer).setUint32(1, body.length - 5);
  const header = new Uint8Array(4);
  new DataView(header.buffer).setUint32(0, body.length);
  const reader = new FrameReader();
  assert.throws(() => [...reader.push(header), ...reader.push(body)], MalformedFrame);
});
