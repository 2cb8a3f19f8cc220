import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, statSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { close } from '../sys/index.ts';
import { giveSocketRights, openListeningSocket } from './listening-socket.ts';

test('openListeningSocket gives the socket the mode and group that were asked for, and replaces a dead one', () => {
  using directory = temporary();
  const socket = path.join(directory.path, 'vm.sock');
  close(openListeningSocket({ path: socket, mode: 0o600 }));
  assert.equal(statSync(socket).mode & 0o7777, 0o600);
  const gid = process.getgid!();
  close(openListeningSocket({ path: socket, mode: 0o660, gid }));
  assert.deepEqual([statSync(socket).mode & 0o7777, statSync(socket).gid], [0o660, gid]);
});

test('openListeningSocket leaves a socket that somebody listens on, and what is no socket', () => {
  using directory = temporary();
  const socket = path.join(directory.path, 'vm.sock');
  const fd = openListeningSocket({ path: socket, mode: 0o600 });
  assert.throws(() => openListeningSocket({ path: socket, mode: 0o600 }), /another process listens/);
  close(fd);
  unlinkSync(socket);
  writeFileSync(socket, 'mine');
  assert.throws(() => openListeningSocket({ path: socket, mode: 0o600 }), /is no socket/);
});

test('giveSocketRights changes nothing that a link in the place of the socket leads to', () => {
  using directory = temporary();
  const [victim, socket] = [path.join(directory.path, 'shadow'), path.join(directory.path, 'vm.sock')];
  writeFileSync(victim, 'hashes');
  chmodSync(victim, 0o600);
  symlinkSync(victim, socket);
  assert.throws(() => giveSocketRights({ path: socket, mode: 0o660, gid: process.getgid!() }), /somebody replaced it/);
  assert.equal(statSync(victim).mode & 0o7777, 0o600);
});

function temporary(): Disposable & { readonly path: string } {
  const made = mkdtempSync(path.join(tmpdir(), 'porthole-socket-'));
  return { path: made, [Symbol.dispose]: () => rmSync(made, { recursive: true }) };
}
