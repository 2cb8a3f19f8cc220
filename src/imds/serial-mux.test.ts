import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { type Duplex, duplexPair } from 'node:stream';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import fc from 'fast-check';
import { Stage } from '../../test/imds/stage.ts';
import { SerialMux } from './serial-mux.ts';

const syncNonce = (): Uint8Array => randomBytes(16);

/** The guest's end, once the host has answered. */
const guestOn = async (port: Duplex): Promise<SerialMux> => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const guest = new SerialMux(port, { onSynced: resolve });
  guest.sync(syncNonce());
  await promise;
  return guest;
};

const echo = (stream: Duplex): void => {
  stream.on('error', () => {});
  stream.pipe(stream);
};

test('SerialMux carries connections beside each other, whatever bytes they have, to their ends', async () => {
  const [ours, theirs] = duplexPair();
  const host = new SerialMux(theirs, { onConnection: echo });
  const guest = await guestOn(ours);
  const sent = [Buffer.from([0xc0, 0xdb, 0xdc, 0xdd, 0]), randomBytes(200_000), Buffer.alloc(70_000, 0xc0)];
  await Promise.all(
    sent.map(async (bytes) => {
      const stream = guest.open();
      stream.end(bytes);
      const parts: Buffer[] = [];
      for await (const part of stream) parts.push(part as Buffer);
      assert.ok(Buffer.concat(parts).equals(bytes));
    }),
  );
  assert.deepEqual([guest.connections, host.connections], [0, 0]);
});

test('SerialMux begins anew when a guest does, wherever the one before was cut off', async () => {
  const [ours, theirs] = duplexPair();
  const seen: Duplex[] = [];
  const host = new SerialMux(theirs, { onConnection: (stream) => (seen.push(stream), echo(stream)) });
  const before = await guestOn(ours);
  const cut = before.open();
  cut.on('error', () => {});
  cut.write('half of a request');
  await once(cut, 'data');
  // What its kernel took of a frame, and no more, before the program was killed.
  ours.removeAllListeners('data');
  ours.write(Buffer.from([2, 0, 1, 0x47, 0xdb]));
  const after = await guestOn(ours);
  assert.equal(seen[0]!.destroyed, true, 'nobody is at its other end');
  const stream = after.open();
  stream.end('hello');
  assert.equal(await text(stream), 'hello');
  assert.equal(host.connections, 0);
});

test('SerialMux stops taking from the port while one that was opened is not read', async () => {
  const [ours, theirs] = duplexPair();
  const opened: Duplex[] = [];
  const host = new SerialMux(theirs, { onConnection: (stream) => opened.push(stream) });
  const guest = await guestOn(ours);
  const stream = guest.open();
  const bytes = Buffer.alloc(64 * 1024);
  const parts = 40;
  for (let part = 0; part < parts; part++) stream.write(bytes);
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve));
  const waiting = opened[0]!.readableLength;
  assert.ok(waiting <= 128 * 1024, `${waiting} bytes are kept for whoever does not read them`);
  stream.end();
  let read = 0;
  for await (const part of opened[0]!) read += (part as Buffer).length;
  assert.equal(read, parts * bytes.length, 'and all of it comes when it is read');
  opened[0]!.end();
  await once(stream.resume(), 'close');
  assert.equal(host.connections, 0);
});

test('SerialMux ends every connection with the port', async () => {
  const [ours, theirs] = duplexPair();
  const host = new SerialMux(theirs, { onConnection: echo });
  const guest = await guestOn(ours);
  const stream = guest.open();
  stream.write('x');
  await once(stream, 'data');
  theirs.destroy();
  ours.destroy();
  await once(stream, 'close');
  assert.deepEqual([guest.connections, host.connections], [0, 0]);
});

test('SerialMux as the host takes no more from a guest that takes no answers', async () => {
  const [ours, theirs] = duplexPair();
  const host = new SerialMux(theirs, { onConnection: echo });
  const sync = Buffer.concat([Buffer.from([0, 0, 0]), Buffer.alloc(16, 1), Buffer.from([0xc0])]);
  const flood = Buffer.concat(Array.from({ length: 1000 }, () => sync));
  for (let i = 0; i < 50; i++) ours.write(flood);
  for (let turn = 0; turn < 200; turn++) await new Promise((resolve) => setImmediate(resolve));
  assert.ok(theirs.writableLength < 512 * 1024, `${theirs.writableLength} bytes wait for whoever does not take them`);
  const stream = (await guestOn(ours)).open();
  stream.end('hello');
  assert.equal(await text(stream), 'hello', 'and goes on once it does');
  assert.equal(host.connections, 0);
});

/** Frames that make sense, and others; cut anywhere. */
const foreign: fc.Arbitrary<Uint8Array> = fc.oneof(
  fc.uint8Array({ maxLength: 40 }),
  fc
    .tuple(fc.nat(6), fc.nat(3), fc.uint8Array({ maxLength: 20 }), fc.nat(30))
    .map(([type, number, data, cut]) => Uint8Array.of(type, 0, number, ...data, 0xc0).subarray(0, cut + 1)),
);
/** By hand: `PORTHOLE_MUX_RUNS=100000`. */
const runs = Number(process.env['PORTHOLE_MUX_RUNS'] ?? 200);

test('SerialMux as the host stands any bytes, and a guest that begins after them is served', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(foreign, { maxLength: 30 }), async (chunks) => {
      const [ours, theirs] = duplexPair();
      const host = new SerialMux(theirs, { onConnection: echo });
      ours.resume();
      for (const chunk of [Buffer.from([0xc0, 0, 0, 0, ...Buffer.alloc(16), 0xc0]), ...chunks]) ours.write(chunk);
      const guest = await guestOn(ours);
      const stream = guest.open();
      stream.end('hello');
      assert.equal(await text(stream), 'hello');
      assert.equal(host.connections, 0);
    }),
    { numRuns: runs },
  );
});

test('MetadataServer answers over one port beside its watch stream', async () => {
  await using stage = await Stage.start({ content: { instance: { id: 'i-1' } } });
  const [ours, theirs] = duplexPair();
  const host = new SerialMux(theirs, {
    onConnection: (stream) => stage.server.accept(stream, { kind: 'virtio-serial', privileged: true }),
  });
  const guest = await guestOn(ours);
  const ask = async (words: string): Promise<string> => {
    const stream = guest.open();
    stream.write(words);
    return text(stream);
  };
  const body = JSON.stringify({ nonce: 'n'.repeat(22) });
  const claimed = await ask(
    `POST /porthole/v1/token HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  const token = /"token":"([\w-]+)"/.exec(claimed)?.[1];
  assert.ok(token, claimed);
  const watch = guest.open();
  watch.write(`GET /porthole/v1/watch?from=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\n\r\n`);
  const [head] = (await once(watch, 'data')) as [Buffer];
  assert.match(head.toString(), /^HTTP\/1\.1 (200|410)/);
  assert.match(
    await ask('GET /nocloud/meta-data HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n'),
    /instance-id: "i-1"/,
  );
  assert.equal(host.connections, 1, 'the stream goes on');
});
