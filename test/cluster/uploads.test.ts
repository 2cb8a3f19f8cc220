/** Files that come over the API, from clients that are slow, gone or not allowed to. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { Client, ClientError, listen } from '../../src/cluster/index.ts';
import type { ImageRequest } from '../../src/records/index.ts';
import { until } from '../until.ts';
import { startApi } from './api.ts';

const mebibyte = 1024 * 1024;

async function* repeated(piece: Uint8Array, times: number, waitMs: number): AsyncGenerator<Uint8Array> {
  for (let sent = 0; sent < times; sent++) {
    if (waitMs > 0) await pause(waitMs);
    yield piece;
  }
}

test('an upload may take longer than any other request, and an image is made from it', async (t) => {
  const limits = { headersTimeoutMs: 300, requestTimeoutMs: 300, connections: 50 };
  const api = await startApi(t);
  using client = new Client({ socketPath: api.socketPath });
  // A second server of the same API: other requests go to the first, and may be slow on a busy machine.
  const socketPath = join(api.directory, 'strict.sock');
  const strict = await listen({ manager: api.manager, version: '0', socketPath, closeMs: 0, limits });
  t.after(() => strict.close());
  using uploading = new Client({ socketPath });
  const piece = new Uint8Array(mebibyte / 2).fill(7);
  const began = performance.now();
  const upload = await uploading.upload('uploadFile', { sizeBytes: 3 * mebibyte, chunks: repeated(piece, 6, 200) });
  assert.ok(performance.now() - began > 3 * limits.requestTimeoutMs);
  const digest = createHash('sha256')
    .update(Buffer.alloc(3 * mebibyte, 7))
    .digest('hex');
  assert.equal(upload.digest, `sha256:${digest}`);
  assert.equal(api.host.uploads.get(upload.id)?.length, 3 * mebibyte);
  let asked: ImageRequest | undefined;
  api.host.addImageWith = async (request) => {
    asked = request;
    return { digest: upload.digest, sizeBytes: 1, virtualSizeBytes: 1 };
  };
  const added = await client.call('addImage', {
    body: { name: 'tiny', kernel: { kernel: { upload: upload.id }, commandLine: 'quiet' } },
  });
  assert.equal((await client.finished(added.id)).state, 'succeeded');
  assert.deepEqual(asked?.source, {
    kind: 'kernel',
    kernel: { from: 'upload', id: upload.id },
    initrd: undefined,
    commandLine: 'quiet',
  });
});

test('an upload that is refused is not sent', async (t) => {
  const api = await startApi(t, { listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const { text: key } = (await api.ask({ method: 'POST', path: '/v1/keys', body: { name: 'op', role: 'operator' } }))
    .json as unknown as { text: string };
  let read = 0;
  const chunks = (async function* () {
    read++;
    yield new Uint8Array(1);
  })();
  const refused = async (client: Client, sizeBytes: number): Promise<string> => {
    using closing = client;
    return await closing.upload('uploadFile', { sizeBytes, chunks }).then(
      () => 'taken',
      (error: unknown) => (error instanceof ClientError ? error.code : String(error)),
    );
  };
  assert.equal(await refused(new Client({ socketPath: api.socketPath }), 1024 ** 5), 'TOO_LARGE');
  assert.equal(await refused(new Client({ url: api.server.url!, key }), 1), 'FORBIDDEN');
  assert.equal(await refused(new Client({ url: api.server.url!, key: 'ph_x_y' }), 1), 'BAD_KEY');
  assert.equal(read, 0);
});

test('an upload that breaks off leaves nothing', async (t) => {
  const api = await startApi(t);
  const socket = connect(api.socketPath);
  socket.on('error', () => {});
  socket.write('POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nonly this');
  await until('it to come', () => api.host.coming.size === 1);
  socket.destroy();
  await until('its end', () => api.host.coming.size === 0);
  assert.equal(api.host.uploads.size, 0);
  assert.ok(!api.logged.some(({ level }) => Number(level) >= 50), 'nothing of it is a fault of the server');
});

test('the client says why it could not send a file, when that is its own fault', async (t) => {
  const api = await startApi(t);
  using client = new Client({ socketPath: api.socketPath });
  const chunks = (async function* () {
    yield new Uint8Array(10);
    throw new Error('the disk is broken');
  })();
  await assert.rejects(client.upload('uploadFile', { sizeBytes: 100, chunks }), /the disk is broken/);
  await until('its end', () => api.host.coming.size === 0);
});
