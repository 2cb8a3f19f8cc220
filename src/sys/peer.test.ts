import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EBADF } from '../wire/index.ts';
import { close, eventfd, peerCredentials, peerGroups, socketPair } from './index.ts';

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
