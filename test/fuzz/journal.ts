import assert from 'node:assert/strict';
import { Journal, type JournalMemory } from '../../src/device/journal.ts';
import { ConnectionJournal } from '../../src/device/session-journal.ts';
import { readControl } from '../../src/device/succession.ts';
import { defaultQuota, Replica, TreeFileSystem, ways } from '../../src/tree/index.ts';

/** Where the arena begins; the file is short, so that it is quick. */
const ARENA_AT = 8 * 1024 * 1024;
const ARENA_BYTES = 8192;
const clock = { wallMs: () => 0, monotonicMs: () => 0 };

const buffer = new ArrayBuffer(ARENA_AT + ARENA_BYTES);
const memory: JournalMemory = {
  u8: new Uint8Array(buffer),
  u16: new Uint16Array(buffer),
  u32: new Uint32Array(buffer),
  f64: new Float64Array(buffer),
};

/**
 * Recovers from a journal whose arena, and whose control state, are `bytes`, which a device process left that may have been taken
 * over: a session comes out, whatever it knows, and what it has open is within its limits.
 */
export function fuzzJournal(bytes: Uint8Array): void {
  memory.u8.fill(0, 0, 8192);
  memory.u8.fill(0, ARENA_AT);
  const journal = new Journal(memory, ARENA_AT + ARENA_BYTES);
  memory.u8.set(bytes.subarray(0, ARENA_BYTES), ARENA_AT);
  memory.f64[2] = ARENA_AT + bytes.length;
  const replica = new Replica();
  replica.apply({
    revision: 1,
    full: true,
    put: [],
    remove: [],
    policy: { rules: [], users: {}, groups: {}, quota: defaultQuota },
    changes: [],
    usage: { bytes: 0, nodes: 0 },
  });
  const connection = new ConnectionJournal(journal);
  const upstream = connection.log.upstream({ submit: () => undefined });
  const fileSystem = new TreeFileSystem({
    replica,
    way: ways.virtiofs,
    upstream,
    audit: () => true,
    vm: 'fuzz',
    clock,
    journal: connection,
  });
  const left = connection.recover(fileSystem, replica);
  assert.ok(left.nextNodeid >= 2 && left.nextFh >= 1);
  for (const { nodeid, lookups } of left.inodes) assert.ok(Number.isSafeInteger(nodeid) && lookups > 0);
  assert.equal(fileSystem.openHandles, left.files.length + left.directories.length);
  for (const file of left.files) fileSystem.read(file.handle, 0, 100);
  readControl(Buffer.from(bytes).toString());
  fileSystem.close();
}
