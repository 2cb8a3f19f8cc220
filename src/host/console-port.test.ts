import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { VmConsolePort } from './console-port.ts';
import { HostRefusal } from './host-error.ts';

test('VmConsolePort.stream ends when the VM is gone', { timeout: 60_000 }, async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-console-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const paths = { consoleLog: join(directory, 'console.log'), console: join(directory, 'console.sock') };
  const port = new VmConsolePort({ paths, isRunning: () => false });
  const { pieces } = await port.stream({});
  const next = pieces[Symbol.asyncIterator]().next();
  port.end(new HostRefusal('HOST_NO_VM', 'this host has no VM "web"'));
  await assert.rejects(next, { code: 'HOST_NO_VM' });
});
