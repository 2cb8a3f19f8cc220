/** Requests with an Idempotency-Key whose daemon is killed: their effect is had once, and a repeat is answered as they were. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { createKeyFile } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { type HttpAnswer, type HttpRequest, http } from './http.ts';
import { type Stage, stages } from './killed-daemon.ts';

class Killed {
  readonly #directory: string;
  #kill: () => Promise<void> = async () => {};
  #held = 0;

  constructor(t: TestContext) {
    this.#directory = mkdtempSync(join(tmpdir(), 'porthole-killed-'));
    createKeyFile(join(this.#directory, 'key'));
    t.after(async () => {
      await this.kill();
      rmSync(this.#directory, { recursive: true });
    });
  }

  ask(request: HttpRequest): Promise<HttpAnswer> {
    return http({ socketPath: join(this.#directory, 'api.sock'), ...request });
  }

  async start(stage?: Stage): Promise<void> {
    const script = new URL('./killed-daemon.ts', import.meta.url).pathname;
    const child = spawn(process.execPath, [script, this.#directory, ...(stage === undefined ? [] : [stage])], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const exited = once(child, 'exit');
    const isUp = Promise.withResolvers<void>();
    this.#held = 0;
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line === 'up') isUp.resolve();
      else this.#held++;
    });
    this.#kill = async () => {
      child.kill('SIGKILL');
      assert.deepEqual(await exited, [null, 'SIGKILL'], 'the daemon ended by itself');
    };
    await Promise.race([isUp.promise, exited.then(() => assert.fail('the daemon ended by itself'))]);
  }

  /** Until as many requests are held. */
  async held(count: number): Promise<void> {
    await until(`${count} requests to be held`, () => this.#held >= count, 60_000);
  }

  async kill(): Promise<void> {
    await this.#kill();
    this.#kill = async () => {};
  }
}

const yaml = { 'content-type': 'application/yaml' };
const specOf = (value: string): string => `porthole: 1\nmetadata:\n  a: ${value}\n`;
const policyOf = (owner: number): string => `policy:\n  - { path: /a, owner: ${owner}, mode: "0400" }\n`;

/** A way to change something. Each has a VM of its own, for requests to one tree wait for each other. */
interface Change {
  /** Of what is there before. */
  readonly make: HttpRequest;
  /** Also that of somebody else, later. */
  readonly change: (value: string) => HttpRequest;
  readonly look: HttpRequest;
  /** Whether it is made on the condition that nothing was changed since `look`. */
  readonly isConditional: boolean;
}

const changes: Readonly<Record<string, Change>> = {
  put: {
    make: { method: 'PUT', path: '/metadata/a', body: 'first' },
    change: (value) => ({ method: 'PUT', path: '/metadata/a', body: value }),
    look: { path: '/metadata/a' },
    isConditional: true,
  },
  'put-blind': {
    make: { method: 'PUT', path: '/metadata/a', body: 'first' },
    change: (value) => ({ method: 'PUT', path: '/metadata/a', body: value }),
    look: { path: '/metadata/a' },
    isConditional: false,
  },
  batch: {
    make: { method: 'PUT', path: '/metadata/a', body: 'first' },
    change: (value) => ({
      method: 'POST',
      path: '/transactions',
      // More than goes into one transaction of the store.
      body: {
        edits: [
          { op: 'put', path: '/a', text: value },
          ...Array.from({ length: 120 }, (_, i) => ({ op: 'put', path: `/many/${i}`, text: value })),
        ],
      },
    }),
    look: { path: '/metadata/a' },
    isConditional: false,
  },
  import: {
    make: { method: 'PUT', path: '/spec', headers: yaml, body: specOf('first') },
    change: (value) => ({ method: 'PUT', path: '/spec', headers: yaml, body: specOf(value) }),
    look: { path: '/spec' },
    isConditional: true,
  },
  policy: {
    make: { method: 'PUT', path: '/policy', headers: yaml, body: policyOf(1) },
    change: (value) => ({ method: 'PUT', path: '/policy', headers: yaml, body: policyOf(value.length) }),
    look: { path: '/policy' },
    isConditional: true,
  },
};

test('a daemon that is killed anywhere in a request with an Idempotency-Key has its effect once, and the repeat is answered as it was', async (t) => {
  const daemon = new Killed(t);
  await daemon.start();
  const names = [...Object.keys(changes), 'remove', 'boot'];
  const ask = async (vm: string, { path, headers, ...request }: HttpRequest, more: HttpRequest['headers'] = {}) => {
    const answer = await daemon.ask({ ...request, path: `/v1/vms/${vm}${path}`, headers: { ...headers, ...more } });
    assert.ok(answer.status < 300, `${vm}: ${answer.status} ${answer.text}`);
    return answer;
  };
  for (const name of names) {
    const { status, text } = await daemon.ask({ method: 'POST', path: '/v1/vms', body: { name, kind: 'attached' } });
    assert.equal(status, 202, text);
    await until('the VM', async () => (await daemon.ask({ path: `/v1/vms/${name}` })).json['status'] !== undefined);
    if (changes[name] !== undefined) await ask(name, changes[name].make);
  }
  const removal: HttpRequest = { method: 'DELETE', path: '/metadata/gone' };
  const making: HttpRequest = { method: 'PUT', path: '/metadata/gone', body: 'x' };
  const boot: HttpRequest = { method: 'POST', path: '/boots' };
  let boots = 0;

  for (const stage of stages) {
    const keyOf = (name: string) => ({ 'idempotency-key': `${name}-${stage}` });
    await ask('remove', making);
    const requests = new Map<string, HttpRequest>([
      ['remove', removal],
      ['boot', boot],
    ]);
    const before = new Map<string, string>();
    for (const [name, { change, look, isConditional }] of Object.entries(changes)) {
      const seen = await ask(name, look);
      before.set(name, seen.text);
      const made = change(`mine-${stage}`);
      const condition = isConditional ? { 'if-match': String(seen.headers['etag']) } : {};
      requests.set(name, { ...made, headers: { ...made.headers, ...condition } });
    }
    await daemon.kill();

    await daemon.start(stage);
    const lost = [...requests].map(([name, request]) =>
      assert.rejects(ask(name, request, keyOf(name)), { code: 'ECONNRESET' }, `${name} was answered`),
    );
    await daemon.held(requests.size);
    await daemon.kill();
    await Promise.all(lost);

    await daemon.start();
    const isDone = stage !== 'begun';
    for (const [name, { change, look }] of Object.entries(changes)) {
      const what = `${name}, killed when it was ${stage}`;
      const seen = await ask(name, look);
      assert.equal(seen.text !== before.get(name), isDone, what);
      // What somebody else does now is not undone by the repeat of what was done before.
      const later = isDone ? await ask(name, change(`others-${stage}`)) : undefined;
      const now = await ask(name, look);
      const repeat = await ask(name, requests.get(name)!, keyOf(name));
      const after = await ask(name, look);
      assert.equal(after.text !== now.text, !isDone, what);
      assert.equal(after.headers['etag'] !== now.headers['etag'], !isDone, what);
      if (later !== undefined) assert.notEqual(repeat.json['revision'], later.json['revision'], what);
      if (repeat.headers['etag'] !== undefined)
        assert.equal(repeat.headers['etag'], (isDone ? seen : after).headers['etag'], `${what}: its own ETag`);
      assert.ok(Number(repeat.json['changes'] ?? 1) >= 1, `${what}: its own changes`);
      const again = await ask(name, requests.get(name)!, keyOf(name));
      assert.deepEqual([again.text, again.headers['idempotent-replay']], [repeat.text, 'true'], what);
      assert.equal((await ask(name, look)).text, after.text, what);
    }

    if (isDone) await ask('remove', making);
    const removed = await ask('remove', removal, keyOf('remove'));
    assert.equal((await ask('remove', removal, keyOf('remove'))).text, removed.text);
    const { status } = await daemon.ask({ path: '/v1/vms/remove/metadata/gone' });
    assert.equal(status, isDone ? 200 : 404, `a removal, killed when it was ${stage}`);

    const number = async (request?: HttpRequest['headers']) =>
      Number((await ask('boot', boot, request)).json['number']);
    if (isDone) assert.equal(await number(), boots + 2);
    assert.deepEqual(
      [await number(keyOf('boot')), await number(keyOf('boot'))],
      [boots + 1, boots + 1],
      `a boot, killed when ${stage}`,
    );
    boots += isDone ? 2 : 1;
  }
});
