import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { ListenError, listen } from '../../src/cluster/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';

const withVm = async (api: TestApi): Promise<void> => {
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', kind: 'attached' } });
  await until('the VM', () => api.host.vms.has('web-1'));
};

/** What a server answers to bytes that are no request of any client, until it closes. */
const raw = (socketPath: string, ...pieces: readonly (string | Buffer)[]): Promise<{ text: string; ms: number }> => {
  const began = performance.now();
  const { promise, resolve } = Promise.withResolvers<{ text: string; ms: number }>();
  let text = '';
  const socket = connect(socketPath, () => {
    for (const piece of pieces) socket.write(piece);
  });
  socket.on('data', (chunk) => (text += chunk.toString('latin1')));
  socket.on('error', () => {});
  socket.on('close', () => resolve({ text, ms: performance.now() - began }));
  return promise;
};

const requestLine = (target: string, ...headers: string[]): string =>
  `GET ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${headers.map((header) => `${header}\r\n`).join('')}\r\n`;

test('a page of another origin, or of a name that points here, gets nothing', async (t) => {
  const api = await startApi(t, {
    listen: { tcp: { host: '127.0.0.1', port: 0, names: ['porthole.example'] }, origins: ['https://console.example'] },
  });
  const { url } = api.server;
  const { port } = new URL(url!);
  const { json } = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: 'k', role: 'viewer' } });
  const ask = async (headers: Record<string, string>): Promise<number> =>
    (await api.ask({ path: '/v1/self', url, key: String(json['text']), headers })).status;
  for (const host of [
    `127.0.0.1:${port}`,
    `localhost:${port}`,
    'LOCALHOST',
    'porthole.example:1',
    'porthole.example.',
    `[::1]:${port}`,
  ])
    assert.equal(await ask({ host }), 200, host);
  for (const host of [
    'evil.example',
    `evil.example:${port}`,
    '127.0.0.1.evil.example',
    'localhost.evil.example',
    'localhost@evil.example',
    '[::1',
    'a b',
    '127.0.0.1:99999999',
  ])
    assert.ok([421, 400].includes(await ask({ host })), host);
  assert.equal(await ask({ origin: url! }), 200);
  assert.equal(await ask({ origin: 'https://console.example' }), 200);
  for (const origin of [
    'null',
    'https://evil.example',
    `http://localhost:${port}`,
    `https://127.0.0.1:${port}`,
    'http://127.0.0.1',
    'https://console.example.evil.example',
  ])
    assert.equal(await ask({ origin }), 403, origin);
});

test('listen refuses to send keys over a network in the clear', async (t) => {
  const api = await startApi(t);
  const start = (host: string) => listen({ manager: api.manager, version: '0', tcp: { host, port: 0 } });
  for (const host of ['0.0.0.0', '::', '192.0.2.1'])
    await assert.rejects(start(host), (error) => error instanceof ListenError && error.code === 'API_TLS_REQUIRED');
  await assert.rejects(
    start('example.com'),
    (error) => error instanceof ListenError && error.code === 'API_BAD_ADDRESS',
  );
  const again = listen({ manager: api.manager, version: '0', socketPath: api.socketPath });
  await assert.rejects(again, (error) => error instanceof ListenError && error.code === 'API_ADDRESS_IN_USE');
  const long = listen({ manager: api.manager, version: '0', socketPath: `/tmp/${'x'.repeat(120)}` });
  await assert.rejects(long, (error) => error instanceof ListenError && /120|125/.test(error.message));
});

test('targets that a parser would change are refused before they are routed', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const base = '/v1/vms/web-1/metadata';
  for (const target of [
    `${base}/../../web-2/metadata/a`,
    `${base}/%2e%2e/a`,
    `${base}/%2E./a`,
    `${base}/a/.`,
    `${base}/a\\b`,
    `${base}/a#b`,
    'http://evil.example/v1/vms',
    '*',
    '//evil.example/v1/vms',
    `${base}/%ff`,
    `${base}/%zz`,
    `${base}/a%2fb`,
    `${base}/a%00b`,
    `${base}/${'a'.repeat(256)}`,
    `${base}/${'a/'.repeat(65)}a`,
  ]) {
    const { text } = await raw(api.socketPath, requestLine(target));
    assert.match(text, /^HTTP\/1\.1 40[04] /, `${target}: ${text.slice(0, 200)}`);
  }
  assert.equal(api.host.vms.get('web-1')!.tree.authority.snapshot.revision, 1);
});

test('bodies that are too large, wrong or strange are refused, and nothing happens', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const path = '/v1/vms/web-1/metadata/a';
  const large = Buffer.alloc(1024 * 1024 + 1, 'x');
  assert.equal((await api.ask({ method: 'PUT', path, body: large })).status, 413);
  // Without a Content-Length it is counted as it comes.
  const chunks = Array.from({ length: 40 }, () => `8000\r\n${'x'.repeat(0x8000)}\r\n`);
  const head = `PUT ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n`;
  assert.match((await raw(api.socketPath, head, ...chunks, '0\r\n\r\n')).text, /^HTTP\/1\.1 413 /);
  assert.equal((await api.ask({ method: 'PUT', path, body: large.subarray(1) })).status, 200);
  const json = { 'content-type': 'application/json' };
  const post = async (body: string, headers: Record<string, string> = json): Promise<string> => {
    const answer = await api.ask({ method: 'POST', path: '/v1/vms', body, headers });
    return `${answer.status} ${String(answer.json['code'])}`;
  };
  assert.equal(await post('{'), '400 BAD_REQUEST');
  assert.equal(await post('[]'), '400 BAD_REQUEST');
  assert.equal(await post('null'), '400 BAD_REQUEST');
  assert.equal(await post('{"name":"b","kind":"attached","nonsense":1}'), '400 BAD_REQUEST');
  assert.equal(await post('{"name":"b","kind":"attached","__proto__":{"start":false}}'), '400 BAD_REQUEST');
  assert.equal(await post('{"name":"b","kind":"attached","labels":{"a\\u0000":"b"}}'), '400 BAD_REQUEST');
  assert.equal(await post('{"name":"b","kind":"attached"}', { 'content-type': 'text/plain' }), '415 WRONG_MEDIA_TYPE');
  assert.equal(await post('{"name":"../b","kind":"attached"}'), '400 BAD_REQUEST');
  assert.equal((await api.ask({ path: '/v1/vms' })).json['vms']!['length'] as unknown, 1);
});

test('a bad request of any shape gets a problem, never a 500', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const values = fc.oneof(
    fc.string(),
    fc.integer(),
    fc.boolean(),
    fc.constant(null),
    fc.array(fc.string(), { maxLength: 3 }),
    fc.dictionary(fc.string(), fc.jsonValue()),
  );
  const bodies = fc.record(
    {
      name: values,
      kind: values,
      labels: values,
      network: values,
      edits: fc.array(fc.record({ op: fc.constantFrom('put', 'remove', 'x'), path: fc.string(), text: fc.string() })),
      conditions: values,
      file: values,
      role: values,
    },
    { requiredKeys: [] },
  );
  const targets = api.contract.operations
    .filter(({ method }) => method !== 'GET')
    .map(({ method, path, id }) => ({
      method,
      path: path
        .replace('{name}', 'web-1')
        .replace('{path}', 'a')
        .replace('{image}', 'i')
        .replace('{version}', '1')
        .replace('{digest}', `sha256:${'0'.repeat(64)}`)
        .replace('{upload}', `up-${'0'.repeat(32)}`)
        .replace('{id}', id.includes('Key') ? '0'.repeat(16) : `op-${'0'.repeat(22)}`),
    }));
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...targets), bodies, fc.string(), async (target, body, query) => {
      const path = `${target.path}?${encodeURIComponent(query)}=${encodeURIComponent(query)}`;
      for (const one of [target.path, path]) {
        const answer = await api.ask({ ...target, path: one, body });
        assert.ok(answer.status < 500, `${target.method} ${one} ${JSON.stringify(body)}: ${answer.text}`);
      }
    }),
    { numRuns: 150 },
  );
});

test('who sends slowly, or too much of a head, is cut off while others are served', async (t) => {
  const limits = { headersTimeoutMs: 1_000, requestTimeoutMs: 2_000, connections: 50 };
  const api = await startApi(t);
  await withVm(api);
  // A second server of the same API: what is asked at the first is never too slow for it, on however busy a machine.
  const socketPath = join(api.directory, 'strict.sock');
  const strict = await listen({ manager: api.manager, version: '0', socketPath, closeMs: 0, limits });
  t.after(() => strict.close());
  const drip = (text: string): Promise<{ text: string; ms: number }> => {
    const began = performance.now();
    const { promise, resolve } = Promise.withResolvers<{ text: string; ms: number }>();
    const socket: Socket = connect(socketPath);
    let sent = 0;
    let got = '';
    const timer = setInterval(() => {
      if (sent < text.length) socket.write(text[sent++]!);
    }, 20);
    socket.on('data', (chunk) => (got += chunk.toString()));
    socket.on('error', () => {});
    socket.on('close', () => {
      clearInterval(timer);
      resolve({ text: got, ms: performance.now() - began });
    });
    return promise;
  };
  const slow = [
    ...Array.from({ length: 20 }, () => drip(requestLine('/healthz', `X-A: ${'a'.repeat(500)}`))),
    ...Array.from({ length: 20 }, () =>
      drip(`PUT /v1/vms/web-1/metadata/a HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n${'x'.repeat(900)}`),
    ),
  ];
  for (let i = 0; i < 20; i++)
    await until('an answer', async () => (await api.ask({ path: '/healthz', socketPath })).status === 200);
  for (const { text } of await Promise.all(slow)) assert.match(text, /^(HTTP\/1\.1 408 [^]*)?$/);
  const fat = await raw(api.socketPath, requestLine('/healthz', `X-A: ${'a'.repeat(20_000)}`));
  assert.match(fat.text, /^HTTP\/1\.1 431 /);
  const many = await raw(api.socketPath, requestLine('/healthz', 'Content-Length: 5', 'Transfer-Encoding: chunked'));
  assert.match(many.text, /^HTTP\/1\.1 400 /);
  assert.equal(api.host.vms.get('web-1')!.tree.authority.snapshot.revision, 1);
});

test('a stream whose reader takes nothing is cut off, and holds no more than a little', async (t) => {
  const api = await startApi(t, { listen: { streamTiming: { heartbeatMs: 30, stallMs: 200 } } });
  await withVm(api);
  const { console } = api.host.vms.get('web-1')!;
  const socket = connect(api.socketPath);
  socket.pause();
  socket.on('error', () => {});
  socket.write(requestLine('/v1/vms/web-1/console/stream?offset=0'));
  const streams = async (): Promise<string> =>
    /porthole_api_streams (\d+)/.exec((await api.ask({ path: '/metrics' })).text)![1]!;
  // Heartbeats alone are taken by the kernel, for as long as this takes to be seen.
  await until('the stream', async () => (await streams()) === '1');
  for (let i = 0; i < 200; i++) console.print('x'.repeat(64 * 1024));
  await until('its end', async () => (await streams()) === '0');
  socket.destroy();
});

test('there are only so many streams, and closing one makes room', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const sockets = Array.from({ length: 64 }, () => {
    const socket = connect(api.socketPath);
    socket.on('error', () => {});
    socket.resume();
    socket.write(requestLine('/v1/vms/web-1/changes'));
    return socket;
  });
  const streams = async (count: number): Promise<boolean> =>
    (await api.ask({ path: '/metrics' })).text.includes(`porthole_api_streams ${count}\n`);
  await until('the streams', () => streams(64));
  assert.equal((await api.ask({ path: '/v1/vms/web-1/changes' })).json['code'] as unknown, 'TOO_MANY_REQUESTS');
  sockets.pop()!.destroy();
  await until('room', () => streams(63));
  for (const socket of sockets) socket.destroy();
  await until('the end', () => streams(0));
});

test('close ends streams, and lets a request that is under way end', async (t) => {
  const api = await startApi(t, { listen: { closeMs: 60_000 } });
  await withVm(api);
  const { tree } = api.host.vms.get('web-1')!;
  const gate = Promise.withResolvers<void>();
  const held = Promise.withResolvers<void>();
  tree.beforeEdit = () => {
    held.resolve();
    return gate.promise;
  };
  const stream = raw(api.socketPath, requestLine('/v1/vms/web-1/changes'));
  await until('the stream', async () =>
    (await api.ask({ path: '/metrics' })).text.includes('porthole_api_streams 1\n'),
  );
  const write = api.ask({ method: 'PUT', path: '/v1/vms/web-1/metadata/a', body: 'x' });
  await held.promise;
  const closed = api.server.close();
  assert.match((await stream).text, /event: start[^]*0\r\n\r\n$/);
  gate.resolve();
  assert.equal((await write).status, 200);
  await closed;
});

test('long requests of one identity are few at once, and end with their answers', async (t) => {
  const api = await startApi(t);
  const gate = Promise.withResolvers<void>();
  let asked = 0;
  api.host.audit = async () => {
    asked++;
    await gate.promise;
    return { events: [], next: undefined };
  };
  const ask = () => api.ask({ path: '/v1/audit' });
  const waiting = Array.from({ length: 4 }, ask);
  await until('the requests', () => asked === 4);
  const refused = await ask();
  assert.deepEqual([refused.status, refused.headers['retry-after']], [429, '1']);
  gate.resolve();
  for (const { status } of await Promise.all(waiting)) assert.equal(status, 200);
  await until('a turn', async () => (await ask()).status === 200);
});
