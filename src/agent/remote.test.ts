/** A server that is slow, says nonsense, or loses its answers. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { until } from '../../test/until.ts';
import { Replica } from '../tree/index.ts';
import { EACCES, EBUSY, EIO } from '../wire/index.ts';
import { type Answer, type Question, Remote } from './remote.ts';
import { parseServerAddress } from './server-address.ts';
import { ServerClient } from './server-client.ts';

type Serve = (body: string, response: ServerResponse, request: IncomingMessage) => void;

/** A server that answers does so long before; one that does not keeps a test for that long. */
const ASK_MS = 2_000;

class Stage implements AsyncDisposable {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'porthole-remote-'));
  readonly #server: Server;
  readonly #client: ServerClient;
  readonly remote: Remote;
  readonly bodies: string[] = [];
  readonly invalid: string[] = [];

  constructor(serve: Serve) {
    const socket = path.join(this.#directory, 's');
    this.#server = createServer((request, response) => {
      let body = '';
      request.setEncoding('utf8').on('data', (part: string) => {
        body += part;
      });
      request.once('end', () => {
        this.bodies.push(body);
        serve(body, response, request);
      });
    }).listen(socket);
    this.#client = new ServerClient(parseServerAddress(`unix:${socket}`));
    let sequence = 0;
    this.remote = new Remote({
      client: this.#client,
      replica: new Replica(),
      token: () => 'token',
      onTokenInvalid: (token) => this.invalid.push(token),
      nextSequence: () => ++sequence,
      askMs: ASK_MS,
      waitMs: 0,
    });
  }

  get inFlight(): number {
    return this.#client.inFlight;
  }

  ask(input: Question = { node: 1 }): Promise<Answer> {
    return new Promise((resolve) => {
      this.remote.ask('stat', input, resolve);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client[Symbol.dispose]();
    this.#server.closeAllConnections();
    await new Promise((resolve) => {
      this.#server.close(resolve);
    });
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

const json = (response: ServerResponse, status: number, text: string): void => {
  response.writeHead(status, { 'content-type': 'application/json' }).end(text);
};
const caller = { uid: 0, gid: 0, pid: 0 };

test('Remote.ask answers the errno that the server names', async () => {
  await using stage = new Stage((_body, response) => json(response, 403, '{"errno":"EACCES"}'));
  assert.equal(await stage.ask(), EACCES);
});

test('Remote.ask answers EIO for what makes no sense', async () => {
  const replies: readonly (readonly [number, string])[] = [
    [200, ''],
    [200, '{'],
    [200, 'null'],
    [200, '7'],
    [403, '{"errno":"EVIL"}'],
    [403, '{"errno":7}'],
    [418, '{}'],
    [401, '{}'],
  ];
  let [status, text]: readonly [number, string] = replies[0]!;
  await using stage = new Stage((_body, response) => json(response, status, text));
  for (const reply of replies) {
    [status, text] = reply;
    assert.equal(await stage.ask(), EIO, text);
  }
  assert.deepEqual(stage.invalid, ['token']);
});

test('Remote.ask gives a server up that does not answer, or not to the end', async () => {
  await using silent = new Stage(() => {});
  assert.equal(await silent.ask(), EIO);
  await using stuck = new Stage((_body, response) => {
    response.writeHead(200, { 'content-type': 'application/json' });
    response.write('{');
  });
  assert.equal(await stuck.ask(), EIO);
});

test('Remote.ask waits for a server that has too much to do', async () => {
  let answers = 0;
  await using stage = new Stage((_body, response) => {
    if (answers++ < 2) response.writeHead(429).end();
    else json(response, 200, '{"node":{}}');
  });
  assert.deepEqual(await stage.ask(), { node: {} });
});

test('Remote.submit asks again with the same number when its answer was lost', async () => {
  let answers = 0;
  await using stage = new Stage((_body, response) => {
    if (answers++ === 0) response.destroy();
    else json(response, 200, '{"revision":0,"ino":9}');
  });
  const outcome = await new Promise<{ readonly errno: number; readonly ino: number }>((resolve) => {
    stage.remote.submit({ op: 'mkdir', caller, parentIno: 1, name: 'd', mode: 0o755, umask: 0 }, resolve);
  });
  assert.deepEqual({ ...outcome }, { errno: 0, revision: 0, ino: 9 });
  assert.equal(stage.bodies.length, 2);
  assert.equal(stage.bodies[0], stage.bodies[1]);
  assert.match(stage.bodies[0]!, /"sequence":1\b/);
});

test('Remote.submit burns a value once, though its answer was lost', async () => {
  await using stage = new Stage((_body, response) => response.destroy());
  const outcome = await new Promise<{ readonly errno: number }>((resolve) => {
    stage.remote.submit({ op: 'burn', caller, ino: 5 }, resolve);
  });
  assert.equal(outcome.errno, EIO);
  assert.equal(stage.bodies.length, 1);
});

test('Remote.submit tells of every file that may go, however many, past what anybody asks, and until it is answered', async () => {
  const files = 1_000;
  let unanswered = 8;
  const told = new Set<unknown>();
  await using stage = new Stage((body, response, { url }) => {
    if (url?.endsWith('/forget') !== true) return;
    if (unanswered-- > 0) return json(response, 500, '{}');
    told.add((JSON.parse(body) as { readonly node: unknown }).node);
    json(response, 200, '{"revision":0,"ino":0}');
  });
  for (let i = 0; i < 200; i++) void stage.ask({ caller, node: 1 });
  let dropped = 0;
  for (let ino = 1; ino <= files; ino++) stage.remote.submit({ op: 'drop', caller, ino }, () => dropped++);
  await until('all to be told', () => dropped === files);
  assert.equal(told.size, files);
});

test('Remote.submit refuses what would take more memory than one uid may have', async () => {
  await using stage = new Stage((body, response) => {
    if (body.includes('"uid":1000')) json(response, 200, '{"revision":0,"ino":5}');
  });
  const data = new Uint8Array(1024 * 1024);
  const write = { op: 'write', ino: 5, offset: 0, data, append: false, truncate: false, grantedAtOpen: true } as const;
  const errnos: number[] = [];
  for (let i = 0; i < 20; i++) stage.remote.submit({ ...write, caller }, ({ errno }) => errnos.push(errno));
  await setImmediate();
  assert.deepEqual(
    errnos,
    Array.from({ length: 12 }, () => EBUSY),
  );
  const { errno } = await new Promise<{ readonly errno: number }>((resolve) => {
    stage.remote.submit({ ...write, caller: { ...caller, uid: 1000 } }, resolve);
  });
  assert.equal(errno, 0, 'others may still');
});

test('Remote delivers nothing after it was left, neither an answer nor a failure', async () => {
  const arrived = Promise.withResolvers<ServerResponse>();
  await using stage = new Stage((_body, response) => arrived.resolve(response));
  let delivered = 0;
  stage.remote.ask('stat', { node: 1 }, () => delivered++);
  const response = await arrived.promise;
  stage.remote.leave();
  json(response, 200, '{}');
  await until('the answer to have come', () => stage.inFlight === 0);
  await setImmediate();
  assert.equal(delivered, 0);
});
