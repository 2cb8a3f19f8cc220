import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { PartialUploads } from './partial-uploads.ts';
import { Uploads } from './uploads.ts';

const id = `up-${'a'.repeat(32)}`;
const foobar = 'sha256:c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2';

const place = (t: TestContext, wallMs?: () => number) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ph-partial-'));
  const maxFileBytes = 1024 ** 5;
  const open = () => {
    const uploads = new Uploads({ directory, maxFileBytes });
    t.after(() => uploads.close());
    return { uploads, partial: new PartialUploads({ directory, uploads, wallMs }) };
  };
  t.after(() => rmSync(directory, { recursive: true }));
  return { directory, open, ...open() };
};

const pieces = async function* (...texts: readonly (string | Error)[]): AsyncGenerator<Uint8Array> {
  for (const text of texts) {
    if (text instanceof Error) throw text;
    yield Buffer.from(text);
  }
};

test('PartialUploads.receive goes on where a file broke off, over a restart too', async (t) => {
  const { open, partial: first } = place(t);
  assert.throws(() => first.find('a', id), { code: 'IMAGE_MISSING' });
  const broken = pieces('fo', new Error('the connection broke'));
  await assert.rejects(first.receive('a', { id, sizeBytes: 6, offset: 0 }, broken), /the connection broke/);
  const { partial, uploads } = open();
  const found = partial.find('a', id);
  assert.ok('receivedBytes' in found && found.receivedBytes === 2);
  for (const offset of [0, 1, 3])
    await assert.rejects(partial.receive('a', { id, sizeBytes: 6, offset }, pieces('x')), {
      code: 'UPLOAD_OFFSET',
      message: '2 bytes of the file are there; send those from there on',
    });
  await partial.receive('a', { id, sizeBytes: 6, offset: 2 }, pieces('o'));
  const whole = await partial.receive('a', { id, sizeBytes: 6, offset: 3 }, pieces('bar'));
  assert.ok('digest' in whole && whole.digest === foobar);
  assert.deepEqual(partial.find('a', id), whole);
  // An answer that was lost.
  assert.deepEqual(await partial.receive('a', { id, sizeBytes: 6, offset: 6 }, pieces()), whole);
  await assert.rejects(partial.receive('a', { id, sizeBytes: 9, offset: 6 }, pieces('baz')), { code: 'UPLOAD_OFFSET' });
  assert.equal(readFileSync(uploads.take(id), 'utf8'), 'foobar');
  assert.throws(() => partial.find('a', id), { code: 'IMAGE_MISSING' });
});

test('PartialUploads.receive ends an earlier connection that sends the same file', async (t) => {
  const { partial } = place(t);
  const came = Promise.withResolvers<void>();
  const silent = Promise.withResolvers<void>();
  const first = partial.receive(
    'a',
    { id, sizeBytes: 6, offset: 0 },
    (async function* () {
      yield Buffer.from('foo');
      came.resolve();
      await silent.promise;
      yield Buffer.from('BAR');
    })(),
  );
  const ended = assert.rejects(first, { code: 'UPLOAD_OFFSET' });
  await came.promise;
  const second = partial.receive('a', { id, sizeBytes: 6, offset: 3 }, pieces('bar'));
  await ended;
  const whole = await second;
  silent.resolve();
  assert.ok('digest' in whole && whole.digest === `sha256:${createHash('sha256').update('foobar').digest('hex')}`);
});

test('PartialUploads keeps nothing of a file that is too long or that nobody goes on with', async (t) => {
  let nowMs = Date.now();
  const { directory, partial } = place(t, () => nowMs);
  await assert.rejects(partial.receive('a', { id, sizeBytes: 2, offset: 0 }, pieces('foo')), { code: 'IMAGE_REFUSED' });
  await assert.rejects(partial.receive('a', { id: '../x', sizeBytes: 2, offset: 0 }, pieces('foo')), {
    code: 'IMAGE_MISSING',
  });
  assert.deepEqual(readdirSync(directory), []);
  await partial.receive('a', { id, sizeBytes: 6, offset: 0 }, pieces('foo'));
  nowMs += 25 * 3_600_000;
  assert.throws(() => partial.find('a', id), { code: 'IMAGE_MISSING' });
  assert.deepEqual(readdirSync(directory), []);
});

test('PartialUploads keeps nobody out by what another owner sends, and knows no other owner’s files', async (t) => {
  const { partial, uploads } = place(t);
  const ids = Array.from({ length: 17 }, (_, i) => `up-${String(i).padStart(32, '0')}`);
  const send = (owner: string, one: string) =>
    partial.receive(owner, { id: one, sizeBytes: 6, offset: 0 }, pieces('f'));
  for (const one of ids.slice(1)) await send('a', one);
  await assert.rejects(send('a', ids[0]!), { code: 'UPLOADS_MANY' });
  assert.throws(() => uploads.checkCount('a', { all: 16, own: 16 }), { code: 'UPLOADS_MANY' });
  await send('b', ids[0]!);
  await uploads.open('b', 1)[Symbol.asyncDispose]();
  assert.throws(() => partial.find('a', ids[0]!), { code: 'IMAGE_MISSING' });
  await send('b', ids[1]!);
  const mine = await partial.receive('b', { id: ids[1]!, sizeBytes: 6, offset: 1 }, pieces('oobar'));
  assert.ok('digest' in mine && mine.digest === foobar);
  const others = partial.find('a', ids[1]!);
  assert.ok('receivedBytes' in others && others.receivedBytes === 1);
});

test('PartialUploads.receive counts what others are still to send as taken', async (t) => {
  const { directory, partial, uploads } = place(t);
  const { bavail, bsize } = statfsSync(directory);
  const most = Math.floor((bavail * bsize) / 4) * 3;
  const came = Promise.withResolvers<void>();
  const rest = Promise.withResolvers<void>();
  const first = partial.receive(
    'a',
    { id, sizeBytes: most, offset: 0 },
    (async function* () {
      yield Buffer.from('foo');
      came.resolve();
      await rest.promise;
    })(),
  );
  await came.promise;
  const second = { id: `up-${'b'.repeat(32)}`, sizeBytes: most, offset: 0 };
  await assert.rejects(partial.receive('b', second, pieces('foo')), { code: 'DISK_FULL' });
  assert.throws(() => uploads.open('b', most), { code: 'DISK_FULL' });
  rest.resolve();
  await first;
  await partial.receive('b', second, pieces('foo'));
});

test('PartialUploads.receive reads nothing again of what came before', async (t) => {
  const { directory, partial } = place(t);
  await partial.receive('a', { id, sizeBytes: 6, offset: 0 }, pieces('fox'));
  const [name] = readdirSync(directory);
  // What came is known: whoever changes the file behind its back is seen by the digest only when it is read anew.
  writeFileSync(path.join(directory, name!), 'foo');
  const whole = await partial.receive('a', { id, sizeBytes: 6, offset: 3 }, pieces('bar'));
  assert.ok('digest' in whole && whole.digest !== foobar);
});
