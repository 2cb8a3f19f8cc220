import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { until } from '../../test/until.ts';
import { QemuError, type QemuErrorCode } from './error.ts';
import { Qmp, QmpError } from './qmp.ts';

const dir = mkdtempSync(join(tmpdir(), 'porthole-qmp-'));
const socket = join(dir, 'qmp');
let qemu: ChildProcess;

/** A real QEMU with no machine in it. */
before(async () => {
  const args = ['-machine', 'none', '-nodefaults', '-display', 'none', '-qmp', `unix:${socket},server=on,wait=off`];
  qemu = spawn('qemu-system-x86_64', args, { stdio: 'ignore' });
  const listens = async (): Promise<boolean> => {
    await using qmp = await Qmp.connect(socket);
    return (await qmp.execute('query-name')) !== undefined;
  };
  await until('the monitor', () => listens().catch(() => false));
});
after(async () => {
  const exit = once(qemu, 'exit');
  qemu.kill('SIGKILL');
  await exit;
  rmSync(dir, { recursive: true });
});

const failsWith = (code: QemuErrorCode, pattern: RegExp) => (error: unknown) =>
  error instanceof QemuError && error.code === code && pattern.test(error.message);

test('Qmp answers commands, each its own, to one client after another', async () => {
  for (let round = 0; round < 2; round++) {
    await using qmp = await Qmp.connect(socket);
    const [status, name, version] = await Promise.all(
      ['query-status', 'query-name', 'query-version'].map((command) => qmp.execute(command)),
    );
    assert.equal((status as { running: boolean }).running, true);
    assert.deepEqual(name, {});
    assert.ok((version as { qemu: object }).qemu);
    const schema = await qmp.execute('query-qmp-schema');
    assert.ok(Array.isArray(schema) && schema.length > 100, 'an answer of many pieces');
  }
});

test('Qmp rejects with what QEMU says of a command', async () => {
  await using qmp = await Qmp.connect(socket);
  await assert.rejects(qmp.execute('no-such-command'), (error) => {
    assert.ok(error instanceof QmpError);
    assert.equal(error.errorClass, 'CommandNotFound');
    assert.equal(error.description, 'The command no-such-command has not been found');
    assert.equal(error.message, 'QMP command "no-such-command" failed: The command no-such-command has not been found');
    return true;
  });
  await assert.rejects(qmp.execute('stop', { bad: 1 }), /Parameter 'bad' is unexpected/);
});

test('Qmp gives events to listeners and iterators until it ends', async () => {
  const qmp = await Qmp.connect(socket);
  const stop = new AbortController();
  const heard: string[] = [];
  const off = qmp.onEvent(({ event }) => heard.push(event));
  const read = async (signal?: AbortSignal): Promise<string[]> => {
    const names: string[] = [];
    for await (const { event, timeMs } of qmp.events(signal)) {
      assert.ok(Math.abs(timeMs - Date.now()) < 60_000);
      names.push(event);
    }
    return names;
  };
  const short = read(stop.signal);
  const whole = read();
  await qmp.execute('stop');
  await until('the event', () => heard.includes('STOP'));
  stop.abort();
  assert.deepEqual(await short, ['STOP']);
  off();
  await qmp.execute('cont');
  qmp.close();
  assert.deepEqual(await whole, ['STOP', 'RESUME']);
  assert.deepEqual(heard, ['STOP']);
  await assert.rejects(qmp.execute('query-status'), failsWith('QMP_LOST', /QEMU closed its monitor/));
});

/** Connects a client to a monitor that does what `serve` says. */
async function against(serve: (socket: Socket) => void): Promise<Qmp> {
  const path = join(dir, `fake-${Math.random()}`);
  const server = createServer((client) => {
    client.on('error', () => {});
    client.write('{"QMP": {"version": {}, "capabilities": []}}\r\n');
    client.once('data', () => {
      client.write('{"return": {}, "id": 1}\r\n');
      serve(client);
    });
  }).listen(path);
  await once(server, 'listening');
  try {
    return await Qmp.connect(path);
  } finally {
    server.close();
  }
}

test('Qmp gives up a QEMU that does not answer in time, and drops what it answers later', async () => {
  let later = (): void => {};
  const qmp = await against((client) => {
    later = () => client.write('{"return": "late", "id": 2}\n{"return": "right", "id": 3}\n');
  });
  await assert.rejects(
    qmp.execute('query-status', undefined, { timeoutMs: 20 }),
    failsWith('QMP_TIMEOUT', /did not answer QMP command "query-status" within 20 ms/),
  );
  const answer = qmp.execute('query-name');
  later();
  assert.equal(await answer, 'right');
  const stop = new AbortController();
  const aborted = qmp.execute('query-name', undefined, { signal: stop.signal });
  stop.abort(new Error('enough'));
  await assert.rejects(aborted, /enough/);
  qmp.close();
});

test('Qmp ends a connection over which something else than QMP comes', async () => {
  const broken: [string | Buffer, RegExp][] = [
    ['hello\x1b[2J\n', /said a line that is no JSON: "hello\\u\{1b\}\[2J"/],
    ['[1]\n', /a line that is no object/],
    ['null\n', /a line that is no object/],
    [Buffer.alloc(5 * 1024 * 1024, 97), /a line of more than 4194304 bytes/],
  ];
  for (const [said, pattern] of broken) {
    const qmp = await against((client) => client.write(said));
    await assert.rejects(qmp.execute('query-status'), failsWith('QMP_BROKEN', pattern));
    await qmp.closed;
  }
});

test('Qmp takes no harm from odd answers and events', async () => {
  const odd = [
    '{}',
    '{"event":"X"}',
    '{"event":"Y","data":[],"timestamp":7}',
    '{"id":"2"}',
    '{"id":99,"error":{}}',
    '',
  ];
  const qmp = await against((client) =>
    client.once('data', () => client.write(`${odd.join('\n')}\n{"id":2,"error":{"desc":7}}\n`)),
  );
  const heard: unknown[] = [];
  qmp.onEvent((event) => heard.push(event));
  await assert.rejects(qmp.execute('query-status'), /QMP command "query-status" failed: 7/);
  assert.deepEqual(heard, [
    { event: 'X', data: {}, timeMs: 0 },
    { event: 'Y', data: {}, timeMs: 0 },
  ]);
  qmp.close();
});

test('Qmp.connect says where nobody listens', async () => {
  await assert.rejects(
    Qmp.connect(join(dir, 'nobody')),
    failsWith('QMP_LOST', /connecting to QEMU's monitor ".*nobody" failed/),
  );
});
