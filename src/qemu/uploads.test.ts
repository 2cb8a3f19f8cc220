import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/until.ts';
import { Uploads } from './uploads.ts';

const place = (t: TestContext, keepMs?: number): { readonly directory: string; readonly uploads: Uploads } => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ph-uploads-'));
  const uploads = new Uploads({ directory, maxFileBytes: 1024 ** 5, keepMs });
  t.after(async () => {
    await uploads.close();
    rmSync(directory, { recursive: true });
  });
  return { directory, uploads };
};

const pieces = async function* (...texts: readonly string[]): AsyncGenerator<Uint8Array> {
  for (const text of texts) yield Buffer.from(text);
};

test('Uploads.take gives a file to whoever asks first', async (t) => {
  const { uploads } = place(t);
  const { id, digest, sizeBytes } = await uploads.open('a', 6).receive(pieces('foo', 'bar'));
  assert.equal(digest, 'sha256:c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2');
  assert.equal(sizeBytes, 6);
  assert.equal(readFileSync(uploads.take(id), 'utf8'), 'foobar');
  assert.throws(() => uploads.take(id), { code: 'IMAGE_MISSING' });
  assert.throws(() => uploads.take('../../etc/passwd'), { code: 'IMAGE_MISSING' });
});

test('IncomingFile.receive keeps nothing of a file that is not as long as was said', async (t) => {
  const { directory, uploads } = place(t);
  for (const texts of [['foo'], ['foo', 'bar', 'baz'], []])
    await assert.rejects(uploads.open('a', 6).receive(pieces(...texts)), { code: 'IMAGE_REFUSED' });
  const broken = (async function* () {
    yield Buffer.from('foo');
    throw new Error('broken');
  })();
  await assert.rejects(uploads.open('a', 6).receive(broken), /broken/);
  assert.deepEqual(readdirSync(directory), []);
});

test('Uploads forgets a file that nobody uses', async (t) => {
  const { directory, uploads } = place(t, 20);
  const { id } = await uploads.open('a', 3).receive(pieces('foo'));
  await until('it to be forgotten', () => readdirSync(directory).length === 0);
  assert.throws(() => uploads.take(id), { code: 'IMAGE_MISSING' });
});

test('Uploads.open refuses what there is no room for, what is on its way counted', async (t) => {
  const { uploads } = place(t);
  assert.throws(() => uploads.open('a', 1024 ** 5 + 1), { code: 'IMAGE_REFUSED' });
  assert.throws(() => uploads.open('a', 1024 ** 5), { code: 'DISK_FULL' });
  const half = 1024 ** 2;
  const all = Array.from({ length: 16 }, () => uploads.open('a', half));
  assert.throws(() => uploads.open('a', half), { code: 'UPLOADS_MANY' });
  for (const one of all) await one[Symbol.asyncDispose]();
  await uploads.open('a', half)[Symbol.asyncDispose]();
});

test('Uploads.close removes what waits', async (t) => {
  const { uploads } = place(t);
  const { id } = await uploads.open('a', 3).receive(pieces('foo'));
  const { id: taken } = await uploads.open('a', 3).receive(pieces('bar'));
  const file = uploads.take(taken);
  await uploads.close();
  assert.ok(existsSync(file), 'what was taken is the taker’s');
  assert.throws(() => uploads.take(id), { code: 'IMAGE_MISSING' });
});
