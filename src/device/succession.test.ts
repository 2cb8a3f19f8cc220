import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Journal } from './journal.ts';
import { readControl, TargetJournal } from './succession.ts';

const BYTES = 9 * 1024 * 1024;
const nobody = { put: () => true, drop: () => undefined, finish: () => true };

function targetJournal(buffer: ArrayBuffer): TargetJournal {
  const journal = new Journal(
    {
      u8: new Uint8Array(buffer),
      u16: new Uint16Array(buffer),
      u32: new Uint32Array(buffer),
      f64: new Float64Array(buffer),
    },
    BYTES,
  );
  return new TargetJournal(nobody, 'vm', { journal, [Symbol.dispose]: () => undefined }, [], assert.fail);
}

test('TargetJournal refuses what was in flight once successor after successor died over it', () => {
  const buffer = new ArrayBuffer(BYTES);
  const refuses = (): boolean => targetJournal(buffer).takeUp();
  assert.deepEqual([refuses(), refuses(), refuses(), refuses()], [false, false, false, true]);
  targetJournal(buffer).settle();
  assert.equal(refuses(), false);
});

const queue = {
  num: 64,
  descAddr: 4096,
  availAddr: 8192,
  usedAddr: 12288,
  isEnabled: true,
  isStarted: true,
  hasRun: true,
  wantsStart: false,
  base: -1,
  kick: 1,
  call: 2,
  err: 0,
};
const saved = {
  hasProtocolFeatures: true,
  hasReplyAck: true,
  hasEventIdx: true,
  hasIndirect: true,
  regions: [{ guestAddr: 0, sizeBytes: 4096, frontendAddr: 4096, fileOffset: 0, keptAs: 3 }],
  queues: [queue],
};
const control = { saved, number: 4, reply: '', takenBytes: 20 };

test('readControl gives back what was committed', () => {
  const buffer = new ArrayBuffer(BYTES);
  const target = targetJournal(buffer);
  assert.equal(target.commit(saved, Uint8Array.of(1, 2), 20), true);
  const read = readControl(targetJournal(buffer).file.journal.control());
  assert.deepEqual(read, { saved, number: 1, reply: 'AQI=', takenBytes: 20 });
});

test('readControl refuses what no device process of ours saves', () => {
  const spoiled: unknown[] = [
    null,
    {},
    { ...control, number: -1 },
    { ...control, takenBytes: 1e9 },
    { ...control, reply: 'x'.repeat(1000) },
    { ...control, saved: { ...saved, regions: [{}] } },
    { ...control, saved: { ...saved, regions: Array.from({ length: 100 }, () => saved.regions[0]) } },
    { ...control, saved: { ...saved, queues: [{ ...queue, num: 63 }] } },
    { ...control, saved: { ...saved, queues: [{ ...queue, num: 2 ** 20 }] } },
    { ...control, saved: { ...saved, queues: [{ ...queue, base: 70_000 }] } },
    { ...control, saved: { ...saved, queues: [null] } },
  ];
  for (const state of spoiled) assert.equal(readControl(JSON.stringify(state)), undefined, JSON.stringify(state));
  assert.equal(readControl('{'), undefined);
});
