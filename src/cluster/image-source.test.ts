import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, get, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { ImageSource } from './image-source.ts';

test('ImageSource tries again when a proxy answers for the region, and not when the region refuses', async (t) => {
  let answer: readonly [number, string] = [200, ''];
  const server = createServer((_, response) => response.writeHead(answer[0]).end(answer[1])).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  const { port } = server.address() as AddressInfo;
  const fetch = async (): Promise<IncomingMessage> => {
    const [incoming] = (await once(get({ host: '127.0.0.1', port, agent: false }), 'response')) as [IncomingMessage];
    return incoming;
  };
  const source = new ImageSource({ fetch }, 'eu', 'default');
  const image = { name: 'tiny', version: '1', digest: `sha256:${'a'.repeat(64)}` };
  const blob = () => source.blob(image, image.digest, { offset: 0 });
  for (answer of [
    [502, '<html>Bad Gateway</html>'],
    [503, '{}'],
    [504, ''],
    [503, JSON.stringify({ code: 'UNAVAILABLE', detail: 'the store gives no answer' })],
  ] as const)
    await assert.rejects(blob(), { code: 'HOST_UNAVAILABLE' });
  answer = [404, JSON.stringify({ code: 'NOT_FOUND', detail: 'there is no such image' })];
  await assert.rejects(blob(), { code: 'NOT_FOUND', message: 'there is no such image' });
});
