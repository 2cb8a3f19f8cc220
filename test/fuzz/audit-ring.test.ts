/** Audit records on their way through the ring, whoever is killed or full when. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import * as fc from 'fast-check';
import { AuditRing } from '../../src/device/audit-ring.ts';
import { auditLine } from '../../src/host/audit-line.ts';
import type { AuditRingReader } from '../../src/host/audit-ring-reader.ts';
import type { AuditRecord } from '../../src/tree/index.ts';
import { until } from '../until.ts';
import { DATA_BYTES, goodRecord, Killed, RingStage } from './audit-ring-stage.ts';

const u32 = fc.nat(0xffff_ffff);
const count = fc.option(fc.integer({ min: 1, max: 0xffff_ffff }), { nil: undefined });
const someText = fc.oneof(
  fc.string({ minLength: 1, maxLength: 40, unit: 'binary' }),
  fc.constantFrom('/secrets/db', `/${'long/'.repeat(2000)}`, '/ü/\u2028/🔑', 'あ'.repeat(3000), '/guest/\u001b[2J'),
);
const record: fc.Arbitrary<AuditRecord> = fc
  .record({
    timeMs: fc.nat(4e12),
    vm: fc.constant('vm'),
    way: fc.constantFrom('virtiofs', 'mount'),
    operation: fc.constantFrom('open', 'rename'),
    path: someText,
    uid: u32,
    gid: u32,
    pid: u32,
    program: fc.option(
      someText.map((text) => text.slice(0, 1000)),
      { nil: undefined },
    ),
    revision: fc.maxSafeNat(),
    verdict: fc.constantFrom('allowed' as const, 'denied' as const),
    rule: someText,
    errno: fc.constant(undefined),
    dropped: count,
    droppedOthers: count,
  })
  .map((one) => ({ ...one, errno: one.verdict === 'denied' ? 'EACCES' : undefined }));

type Step =
  | { readonly do: 'records'; readonly records: readonly AuditRecord[]; readonly times: number }
  | { readonly do: 'drain' | 'new device process' | 'new daemon' | 'room' }
  | { readonly do: 'full' | 'kill'; readonly after: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('records' as const),
      records: fc.array(record, { minLength: 1, maxLength: 4 }),
      times: fc.constantFrom(1, 2, 20, 200),
    }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('drain', 'new device process', 'new daemon', 'room') }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constantFrom('full', 'kill'), after: fc.nat(3000) }) },
);

/** Plays one history, and answers what was accepted and what the log has in the end. */
function play(
  first: number,
  steps: readonly Step[],
): { readonly accepted: string[]; readonly log: string; readonly refused: number } {
  const stage = new RingStage();
  stage.make(first);
  let reader: AuditRingReader = stage.reader();
  let ring = new AuditRing(stage.file);
  const accepted: string[] = [];
  let refused = 0;
  const killed = (): void => {
    reader[Symbol.dispose]();
    reader = stage.reader();
  };
  const drain = (): void => {
    try {
      reader.drain();
    } catch (error) {
      assert.ok(error instanceof Killed);
      killed();
    }
  };
  try {
    for (const one of steps) {
      switch (one.do) {
        case 'records':
          for (let i = 0; i < one.times; i++)
            for (const sent of one.records)
              if (ring.record(sent)) accepted.push(auditLine(sent));
              else {
                refused++;
                if (stage.log.writable)
                  assert.ok(reader.waitingBytes > DATA_BYTES / 4, 'refused only where it is full');
              }
          break;
        case 'drain':
          drain();
          break;
        case 'new device process':
          ring.close();
          try {
            reader.renew();
          } catch (error) {
            assert.ok(error instanceof Killed);
            killed();
          }
          ring = new AuditRing(stage.file);
          break;
        case 'new daemon':
          killed();
          break;
        case 'room':
          stage.log.room = Number.POSITIVE_INFINITY;
          break;
        case 'full':
          stage.log.room = one.after;
          break;
        case 'kill':
          stage.log.killAfter = one.after;
          break;
      }
    }
    stage.log.room = Number.POSITIVE_INFINITY;
    stage.log.killAfter = Number.POSITIVE_INFINITY;
    drain();
    assert.deepEqual([stage.lies, stage.troubles], [[], []]);
    assert.equal(reader.waitingBytes, 0);
    return { accepted, log: stage.log.text, refused };
  } finally {
    reader[Symbol.dispose]();
    ring.close();
    stage.remove();
  }
}

test('AuditRing and AuditRingReader lose and repeat no record when either side is killed and the log is full at times', () => {
  let refusals = 0;
  let records = 0;
  fc.assert(
    fc.property(fc.constantFrom(0, 0xffff_8000), fc.array(step, { maxLength: 30 }), (first, steps) => {
      const { accepted, log, refused } = play(first, steps);
      assert.equal(log, accepted.join(''));
      refusals += refused;
      records += accepted.length;
    }),
    { numRuns: 150 },
  );
  assert.ok(refusals > 0 && records > 10_000, `${refusals} refused of ${records}`);
});

test('AuditRing writes over nothing that is not read when it comes round', () => {
  const path = fc.integer({ min: 1, max: 3000 }).map((length) => 'あ'.repeat(length));
  fc.assert(
    fc.property(fc.nat(1000), path, (start, text) => {
      const { accepted, log, refused } = play(start * 8, [
        { do: 'records', records: [{ ...goodRecord, path: text }], times: 5000 },
      ]);
      assert.equal(log, accepted.join(''));
      assert.ok(refused > 0);
    }),
    { numRuns: 60 },
  );
});

test('AuditRing cuts what is too long between characters', () => {
  const path = `/${'ü'.repeat(20_000)}`;
  const { log } = play(0, [{ do: 'records', records: [{ ...goodRecord, path }], times: 1 }]);
  assert.equal((JSON.parse(log) as AuditRecord).path, path.slice(0, 16_384));
});

function opened(t: TestContext, busyMs?: number) {
  const stage = new RingStage();
  stage.make();
  const reader = stage.reader(busyMs);
  const ring = new AuditRing(stage.file);
  t.after(() => {
    ring.close();
    reader[Symbol.dispose]();
    stage.remove();
  });
  return { stage, reader, ring };
}

const lines = (stage: RingStage): number => stage.log.text.split('\n').length - 1;

test('AuditRing rings once for each time that the daemon sleeps, and the daemon misses no record', async (t) => {
  const { stage, reader, ring } = opened(t, 5);
  assert.equal(ring.takeDoorbell(), false);
  ring.record(goodRecord);
  ring.record(goodRecord);
  assert.deepEqual([ring.takeDoorbell(), ring.takeDoorbell()], [true, false]);
  ring.returnDoorbell();
  assert.equal(ring.takeDoorbell(), true);
  reader.doorbell();
  assert.equal(lines(stage), 2);
  ring.record(goodRecord);
  assert.equal(ring.takeDoorbell(), false, 'it is awake and looks by itself');
  await until('the record', () => lines(stage) === 3);
  await until('its sleep', () => {
    ring.record(goodRecord);
    return ring.takeDoorbell();
  });
});

test('AuditRing keeps nothing while the log cannot be written, and everything that it had', (t) => {
  const { stage, reader, ring } = opened(t);
  assert.equal(ring.record(goodRecord), true);
  stage.log.room = 10;
  assert.equal(reader.drain(), false);
  assert.equal(ring.record(goodRecord), false);
  stage.log.room = Number.POSITIVE_INFINITY;
  assert.equal(reader.drain(), true);
  assert.equal(ring.record(goodRecord), true);
  reader.drain();
  assert.equal(stage.log.text, auditLine(goodRecord).repeat(2));
});

test('AuditRing refuses a file that is no ring', (t) => {
  const { stage } = opened(t);
  stage.write(Uint8Array.of(1), 0);
  assert.throws(() => new AuditRing(stage.file), /is no audit ring: it does not begin as one/);
});
