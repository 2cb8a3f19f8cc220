/** Files that commands send to the API, over connections that break. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { ImageLibrary } from '../../src/images/index.ts';
import { temporaryStore } from '../store/temporary.ts';
import { setStage } from './stage.ts';

const fileBytes = 12_000_000;
/** Of one connection, until it is cut; the third is left alone. */
const cutAfterBytes = 4_000_000;

test('porthole image add goes on where a file was when its connection breaks', async (t) => {
  const { directory } = temporaryStore(t);
  await using library = new ImageLibrary({ directory: join(directory, 'oci'), recipes: {} });
  const stage = await setStage(t, { manager: { images: library } });
  const offsets: number[] = [];
  let passed = 0;
  let cuts = 0;
  const proxy = createServer((from) => {
    const to = connect(stage.api.socketPath);
    let sent = 0;
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const) {
      one.on('error', () => other.destroy());
      one.once('close', () => other.destroy());
    }
    to.pipe(from);
    from.on('data', (bytes) => {
      const [, offset] = /^PATCH \S*[?&]offset=(\d+)/.exec(bytes.toString('latin1')) ?? [];
      if (offset !== undefined) offsets.push(Number(offset));
      sent += bytes.length;
      passed += bytes.length;
      if (!to.write(bytes)) from.pause();
      if (sent > cutAfterBytes && cuts < 2 && !from.destroyed) {
        cuts++;
        from.destroy();
        to.end();
      }
    });
    to.on('drain', () => from.resume());
  });
  const socket = join(directory, 'proxy.sock');
  await once(proxy.listen(socket), 'listening');
  t.after(() => proxy.close());
  const bytes = randomBytes(fileBytes);
  writeFileSync(join(stage.api.directory, 'vmlinuz'), bytes);
  const environment = { PORTHOLE_API: `unix:${socket}` };
  const added = await stage.runWith({ environment }, 'image', 'add', 'tiny:1', '--kernel', 'vmlinuz');
  assert.deepEqual(added, { code: 0, out: '', err: '' });
  assert.equal(cuts, 2);
  assert.equal(offsets.length, 3);
  assert.equal(offsets[0], 0);
  assert.ok(offsets[1]! > 0 && offsets[2]! > offsets[1]!, `${offsets}`);
  assert.ok(passed < fileBytes * 1.5, `${passed} bytes were sent of ${fileBytes}`);
  const { digest } = (await stage.api.ask({ path: '/v1/images/tiny/1' })).json as unknown as { digest: string };
  const image = { name: 'tiny', version: '1', digest };
  const read = async (blob: string): Promise<Buffer> =>
    Buffer.concat(await Array.fromAsync((await library.blob(image, blob, { offset: 0 })).bytes));
  const { layers } = JSON.parse((await read(digest)).toString());
  assert.equal(layers[0].digest, `sha256:${createHash('sha256').update(bytes).digest('hex')}`);
});
