import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
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
    return { uploads, partial: new PartialUploads({ directory, maxFileBytes, uploads, wallMs }) };
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
  assert.throws(() => first.find(id), { code: 'IMAGE_MISSING' });
  const broken = pieces('fo', new Error('the connection broke'));
  await assert.rejects(first.receive({ id, sizeBytes: 6, offset: 0 }, broken), /the connection broke/);
  const { partial, uploads } = open();
  const found = partial.find(id);
  assert.ok('receivedBytes' in found && found.receivedBytes === 2);
  for (const offset of [0, 1, 3])
    await assert.rejects(partial.receive({ id, sizeBytes: 6, offset }, pieces('x')), {
      code: 'UPLOAD_OFFSET',
      message: '2 bytes of the file are there; send those from there on',
    });
  await partial.receive({ id, sizeBytes: 6, offset: 2 }, pieces('o'));
  const whole = await partial.receive({ id, sizeBytes: 6, offset: 3 }, pieces('bar'));
  assert.ok('digest' in whole && whole.digest === foobar);
  assert.deepEqual(partial.find(id), whole);
  // An answer that was lost.
  assert.deepEqual(await partial.receive({ id, sizeBytes: 6, offset: 6 }, pieces()), whole);
  await assert.rejects(partial.receive({ id, sizeBytes: 9, offset: 6 }, pieces('baz')), { code: 'UPLOAD_OFFSET' });
  assert.equal(readFileSync(uploads.take(id), 'utf8'), 'foobar');
  assert.throws(() => partial.find(id), { code: 'IMAGE_MISSING' });
});

test('PartialUploads.receive ends an earlier connection that sends the same file', async (t) => {
  const { partial } = place(t);
  const came = Promise.withResolvers<void>();
  const silent = Promise.withResolvers<void>();
  const first = partial.receive(
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
  const second = partial.receive({ id, sizeBytes: 6, offset: 3 }, pieces('bar'));
  await ended;
  const whole = await second;
  silent.resolve();
  assert.ok('digest' in whole && whole.digest === `sha256:${createHash('sha256').update('foobar').digest('hex')}`);
});

test('PartialUploads keeps nothing of a file that is too long or that nobody goes on with', async (t) => {
  let nowMs = Date.now();
  const { directory, partial } = place(t, () => nowMs);
  await assert.rejects(partial.receive({ id, sizeBytes: 2, offset: 0 }, pieces('foo')), { code: 'IMAGE_REFUSED' });
  await assert.rejects(partial.receive({ id: '../x', sizeBytes: 2, offset: 0 }, pieces('foo')), {
    code: 'IMAGE_MISSING',
  });
  assert.deepEqual(readdirSync(directory), []);
  await partial.receive({ id, sizeBytes: 6, offset: 0 }, pieces('foo'));
  nowMs += 25 * 3_600_000;
  assert.throws(() => partial.find(id), { code: 'IMAGE_MISSING' });
  assert.deepEqual(readdirSync(directory), []);
});
