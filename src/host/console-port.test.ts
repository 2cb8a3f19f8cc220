import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/until.ts';
import { VmConsolePort } from './console-port.ts';
import { HostRefusal } from './host-error.ts';

function pathsOf(t: TestContext) {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-console-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return { consoleLog: join(directory, 'console.log'), console: join(directory, 'console.sock') };
}

test('VmConsolePort.write tells nothing to a watcher that makes way for another', { timeout: 60_000 }, async (t) => {
  const paths = pathsOf(t);
  const listen = async (onData: (bytes: Buffer) => void): Promise<Server> => {
    const server = createServer((socket) => socket.on('data', onData)).listen(paths.console);
    await once(server, 'listening');
    return server;
  };
  const old = await listen(() => assert.fail('it is told nothing'));
  let looks = 0;
  let hasWatcher = false;
  const port = new VmConsolePort({
    paths,
    isRunning: () => true,
    hasWatcher: () => {
      looks += 1;
      return hasWatcher;
    },
  });
  t.after(() => port.close());
  const written = port.write(Buffer.from('typed'));
  await until('two looks', () => looks >= 2);
  old.close();
  await once(old, 'close');
  const heard = Promise.withResolvers<string>();
  const another = await listen((bytes) => heard.resolve(bytes.toString()));
  t.after(() => another.close());
  hasWatcher = true;
  await written;
  assert.equal(await heard.promise, 'typed');
});

test('VmConsolePort.stream ends when the VM is gone', { timeout: 60_000 }, async (t) => {
  const port = new VmConsolePort({ paths: pathsOf(t), isRunning: () => false, hasWatcher: () => false });
  const { pieces } = await port.stream({});
  const next = pieces[Symbol.asyncIterator]().next();
  port.end(new HostRefusal('HOST_NO_VM', 'this host has no VM "web"'));
  await assert.rejects(next, { code: 'HOST_NO_VM' });
});
