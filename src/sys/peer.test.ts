import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { EADDRINUSE, EBADF, ECONNREFUSED, EINVAL, ENAMETOOLONG, ENOENT, EPIPE } from '../wire/index.ts';
import {
  accept,
  close,
  connectUnix,
  connectUnixFrom,
  eventfd,
  listenUnix,
  peerCredentials,
  peerGroups,
  peerName,
  read,
  shutdown,
  socketPair,
  write,
} from './index.ts';

/** errno-base.h, for what only this test meets. */
const ENOTSOCK = 88;

test('peerCredentials and peerGroups say who made the other end of a socket', () => {
  const pair = socketPair();
  assert.ok(Array.isArray(pair));
  const [fd, other] = pair;
  assert.deepEqual(peerCredentials(fd), { pid: process.pid, uid: process.getuid!(), gid: process.getgid!() });
  const groups = peerGroups(fd);
  assert.ok(Array.isArray(groups));
  // getgroups(2) may name the effective group too.
  const own = process.getegid!();
  assert.deepEqual(new Set([...groups, own]), new Set([...process.getgroups!(), own]));
  close(fd);
  close(other);
});

test('peerCredentials of what is no connected unix socket is an errno', () => {
  assert.equal(peerCredentials(-1), -EBADF);
  assert.equal(peerGroups(-1), -EBADF);
  const fd = eventfd();
  assert.equal(peerCredentials(fd), -ENOTSOCK);
  close(fd);
});

test('peerName tells the abstract address from which connectUnixFrom connected', () => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-sys-'));
  const path = join(directory, 's');
  const name = `porthole-test/${process.pid}/ü`;
  assert.equal(connectUnixFrom(name, path), -ENOENT);
  const listener = listenUnix(path);
  const client = connectUnixFrom(name, path);
  assert.equal(connectUnixFrom(name, path), -EADDRINUSE);
  const server = accept(listener);
  assert.equal(Buffer.from(peerName(server) as string, 'latin1').toString(), name);
  assert.equal(peerName(client), undefined, 'it is bound to a file');
  const unbound = connectUnix(path);
  const other = accept(listener);
  assert.equal(peerName(other), undefined);
  assert.equal(peerName(-1), -EBADF);
  assert.equal(connectUnixFrom('', path), -EINVAL);
  assert.equal(connectUnixFrom('x'.repeat(200), path), -ENAMETOOLONG);
  close(listener);
  for (const fd of [client, server, unbound, other]) close(fd);
  assert.equal(connectUnixFrom(name, path), -ECONNREFUSED);
  rmSync(directory, { recursive: true });
});

test('shutdown ends one direction of a connection', () => {
  const pair = socketPair();
  assert.ok(Array.isArray(pair));
  const [fd, other] = pair;
  const bytes = new Uint8Array(8);
  assert.equal(shutdown(fd, 'write'), 0);
  assert.equal(read(other, bytes), 0);
  assert.equal(write(other, bytes), 8);
  assert.equal(read(fd, bytes), 8);
  assert.equal(shutdown(fd, 'read'), 0);
  assert.equal(write(other, bytes), -EPIPE);
  for (const each of pair) close(each);
});
