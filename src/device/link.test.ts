import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { test } from 'node:test';
import fc from 'fast-check';
import { fuzzLink } from '../../test/fuzz/link.ts';
import { type Delta, defaultQuota, type Mutation, type Node } from '../tree/index.ts';
import { encodeMessage, LinkError, LinkQueue, readerOnDevice } from './link.ts';
import type { ToDevice, ToHost } from './link-messages.ts';
import { readerOnHost } from './link-on-host.ts';

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const ino = fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER });
const bits = fc.integer({ min: 0, max: 0o7777 });
const bytes = (maxLength: number) => fc.uint8Array({ maxLength });
const caller = fc.record({ uid: u32, gid: u32, pid: u32 });
const time = fc.record({ sec: fc.integer(), nsec: fc.integer({ min: 0, max: 999_999_999 }) });
const name = fc
  .string({ unit: 'grapheme', maxLength: 40 })
  .filter((text) => text.isWellFormed() && !/[/\0]/.test(text));

const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.record({ op: fc.constant('create' as const), caller, parentIno: ino, name, mode: bits, umask: bits }),
  fc.record({ op: fc.constant('symlink' as const), caller, parentIno: ino, name, target: bytes(100) }),
  fc.record({
    op: fc.constant('rename' as const),
    caller,
    parentIno: ino,
    name,
    newParentIno: ino,
    newName: name,
    flags: u32,
  }),
  fc.record({
    op: fc.constant('write' as const),
    caller,
    ino,
    offset: fc.nat(),
    data: bytes(300),
    append: fc.boolean(),
    truncate: fc.boolean(),
    grantedAtOpen: fc.boolean(),
  }),
  fc.record(
    {
      op: fc.constant('setattr' as const),
      caller,
      ino,
      mode: bits,
      uid: u32,
      atime: time,
      mtime: fc.constant('now' as const),
    },
    { requiredKeys: ['op', 'caller', 'ino'] },
  ),
  fc.record({ op: fc.constantFrom('burn' as const, 'drop' as const), caller, ino }),
);

const target = fc.record({ kind: fc.constantFrom('mount' as const, 'vhost-user' as const), path: fc.string() });

const toHost: fc.Arbitrary<ToHost> = fc.oneof(
  fc.record({
    type: fc.constant('mutation' as const),
    sequence: ino,
    way: fc.constantFrom('virtiofs' as const, 'mount' as const),
    mutation,
    expiresMs: fc.nat(),
  }),
  fc.constant({ type: 'auditWaiting' as const }),
  fc.record({ type: fc.constant('tokenUsed' as const), hash: bytes(32) }),
  fc.record({ type: fc.constant('ready' as const), target }),
  fc.record({ type: fc.constant('failed' as const), target, reason: fc.string() }),
  fc.record({
    type: fc.constant('statistics' as const),
    id: fc.nat(),
    counters: fc.dictionary(
      fc.string({ maxLength: 20 }).filter((key) => key !== '__proto__'),
      fc.nat(),
      { noNullPrototype: true },
    ),
  }),
);

/** Feeds `stream` in pieces of the given sizes, again and again. */
const feedInPieces = <M>(
  reader: { feed(bytes: Uint8Array): M[] },
  stream: Uint8Array,
  sizes: readonly number[],
): M[] => {
  const messages: M[] = [];
  for (let at = 0, i = 0; at < stream.length; i++) {
    const size = sizes[i % sizes.length]!;
    const piece = stream.slice(at, at + size);
    messages.push(...reader.feed(piece));
    piece.fill(0xaa);
    at += size;
  }
  return messages;
};

const sizes = fc.array(fc.integer({ min: 1, max: 97 }), { minLength: 1, maxLength: 8 });

test('readerOnHost gives back what a device process encoded when it comes in pieces', () => {
  fc.assert(
    fc.property(fc.array(toHost, { maxLength: 6 }), sizes, (messages, pieces) => {
      const stream = Uint8Array.from(Buffer.concat(messages.map(encodeMessage)));
      assert.deepEqual(feedInPieces(readerOnHost(), stream, pieces), structuredClone(messages));
    }),
  );
});

const node = (ino: number, more: Partial<Node>): Node => ({
  ino,
  parentIno: 1,
  name: `n${ino}`,
  madeBy: 'outside',
  mode: 0o100644,
  uid: 0,
  gid: 0,
  acl: undefined,
  defaultAcl: undefined,
  nlink: 1,
  sizeBytes: 0,
  bytes: undefined,
  burned: false,
  dataRevision: 1,
  revision: 1,
  atime: { sec: 1, nsec: 2 },
  mtime: { sec: -1, nsec: 2 },
  ctime: { sec: 1, nsec: 999_999_999 },
  ...more,
});

const acl = { groupObj: 4, mask: 6, users: [{ id: 114, permissions: 4 }], groups: [], userObj: 0, other: 0 };
const delta: Delta = {
  revision: 7,
  full: true,
  put: [
    node(1, { name: '', mode: 0o040755 }),
    node(2, { bytes: Uint8Array.of(1, 2, 3), sizeBytes: 3, acl, defaultAcl: acl }),
    node(3, { burned: true, madeBy: 'guest' }),
  ],
  remove: [9],
  policy: {
    rules: [
      { path: '/secrets/**', owner: 114, mode: 0o400, acl: [{ tag: 'user', id: 1, permissions: 4 }], root: 'deny' },
    ],
    users: { app: 1000 },
    groups: { web: { gid: 5, members: [1000] }, other: { gid: 6 } },
    quota: defaultQuota,
  },
  changes: [{ ino: 2, path: '/n2', what: 'created' }],
  usage: { bytes: 3, nodes: 1 },
};

test('readerOnDevice gives back what the host encoded when it comes in pieces', () => {
  const messages: ToDevice[] = [
    {
      type: 'config',
      vm: 'web-1',
      vhostUser: [{ path: '/run/x.sock', mode: 0o660, gid: 107 }],
      mounts: [{ path: '/mnt' }],
      options: { spinMicros: 50, allowUnsealedMemory: false },
    },
    { type: 'delta', delta },
    { type: 'outcome', sequence: 3, outcome: { errno: 0, revision: 8, ino: 0, bytes: Uint8Array.of(0, 255) } },
    { type: 'taken', sequence: 4 },
    { type: 'askStatistics', id: 1 },
    { type: 'shutdown' },
  ];
  const stream = Uint8Array.from(Buffer.concat(messages.map(encodeMessage)));
  for (const size of [1, 7, 4096]) assert.deepEqual(feedInPieces(readerOnDevice(), stream, [size]), messages);
});

test('readerOnDevice gives all nodes the same keys when values are absent', () => {
  const [message] = readerOnDevice().feed(encodeMessage({ type: 'delta', delta }));
  assert(message?.type === 'delta');
  const keys = message.delta.put.map((put) => Object.keys(put).join());
  assert.equal(new Set(keys).size, 1);
  assert.equal(keys[0], Object.keys(delta.put[0]!).join());
});

const refused = (frame: Uint8Array, code: string, from = readerOnHost()): void => {
  assert.throws(
    () => from.feed(frame),
    (error) => error instanceof LinkError && error.code === code,
  );
};

const frame = (code: number, payload: readonly number[], length = payload.length + 1): Uint8Array =>
  Uint8Array.of(length & 255, (length >> 8) & 255, (length >> 16) & 255, (length >>> 24) & 255, code, ...payload);

test('readerOnHost refuses a message when it is not as agreed', () => {
  refused(frame(0, []), 'UNKNOWN_MESSAGE');
  // What carried audit records once.
  refused(frame(65, [0x80]), 'UNKNOWN_MESSAGE');
  refused(frame(5, [0x80]), 'WRONG_DIRECTION');
  refused(frame(64, [], 0), 'MESSAGE_TOO_LONG');
  refused(frame(64, [], 0xffff_ffff), 'MESSAGE_TOO_LONG');
  refused(frame(66, []), 'MALFORMED_MESSAGE');
  refused(frame(66, [0x90]), 'MALFORMED_MESSAGE');
  refused(frame(66, [0x80]), 'MALFORMED_MESSAGE');
  refused(frame(66, [0x80, 0x80]), 'MALFORMED_MESSAGE');
  // An array that claims 2^32 - 1 elements; arrays in arrays; an extension; 0xc1.
  refused(frame(67, [0xdd, 255, 255, 255, 255]), 'MALFORMED_MESSAGE');
  refused(
    frame(
      67,
      Array.from({ length: 100 }, () => 0x91),
    ),
    'MALFORMED_MESSAGE',
  );
  refused(frame(67, [0x81, 0xa1, 0x61, 0xd6, 0xff, 0, 0, 0, 0]), 'MALFORMED_MESSAGE');
  refused(frame(67, [0xc1]), 'MALFORMED_MESSAGE');
});

test('readerOnHost refuses a mutation when a device process claims what only an agent proves', () => {
  const claim = (more: object): Uint8Array =>
    encodeMessage({
      type: 'mutation',
      sequence: 1,
      way: 'virtiofs',
      mutation: { op: 'burn', caller: { uid: 0, gid: 0, pid: 1, ...more }, ino: 5 },
      expiresMs: 1,
    });
  assert.equal(readerOnHost().feed(claim({})).length, 1);
  refused(claim({ program: '/usr/bin/psql' }), 'MALFORMED_MESSAGE');
  refused(claim({ groups: [115] }), 'MALFORMED_MESSAGE');
  refused(claim({ unit: 'postgresql.service' }), 'MALFORMED_MESSAGE');
});

test('encodeMessage refuses a message when it is too long', () => {
  const data = new Uint8Array(1024 * 1024 + 20 * 1024);
  const caller = { uid: 0, gid: 0, pid: 0 };
  const mutation = { op: 'setxattr', caller, ino: 1, name: 'user.x', value: data, flags: 0 } as const;
  assert.throws(() => encodeMessage({ type: 'mutation', sequence: 1, way: 'mount', mutation, expiresMs: 1 }), {
    code: 'MESSAGE_TOO_LONG',
  });
});

test('LinkQueue gives every byte once and refuses when it is full', () => {
  const queue = new LinkQueue(200);
  const message: ToHost = { type: 'ready', target: { kind: 'mount', path: '/mnt' } };
  const one = encodeMessage(message);
  const room = Math.floor(200 / one.length);
  for (let i = 0; i < room; i++) assert.equal(queue.push(message), true);
  assert.equal(queue.push(message), false);
  assert.equal(queue.pendingBytes, room * one.length);
  const written: number[] = [];
  for (let chunk = queue.next(); chunk !== undefined; chunk = queue.next()) {
    const n = Math.min(7, chunk.length);
    written.push(...chunk.subarray(0, n));
    queue.wrote(n);
  }
  assert.equal(queue.pendingBytes, 0);
  assert.deepEqual(
    readerOnHost().feed(Uint8Array.from(written)),
    Array.from({ length: room }, () => message),
  );
  assert.equal(queue.push(message), true);
});

test('readerOnHost throws nothing but LinkErrors when frames are random or changed', () => {
  fc.assert(
    fc.property(
      toHost,
      fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
      (message, edits) => {
        const frame = encodeMessage(message);
        for (const [at, value] of edits) frame[at % frame.length] = value;
        fuzzLink(frame);
      },
    ),
    { numRuns: 500 },
  );
  const code = fc.constantFrom(64, 65, 66, 67, 68, 69, 1);
  fc.assert(
    fc.property(code, fc.uint8Array({ maxLength: 200 }), (code, payload) => fuzzLink(frame(code, [...payload]))),
    { numRuns: 500 },
  );
});
