/** A server whose answers to claims are lost. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { until } from '../../test/until.ts';
import { BootToken, type KeptToken } from './boot-token.ts';
import { parseServerAddress } from './server-address.ts';
import { ServerClient } from './server-client.ts';

type Serve = (response: ServerResponse, claims: number) => void;

class Stage implements AsyncDisposable {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'porthole-token-'));
  readonly #server: Server;
  readonly #client: ServerClient;
  readonly token: BootToken;
  readonly nonces: string[] = [];
  readonly kept: KeptToken[] = [];
  returned = 0;

  /** `claim` answers claims; undefined: nobody is there. */
  constructor(claim?: Serve, kept?: KeptToken) {
    const socket = path.join(this.#directory, 's');
    this.#server = createServer((request, response) => {
      let body = '';
      request.setEncoding('utf8').on('data', (part: string) => {
        body += part;
      });
      request.once('end', () => {
        if (request.url?.endsWith('/return') === true) {
          this.returned++;
          return json(response, 200, '{}');
        }
        this.nonces.push((JSON.parse(body) as { readonly nonce: string }).nonce);
        claim?.(response, this.nonces.length);
      });
    });
    if (claim !== undefined) this.#server.listen(socket);
    this.#client = new ServerClient(parseServerAddress(`unix:${socket}`));
    const keep = (one: KeptToken): void => void this.kept.push(one);
    this.token = new BootToken({ client: this.#client, kept, keep, onWaiting: () => {} });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client[Symbol.dispose]();
    this.#server.closeAllConnections();
    if (this.#server.listening)
      await new Promise((resolve) => {
        this.#server.close(resolve);
      });
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

const json = (response: ServerResponse, status: number, text: string): void => {
  response.writeHead(status, { 'content-type': 'application/json' }).end(text);
};

test('BootToken.handBack returns a token whose claim was not answered: it may have been given out', async () => {
  const first = Promise.withResolvers<ServerResponse>();
  await using stage = new Stage((response, claims) => {
    if (claims === 1) first.resolve(response);
    else json(response, 200, '{"token":"ours"}');
  });
  const claimed = stage.token.get().catch((error: Error) => error.message);
  const lost = await first.promise;
  const handingBack = stage.token.handBack();
  lost.destroy();
  assert.equal(await handingBack, true);
  assert.equal(await claimed, 'the agent ends');
  assert.equal(stage.nonces.length, 2);
  assert.equal(stage.nonces[0], stage.nonces[1]);
  assert.equal(stage.returned, 1);
  assert.deepEqual(stage.kept.at(-1), { nonce: '', token: '' });
});

test('BootToken.handBack says so where it can’t know, and asks nobody where nothing was given out', async () => {
  const left = { nonce: 'left by another', token: '' };
  await using silent = new Stage((response) => response.destroy(), left);
  assert.equal(await silent.token.handBack(), false);
  assert.deepEqual([silent.nonces, silent.kept], [['left by another'], []], 'a successor asks with the same nonce');

  await using refusing = new Stage((response) => json(response, 409, '{}'), left);
  assert.equal(await refusing.token.handBack(), true, 'it is somebody else’s');
  assert.equal(refusing.returned, 0);

  await using away = new Stage();
  const claimed = away.token.get().catch((error: Error) => error.message);
  await until('a nonce', () => away.kept.length > 0);
  assert.equal(await away.token.handBack(), true);
  assert.equal(await claimed, 'the agent ends');

  await using unasked = new Stage(() => assert.fail('it was asked'));
  assert.equal(await unasked.token.handBack(), true);
});
