/** Replays the kept corpora, and tries new inputs with a seed that a failure prints; failing inputs belong in test/corpus. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { fuzzAuditRing } from './audit-ring.ts';
import { goodRecordBytes } from './audit-ring-stage.ts';
import { changedOf } from './changed.ts';
import { fuzzImds } from './imds.ts';
import { fuzzJournal } from './journal.ts';
import { fuzzKeeper } from './keeper.ts';
import { fuzzLink } from './link.ts';
import { fuzzQcow2 } from './qcow2.ts';
import { fuzzRing } from './ring.ts';
import { fuzzUplink } from './uplink.ts';
import { fuzzVhostUser } from './vhost-user.ts';
import { fuzzVsock } from './vsock.ts';

const corpus = path.join(import.meta.dirname, '..', 'corpus');
const targets = {
  journal: fuzzJournal,
  keeper: fuzzKeeper,
  'audit-ring': fuzzAuditRing,
  imds: fuzzImds,
  link: fuzzLink,
  qcow2: fuzzQcow2,
  ring: fuzzRing,
  uplink: fuzzUplink,
  'vhost-user': fuzzVhostUser,
  vsock: fuzzVsock,
};

for (const [name, fuzz] of Object.entries(targets)) {
  test(`fuzz ${name} survives its corpus`, (t) => {
    const files = readdirSync(path.join(corpus, name));
    assert.ok(files.length > 0, 'the corpus is there');
    for (const file of files) fuzz(readFileSync(path.join(corpus, name, file)));
    t.diagnostic(`${files.length} inputs`);
  });

  test(`fuzz ${name} survives random bytes`, () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 700 }), (bytes) => fuzz(bytes)),
      { numRuns: 300 },
    );
  });
}

test('fuzz journal survives a real one that was scribbled on', () => {
  const real = readFileSync(path.join(corpus, 'journal', 'of-a-script.bin'));
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(real.length - 1), fc.nat(255)), { minLength: 1, maxLength: 30 }),
      fc.nat(real.length),
      (changes, length) => {
        const bytes = Uint8Array.from(real);
        for (const [at, value] of changes) bytes[at] = value;
        fuzzJournal(bytes.subarray(0, length));
      },
    ),
    { numRuns: 500 },
  );
});

/** Mostly sensible messages: the interesting codes, small numbers, the right sizes. */
const message = fc
  .tuple(
    fc.constantFrom(1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 36, 37, 38, 99, 0x80),
    fc.constantFrom(1, 9, 0, 5),
    fc.constantFrom(0, 1, 2, 17, 18, 31),
    fc.array(fc.oneof(fc.constantFrom(0, 1, 2, 16, 128, 4096), fc.nat()), { maxLength: 20 }),
  )
  .map(([request, flags, fds, words]) => {
    const payload = new Uint8Array(Uint32Array.from(words).buffer);
    return [request, flags, fds, payload.length, ...payload];
  });

test('fuzz vhost-user survives sensible messages', () => {
  fc.assert(
    fc.property(fc.nat(3), fc.array(message, { maxLength: 12 }), (how, messages) =>
      fuzzVhostUser(Uint8Array.from([how, ...messages.flat()])),
    ),
    { numRuns: 300 },
  );
});

/** Long enough for connections to live and end in. `PORTHOLE_FUZZ_SECONDS`: for so long, by hand. */
test('fuzz vsock survives long conversations', (t) => {
  const seconds = Number(process.env['PORTHOLE_FUZZ_SECONDS'] ?? 0);
  const directory = path.join(corpus, 'vsock');
  const kept = readdirSync(directory).map((name) => ({ bytes: readFileSync(path.join(directory, name)) }));
  let runs = 0;
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ minLength: 500, maxLength: 3000 }), changedOf(kept)), (bytes) => {
      runs++;
      fuzzVsock(bytes);
    }),
    seconds > 0
      ? {
          numRuns: 100_000_000,
          interruptAfterTimeLimit: seconds * 1000,
          markInterruptAsFailure: false,
          endOnFailure: true,
        }
      : { numRuns: 100, endOnFailure: true },
  );
  t.diagnostic(`${runs} conversations`);
});

const descriptor = fc
  .tuple(fc.nat(), fc.nat(1), fc.nat(600), fc.constantFrom(0, 1, 2, 3, 4, 5, 6, 7), fc.nat(17))
  .map(([low, high, length, flags, next]) => [
    ...new Uint8Array(Uint32Array.of(low, high, length, flags | (next << 16)).buffer),
  ]);

test('fuzz ring survives sensible descriptors', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(14, 15, 6, 7),
      fc.nat(20),
      fc.array(descriptor, { minLength: 16, maxLength: 16 }),
      fc.array(fc.nat(16), { minLength: 16, maxLength: 16 }),
      fc.array(descriptor, { maxLength: 64 }),
      (how, count, table, heads, tables) =>
        fuzzRing(Uint8Array.from([how, count, ...table.flat(), ...heads, ...tables.flat()])),
    ),
    { numRuns: 1000 },
  );
});

test('fuzz audit-ring survives records of which a few bytes are wrong', () => {
  const good = goodRecordBytes();
  fc.assert(
    fc.property(
      fc.nat(15),
      fc.integer({ min: 1, max: 5 }),
      fc.array(fc.tuple(fc.nat(), fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 2, 8, 127, 255))), { maxLength: 4 }),
      (how, records, changes) => {
        const bytes = Uint8Array.from([how, 0, 0, 1, 0, ...Array.from({ length: records }, () => [...good]).flat()]);
        for (const [at, value] of changes) bytes[5 + (at % (bytes.length - 5))] = value;
        fuzzAuditRing(bytes);
      },
    ),
    { numRuns: 300 },
  );
});

const jsonish = fc.oneof(
  fc.json({ maxDepth: 4 }),
  fc
    .record({
      caller: fc.record({
        uid: fc.oneof(fc.nat(), fc.constantFrom(-1, 0xffff_ffff, 1e300, 0.5)),
        gid: fc.nat(),
        pid: fc.nat(),
      }),
      node: fc.oneof(fc.nat(), fc.string({ unit: 'binary' })),
      offset: fc.maxSafeInteger(),
      bytes: fc.base64String(),
      nonce: fc.string(),
    })
    .map((value) => JSON.stringify(value)),
);

test('fuzz imds survives sensible bodies and paths', () => {
  const path = fc.array(
    fc.constantFrom('/', 'latest', '..', '%2e', '%2F', '%', '?', '&', '=', 'recursive', 'timeout_sec', '+', '\0', 'ü'),
  );
  fc.assert(
    fc.property(
      fc.oneof(
        jsonish,
        path.map((parts) => parts.join('')),
      ),
      (text) => fuzzImds(Buffer.from(text)),
    ),
    { numRuns: 500 },
  );
});
