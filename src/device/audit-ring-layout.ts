/**
 * The audit ring: a file by which a device process hands audit records to the host daemon. The device process maps it and
 * writes records; the daemon only ever uses pread(2) and pwrite(2), because a device process that a guest took over could
 * truncate the file, and touching a mapping of it would then kill the daemon.
 *
 * A page of words, then a power of two of bytes for records. Positions count bytes since the ring was made, modulo 2^32;
 * the record at position p lies at p modulo the size of the data. Records are whole, aligned to 8 and never cross the end:
 * filler stands there instead. Words have one writer each:
 *
 * - `head`: where the next record goes. The record is complete before it moves.
 * - `tail`: where the first record is that the log does not have yet.
 * - `asleep`: set by the daemon when it stops looking, cleared by the device process that then rings the doorbell.
 * - `unwritable`: the log can't be written.
 *
 * pread and pwrite may copy byte by byte, so a word of more than one byte that changes meanwhile can be seen torn. `head`
 * and `tail` have therefore a second word, the complement, which is written after and read before: they count only where
 * both agree.
 */
import { struct } from '../wire/index.ts';

export const RING_MAGIC = 0x52414850;
export const RING_VERSION = 1;
/** Where records begin. */
export const RING_HEAD_BYTES = 4096;
export const RING_DATA_BYTES = 1024 * 1024;
/** What a ring may have: a power of two from, to. */
export const ringDataBytes = { least: 256 * 1024, most: 64 * 1024 * 1024 } as const;

/** Indices of 32-bit words in the head. What the daemon writes and what the device process writes are in cache lines of their own. */
export const ringWords = {
  magic: 0,
  version: 1,
  dataBytes: 2,
  // The daemon's.
  tail: 16,
  tailCheck: 17,
  unwritable: 18,
  asleep: 19,
  // The device process's.
  head: 32,
  headCheck: 33,
  nextSequence: 34,
  // The daemon's own notes: `RingMark`.
  mark: 64,
} as const;

/** Which record's line begins where in which log file: what a daemon that was killed had begun to write. */
export const RingMark = struct({ isSet: 'u32', tail: 'u32', device: 'u64', inode: 'u64', offset: 'u64' });

export const RECORD_KIND = 1;
export const FILLER_KIND = 2;
export const RECORD_ALIGN = 8;
/** A filler is these two words, and what is left to the end. */
export const FILLER_HEAD_BYTES = 8;

/** What precedes the strings of a record, which follow in the order of their lengths here, in UTF-8. */
export const RingRecord = struct({
  /** Of the whole record, a multiple of 8. */
  length: 'u32',
  kind: 'u32',
  /** Rises by one from record to record, modulo 2^32; a device process that is killed may leave one out. */
  sequence: 'u32',
  uid: 'u32',
  gid: 'u32',
  pid: 'u32',
  timeMs: 'u64',
  revision: 'u64',
  dropped: 'u32',
  droppedOthers: 'u32',
  wayBytes: 'u8',
  operationBytes: 'u8',
  errnoBytes: 'u8',
  verdict: 'u8',
  pathBytes: 'u16',
  ruleBytes: 'u16',
  programBytes: 'u16',
  padding: 'u16',
  padding2: 'u32',
});

export const ringVerdicts = ['allowed', 'denied'] as const;

/** Longest strings, in bytes; what is longer is cut between characters. */
export const ringStrings = { way: 32, operation: 32, errno: 32, path: 32_767, rule: 32_767, program: 4096 } as const;

export const RECORD_MOST_BYTES =
  RingRecord.sizeBytes + Object.values(ringStrings).reduce((sum, bytes) => sum + bytes, 0) + RECORD_ALIGN;

/** The head of an empty ring whose first record gets `position`. */
export const emptyRing = (dataBytes: number, position = 0): Uint8Array => {
  const words = new Uint32Array(RING_HEAD_BYTES / 4);
  words[ringWords.magic] = RING_MAGIC;
  words[ringWords.version] = RING_VERSION;
  words[ringWords.dataBytes] = dataBytes;
  words[ringWords.tail] = position;
  words[ringWords.tailCheck] = ~position;
  words[ringWords.head] = position;
  words[ringWords.headCheck] = ~position;
  words[ringWords.asleep] = 1;
  return new Uint8Array(words.buffer);
};

/** Why a file of `fileBytes` with this head is no ring; undefined when it is one. */
export const whyNoRing = (head: Uint32Array, fileBytes: number): string | undefined => {
  const dataBytes = head[ringWords.dataBytes]!;
  if (head[ringWords.magic] !== RING_MAGIC) return 'it does not begin as one';
  if (head[ringWords.version] !== RING_VERSION) return `it is of version ${head[ringWords.version]}`;
  const { least, most } = ringDataBytes;
  if (dataBytes < least || dataBytes > most || (dataBytes & (dataBytes - 1)) !== 0)
    return `it says that it holds ${dataBytes} bytes`;
  if (fileBytes !== RING_HEAD_BYTES + dataBytes)
    return `it has ${fileBytes} bytes instead of ${RING_HEAD_BYTES + dataBytes}`;
  return undefined;
};
