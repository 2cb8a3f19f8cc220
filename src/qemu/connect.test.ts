import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { connectToItself } from './connect.ts';
import { Qmp } from './qmp.ts';

/** Undefined for one that is closed meanwhile. */
const readlink = (file: string): string | undefined => {
  try {
    return readlinkSync(file);
  } catch {
    return undefined;
  }
};

test('connectToItself connects to a socket, and follows no link to another', async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ph-connect-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const [own, link, file] = ['own', 'link', 'file'].map((name) => path.join(directory, name));
  let connections = 0;
  const server = createServer((socket) => {
    connections++;
    socket.end('hello');
  });
  server.listen(own);
  await once(server, 'listening');
  t.after(() => server.close());
  const socket = connectToItself(own!);
  const [hello] = (await once(socket, 'data')) as [Buffer];
  assert.equal(hello.toString(), 'hello');
  await once(socket, 'close');
  const open = readdirSync('/proc/self/fd').map((fd) => readlink(`/proc/self/fd/${fd}`));
  assert.ok(!open.includes(own));
  symlinkSync(own!, link!);
  writeFileSync(file!, '');
  assert.throws(() => connectToItself(link!), /is no socket; something was put in its place/);
  assert.throws(() => connectToItself(file!), /is no socket/);
  assert.throws(() => connectToItself(path.join(directory, 'none')), { code: 'ENOENT' });
  await assert.rejects(Qmp.connect(link!), /is no socket/);
  assert.equal(connections, 1);
});
