/**
 * `plain-http.ts DIRECTORY COUNT`, under a parent with IPC: the least that `node:http` takes for so many servers, at
 * DIRECTORY/0.sock and so on, and the first at a port of the loopback, which it tells. They answer every path with the same
 * few bytes, but /watch with a stream, to which "change" writes a line.
 */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

const [directory = '', count = '1'] = process.argv.slice(2);
const streams = new Set<ServerResponse>();
const body = Buffer.from('instance-id: "i-0"\n');
let port = 0;

for (let i = 0; i < Number(count); i++) {
  const server = (): ReturnType<typeof createServer> =>
    createServer((request, response) => {
      if (!request.url!.startsWith('/watch')) {
        response.writeHead(200, { 'content-type': 'text/plain', 'content-length': String(body.length) });
        response.end(body);
        return;
      }
      response.writeHead(200, { 'content-type': 'application/x-ndjson' });
      response.flushHeaders();
      streams.add(response);
      response.once('close', () => streams.delete(response));
    });
  await new Promise<void>((resolve) => server().listen(join(directory, `${i}.sock`), resolve));
  if (i > 0) continue;
  const loopback = server();
  await new Promise<void>((resolve) => loopback.listen(0, '127.0.0.1', resolve));
  port = (loopback.address() as AddressInfo).port;
}

let value = 0;
process.on('message', () => {
  const line = `{"revision":${++value}}\n`;
  for (const stream of streams) stream.write(line);
});
process.send?.({ port });
