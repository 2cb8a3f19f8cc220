import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { QemuError } from './error.ts';
import { QCOW2_HEADER_BYTES, readQcow2Header } from './qcow2.ts';

const limits = { maxVirtualBytes: 64 * 1024 ** 4 };
const dir = mkdtempSync(join(tmpdir(), 'porthole-qcow2-'));
process.on('exit', () => rmSync(dir, { recursive: true, force: true }));
let count = 0;

/** What qemu-img makes of these options: the beginning of the file, and its size. */
function made(...options: string[]): { bytes: Uint8Array; size: number } {
  const file = join(dir, `${count++}.qcow2`);
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...options, file, '1G']);
  const size = statSync(file).size;
  return { bytes: readFileSync(file).subarray(0, QCOW2_HEADER_BYTES), size };
}

const read = ({ bytes, size }: { bytes: Uint8Array; size: number }, allowed = {}) =>
  readQcow2Header(bytes, size, limits, allowed);

const refused = (pattern: RegExp) => (error: unknown) =>
  error instanceof QemuError && error.code === 'IMAGE_REFUSED' && pattern.test(error.message);

test('readQcow2Header reads what qemu-img makes', () => {
  const plain = { virtualBytes: 2 ** 30, clusterBytes: 65536, backingFile: undefined, backingFormat: undefined };
  assert.deepEqual(read(made()), { version: 3, ...plain });
  assert.deepEqual(read(made('-o', 'compat=0.10')), { version: 2, ...plain });
  for (const clusterBytes of [512, 4096, 2 * 1024 * 1024])
    assert.deepEqual(read(made('-o', `cluster_size=${clusterBytes}`)), { version: 3, ...plain, clusterBytes });
  assert.equal(read(made('-o', 'compression_type=zstd')).version, 3);
  assert.equal(read(made('-o', 'extended_l2=on')).version, 3);
  assert.equal(read(made('-o', 'lazy_refcounts=on')).version, 3);
  assert.equal(read(made('-o', 'preallocation=metadata')).version, 3);
});

test('readQcow2Header refuses an image that stands on another file, and names it', () => {
  const image = made('-u', '-F', 'raw', '-b', '/etc/shadow');
  assert.throws(
    () => read(image),
    refused(/stands on another file, "\/etc\/shadow"; through it .* read files of this/),
  );
  assert.throws(() => read(made('-u', '-F', 'raw', '-b', 'nbd://host/x\n')), refused(/"nbd:\/\/host\/x\\u\{a\}"/));
  const header = read(image, { backing: true });
  assert.equal(header.backingFile, '/etc/shadow');
  assert.equal(header.backingFormat, 'raw');
});

test('readQcow2Header refuses data elsewhere, encryption, and what it does not know', () => {
  assert.throws(() => read(made('-o', `data_file=${join(dir, 'data')}`)), refused(/keeps its data in another file/));
  // Of AES, since qemu-img measures CPU time to make a LUKS one, and fails where none has passed.
  const encrypted = ['--object', 'secret,id=s,data=x', '-o', 'encrypt.format=aes,encrypt.key-secret=s'];
  assert.throws(() => read(made(...encrypted)), refused(/is encrypted/));
  const patched = (at: number, value: number) => {
    const image = made();
    const bytes = Uint8Array.from(image.bytes);
    new DataView(bytes.buffer).setUint32(at, value);
    return { ...image, bytes };
  };
  assert.throws(() => read(patched(0, 0x504b0304)), refused(/is no qcow2 image; say --format raw/));
  assert.throws(() => read(patched(4, 4)), refused(/version 4/));
  assert.throws(() => read(patched(20, 30)), refused(/clusters of 2\^30/));
  assert.throws(() => read(patched(24, 0x7fffffff)), refused(/absurd size/));
  assert.throws(() => read(patched(24, 0x10000)), refused(/a size of 281476050452480 bytes, and 70368744177664 are/));
  assert.throws(() => read(patched(28, 0x101)), refused(/impossible size/));
  assert.throws(() => read(patched(32, 2)), refused(/is encrypted/));
  assert.throws(() => read(patched(36, 0x00ffffff)), refused(/absurd first-level table/));
  assert.throws(() => read(patched(44, 0x40000000)), refused(/first-level table outside the file/));
  assert.throws(() => read(patched(52, 0x40000000)), refused(/reference table outside the file/));
  assert.throws(() => read(patched(60, 1)), refused(/internal snapshots/));
  assert.throws(() => read(patched(72, 1)), refused(/features that are not known/));
  assert.throws(() => read(patched(76, 32)), refused(/features that are not known here \(0x0, 0x20\)/));
  assert.throws(() => read(patched(76, 2)), refused(/marked corrupt/));
  assert.throws(() => read(patched(76, 1)), refused(/not closed in order/));
  assert.throws(() => read(patched(96, 7)), refused(/reference counts/));
  assert.throws(() => read(patched(100, 5000)), refused(/header of 5000/));
  assert.throws(() => read(patched(112, 0x12345678)), refused(/extension that is not known here \(0x12345678\)/));
  assert.throws(() => read(patched(112, 0x44415441)), refused(/names another file for its data/));
  assert.throws(() => read(patched(116, 0x7fffffff)), refused(/extension that does not end/));
});

test('readQcow2Header throws nothing but refusals, whatever the bytes are', () => {
  const { bytes: good, size } = made('-u', '-F', 'raw', '-b', '/a');
  const change = fc.record({ at: fc.nat(400), value: fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 255)) });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 12 }), fc.nat(600), fc.boolean(), (changes, length, backing) => {
      const bytes = Uint8Array.from(good.subarray(0, length > 500 ? good.length : length));
      for (const { at, value } of changes) if (at < bytes.length) bytes[at] = value;
      try {
        const header = readQcow2Header(bytes, size, limits, { backing });
        assert.ok(header.virtualBytes > 0 && header.virtualBytes <= limits.maxVirtualBytes);
        assert.ok(backing || header.backingFile === undefined);
      } catch (error) {
        if (!(error instanceof QemuError && error.code === 'IMAGE_REFUSED')) throw error;
      }
    }),
    { numRuns: 3_000 },
  );
});
