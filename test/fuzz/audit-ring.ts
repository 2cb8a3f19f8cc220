/**
 * Fuzzes what the host daemon reads of an audit ring. The device process may have been taken over: whatever is in the file,
 * the daemon's reader throws nothing, writes whole lines of the known keys with its own name of the VM and no control
 * character, says so when it is nonsense, and has a good ring for the next device process.
 */
import assert from 'node:assert/strict';
import { truncateSync } from 'node:fs';
import { AuditRing } from '../../src/device/audit-ring.ts';
import { RING_HEAD_BYTES, ringWords } from '../../src/device/audit-ring-layout.ts';
import { DATA_BYTES, goodRecord, RingStage } from './audit-ring-stage.ts';

const keys = new Set(
  'time vm way operation path uid gid pid program revision verdict rule errno dropped droppedOthers'.split(' '),
);
const FLAG_WRAPPED = 1;
const FLAG_HEAD_AS_SAID = 2;
const FLAG_TRUNCATED = 4;
const FLAG_AT_START = 8;
const HEAD_BYTES = 5;

function checkLines(text: string): void {
  assert.ok(text === '' || text.endsWith('\n'));
  for (const line of text.split('\n').filter(Boolean)) {
    assert.doesNotMatch(line, /[\p{Cc}\u2028-\u202E\u2066-\u2069]/u);
    const record = JSON.parse(line) as Record<string, unknown>;
    assert.equal(record['vm'], 'vm');
    for (const key of Object.keys(record)) assert.ok(keys.has(key), key);
  }
}

/**
 * Byte 0: flags above. Bytes 1 to 4: the head, where the flag says so; else it is where the bytes end. The rest: records.
 * With FLAG_AT_START a daemon finds it all when it starts.
 */
export function fuzzAuditRing(bytes: Uint8Array): void {
  const how = bytes[0] ?? 0;
  const stage = new RingStage();
  const first = (how & FLAG_WRAPPED) === 0 ? 0 : 0xffff_ff00;
  stage.make(first);
  let reader = stage.reader();
  try {
    const data = bytes.subarray(HEAD_BYTES);
    const at = first & (DATA_BYTES - 1);
    const untilEnd = DATA_BYTES - at;
    stage.write(data.subarray(0, untilEnd), RING_HEAD_BYTES + at);
    stage.write(data.subarray(untilEnd), RING_HEAD_BYTES);
    const said = new DataView(Uint8Array.from([...bytes.subarray(1, HEAD_BYTES), 0, 0, 0, 0]).buffer).getUint32(
      0,
      true,
    );
    const head = ((how & FLAG_HEAD_AS_SAID) === 0 ? first + Math.ceil(data.length / 8) * 8 : said) >>> 0;
    stage.write(new Uint8Array(Uint32Array.of(head, ~head).buffer), ringWords.head * 4);
    if ((how & FLAG_AT_START) !== 0) {
      reader[Symbol.dispose]();
      reader = stage.reader();
    }
    if ((how & FLAG_TRUNCATED) !== 0) truncateSync(stage.file, RING_HEAD_BYTES);
    assert.equal(reader.drain(), true);
    checkLines(stage.log.text);
    assert.ok(reader.isBroken || reader.waitingBytes === 0, 'it is read to its end or known for nonsense');
    reader.renew();
    const before = stage.log.text.length;
    const ring = new AuditRing(stage.file);
    assert.equal(ring.record(goodRecord), true);
    ring.close();
    assert.equal(reader.drain(), true);
    assert.match(stage.log.text.slice(before), /^\{"time":"2026-01-01T00:00:00.000Z",.*"path":"\/secrets\/x".*\}\n$/);
  } finally {
    reader[Symbol.dispose]();
    stage.remove();
  }
}
