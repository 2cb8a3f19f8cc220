/** `serve` on directories of this machine, as a person uses it. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Server, serve } from '../../src/host/index.ts';

const stage = (t: TestContext): { readonly mount: string; readonly serveOn: (mount: string) => Promise<Server> } => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-serve-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const file = path.join(directory, 'web.yaml');
  writeFileSync(file, 'porthole: 1\nmetadata: { instance: { id: i-1 } }\n');
  const mount = path.join(directory, 'mnt');
  mkdirSync(mount);
  const serveOn = (on: string): Promise<Server> =>
    serve({ file, vhostUser: [], mounts: [on], writeStdout: () => true, onEvent: () => {} });
  return { mount, serveOn };
};

const mounts = (directory: string): number =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line.split(' ')[4] === directory).length;

test('serve refuses a directory that is served already, and leaves it served', async (t) => {
  const { mount, serveOn } = stage(t);
  await using first = await serveOn(mount);
  await assert.rejects(serveOn(mount), /a FUSE file system is mounted on ".*mnt" already; unmount it, or give another/);
  assert.ok(first.devicePid);
  assert.equal(mounts(mount), 1);
  assert.equal(readFileSync(path.join(mount, 'instance', 'id'), 'utf8'), 'i-1');
});

test('serve mounts through a symbolic link, and unmounts at the end', async (t) => {
  const { mount, serveOn } = stage(t);
  const link = `${mount}-link`;
  symlinkSync(mount, link);
  {
    await using server = await serveOn(link);
    await assert.rejects(serveOn(link), /is mounted on ".*mnt-link" already/);
    assert.ok(server.devicePid);
    assert.equal(readFileSync(path.join(link, 'instance', 'id'), 'utf8'), 'i-1');
  }
  assert.equal(mounts(mount), 0);
});
