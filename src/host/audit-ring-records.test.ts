import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { test } from 'node:test';
import { FILLER_KIND, RECORD_KIND, RingRecord } from '../device/index.ts';
import { RingError, RingRecords } from './audit-ring-records.ts';

type Numbers = {
  readonly [K in 'length' | 'kind' | 'sequence' | 'verdict' | 'timeMs' | 'revision' | 'dropped']?: number;
};
type Texts = { readonly [K in 'way' | 'operation' | 'errno' | 'path' | 'rule' | 'program']?: string | Uint8Array };

const good = { way: 'mount', operation: 'open', errno: '', path: '/a', rule: 'default', program: '' };

/** A record as a device process writes it, but for what is given. */
const recordBytes = ({ texts = {}, numbers = {} }: { readonly texts?: Texts; readonly numbers?: Numbers }): Buffer => {
  const strings = Object.values({ ...good, ...texts }).map((text) => Buffer.from(text as string));
  const textBytes = Buffer.concat(strings);
  const length = Math.ceil((RingRecord.sizeBytes + textBytes.length) / 8) * 8;
  const bytes = Buffer.alloc(length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, length);
  const all = { length, kind: RECORD_KIND, uid: 0xffff_ffff, gid: 5, pid: 6, timeMs: 1000, revision: 3, ...numbers };
  for (const [name, value] of Object.entries(all)) RingRecord[name as 'length'].set(view, 0, value);
  const fields = ['wayBytes', 'operationBytes', 'errnoBytes', 'pathBytes', 'ruleBytes', 'programBytes'] as const;
  for (const [i, name] of fields.entries()) RingRecord[name].set(view, 0, strings[i]!.length);
  textBytes.copy(bytes, RingRecord.sizeBytes);
  return bytes;
};

const read = (bytes: Buffer, records = new RingRecords('vm')) =>
  records.lineAt(bytes, 0, records.lengthAt(bytes, 0, true));

test('RingRecords reads a record, whatever number its uid is, and no filler', () => {
  const records = new RingRecords('vm');
  const bytes = (sequence: number) =>
    recordBytes({ texts: { path: '/ü', program: '/bin/x' }, numbers: { dropped: 2, sequence } });
  const line =
    '{"time":"1970-01-01T00:00:01.000Z","vm":"vm","way":"mount","operation":"open","path":"/ü","uid":4294967295,"gid":5,"pid":6,"program":"/bin/x","revision":3,"verdict":"allowed","rule":"default","dropped":2}\n';
  // The second time its texts are known.
  for (const sequence of [1, 2]) assert.equal(read(bytes(sequence), records), line);
  const filler = Buffer.alloc(8);
  filler.writeUInt32LE(8, 0);
  filler.writeUInt32LE(FILLER_KIND, 4);
  assert.equal(read(filler), undefined);
});

const lies: readonly (readonly [what: string, bytes: Buffer, reason: RegExp])[] = [
  ['no room for a head', recordBytes({}).subarray(0, 4), /has 4 bytes left/],
  ['an unknown kind', recordBytes({ numbers: { kind: 3 } }), /is of kind 3/],
  ['a length of nothing', recordBytes({ numbers: { length: 0 } }), /of kind 1 has 0 bytes/],
  ['an odd length', recordBytes({ numbers: { length: 85 } }), /of kind 1 has 85 bytes/],
  [
    'a length beyond the end',
    recordBytes({ numbers: { length: 0xffff_fff8 } }),
    /has 4294967288 bytes where \d+ are left/,
  ],
  ['an unknown verdict', recordBytes({ numbers: { verdict: 2 } }), /has verdict 2/],
  ['a time after time', recordBytes({ numbers: { timeMs: 8.64e15 + 2 } }), /has time 8640000000000002/],
  ['a revision that is no number', recordBytes({ numbers: { revision: 2 ** 60 } }), /has revision/],
  [
    'text beyond its end',
    recordBytes({ texts: { rule: 'x'.repeat(99) }, numbers: { length: 96 } }),
    /bytes of text in 32/,
  ],
  [
    'less text than room',
    Buffer.concat([recordBytes({ numbers: { length: 104 } }), Buffer.alloc(24)]),
    /bytes of text in 40/,
  ],
  ['a way that is too long', recordBytes({ texts: { way: 'x'.repeat(33) } }), /string that is too long/],
  ['a path that is too long', recordBytes({ texts: { path: 'x'.repeat(32_768) } }), /string that is too long/],
  ['no path', recordBytes({ texts: { path: '' } }), /lacks what was asked for/],
  ['a denial without errno', recordBytes({ numbers: { verdict: 1 } }), /disagree/],
  ['an errno without denial', recordBytes({ texts: { errno: 'EIO' } }), /disagree/],
  ['text that is no UTF-8', recordBytes({ texts: { path: Uint8Array.of(0x2f, 0xff) } }), /no UTF-8/],
  [
    'a character in two strings',
    recordBytes({ texts: { path: Uint8Array.of(0x2f, 0xc3), rule: Uint8Array.of(0xbc) } }),
    /no UTF-8/,
  ],
];

for (const [what, bytes, reason] of lies)
  test(`RingRecords refuses a record when it has ${what}`, () => {
    assert.throws(
      () => read(bytes),
      (error) => error instanceof RingError && reason.test(error.message),
    );
  });

test('RingRecords refuses a record when it comes out of its turn, but for one that a killed process left out', () => {
  const records = new RingRecords('vm');
  for (const sequence of [7, 8, 10, 11]) read(recordBytes({ numbers: { sequence } }), records);
  assert.throws(() => read(recordBytes({ numbers: { sequence: 11 } }), records), /record 11 comes where 12 should/);
  assert.throws(() => read(recordBytes({ numbers: { sequence: 14 } }), records), /record 14 comes where 12 should/);
  records.restart();
  read(recordBytes({ numbers: { sequence: 3 } }), records);
});
