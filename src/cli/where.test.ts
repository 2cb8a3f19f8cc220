import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Api } from './api.ts';
import { Unreachable } from './unreachable.ts';
import { findApi, parseAddress } from './where.ts';

const home = (t: TestContext): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-where-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
};

test('parseAddress takes sockets and servers, and says what is wrong with anything else', () => {
  assert.deepEqual(parseAddress('unix:/a/b'), { kind: 'unix', path: '/a/b' });
  assert.deepEqual(parseAddress('unix:///a/b'), { kind: 'unix', path: '/a/b' });
  assert.deepEqual(parseAddress('https://h:1'), { kind: 'http', url: new URL('https://h:1') });
  const wrong: Readonly<Record<string, RegExp>> = {
    '/a/b': /"\/a\/b" is no address of an API; write "unix:\/a\/b"/,
    'ftp://h': /write "unix:PATH" or "https:\/\/HOST:PORT"/,
    'unix:': /is no address/,
    'https://h/v1': /a host and a port and no more; write "https:\/\/h"/,
    'https://user:secret@h': /a host and a port and no more/,
  };
  for (const [text, message] of Object.entries(wrong))
    assert.throws(() => parseAddress(text), { name: 'UsageError', message }, text);
});

test('findApi gives a key to the address that it is for only, and never in the clear', (t) => {
  const HOME = home(t);
  const file = join(HOME, '.config', 'porthole', 'config.yaml');
  mkdirSync(join(file, '..'), { recursive: true });
  const environment = { HOME };
  assert.deepEqual(findApi(undefined, environment), {
    address: { kind: 'unix', path: '/run/porthole/api.sock' },
    key: undefined,
  });
  writeFileSync(file, 'api: https://one:1\nkey: ph_x\n', { mode: 0o600 });
  assert.equal(findApi(undefined, environment).key, 'ph_x');
  assert.equal(findApi('https://one:1', environment).key, 'ph_x');
  assert.equal(findApi('https://two:1', environment).key, undefined);
  assert.equal(findApi('http://one:1', environment).key, undefined);
  const keyFile = join(HOME, 'k');
  writeFileSync(keyFile, 'ph_y\n', { mode: 0o600 });
  const named = { ...environment, PORTHOLE_KEY_FILE: keyFile };
  assert.equal(findApi('https://two:1', named).key, 'ph_y');
  assert.equal(findApi('http://127.0.0.1:1', named).key, 'ph_y');
  assert.throws(() => findApi('http://two:1', named), {
    message: /would carry the key for all to read; write "https:\/\/two:1"/,
  });
  chmodSync(keyFile, 0o640);
  assert.throws(() => findApi('https://two:1', named), {
    message: `others may read the key in "${keyFile}"; run: chmod 600 ${keyFile}`,
  });
  chmodSync(keyFile, 0o600);
  writeFileSync(keyFile, 'hunter2');
  assert.throws(
    () => findApi('https://two:1', named),
    (error: Error) => /has no key in it/.test(error.message) && !error.message.includes('hunter2'),
  );
  for (const text of ['key: [', 'kei: x', 'key: a\nkeyFile: b', 'just text']) {
    writeFileSync(file, text);
    assert.throws(() => findApi(undefined, environment), { name: 'UsageError' }, text);
  }
});

test('Api says at once why nobody answers, and what to do', async (t) => {
  const directory = home(t);
  const asked = async (address: string): Promise<string> => {
    const { signal } = new AbortController();
    const api = new Api({ address: parseAddress(address), key: 'ph_x' }, signal);
    const error = await api.call('listImages').then(
      () => assert.fail('somebody answered'),
      (thrown: unknown) => thrown,
    );
    assert.ok(error instanceof Unreachable, String(error));
    return error.message;
  };
  const gone = join(directory, 'gone.sock');
  const server = createServer().listen(gone);
  await new Promise((resolve) => server.once('listening', resolve));
  const begun = performance.now();
  assert.equal(
    await asked(`unix:${directory}/none.sock`),
    `there is no socket "${directory}/none.sock"; is the host daemon running, with this --run directory?`,
  );
  assert.match(
    await asked('unix:/run/porthole/api.sock'),
    /^the host daemon is not running: .*start it with "porthole up"/,
  );
  assert.match(
    await asked('https://127.0.0.1:1'),
    /^nobody listens at "https:\/\/127\.0\.0\.1:1"; is the host daemon running there/,
  );
  // A client that waits for a server does so for 10 s.
  assert.ok(performance.now() - begun < 10_000, 'it waited for a server that was never there');
  assert.match(
    await asked('https://nowhere.invalid:1'),
    /^there is no host "nowhere\.invalid"|can't be reached|failed/,
  );
  // Something that is no TLS server.
  const plain = createServer((socket) => socket.on('error', () => {}).end('hello\r\n')).listen(0, '127.0.0.1');
  await new Promise((resolve) => plain.once('listening', resolve));
  const { port } = plain.address() as { port: number };
  assert.match(await asked(`https://127.0.0.1:${port}`), /does not speak TLS|failed/);
  server.close();
  plain.close();
});
