import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { AuditLog } from './audit-log.ts';

const logOn = (target: string) => new AuditLog({ target, writeStdout: () => true, onHealth: () => {} });

test('AuditLog makes a file that nobody else may read, also of one that others could', (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-audit-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const file = path.join(directory, 'audit.jsonl');
  logOn(file)[Symbol.dispose]();
  assert.equal(statSync(file).mode & 0o7777, 0o600);
  const open = path.join(directory, 'open.jsonl');
  writeFileSync(open, '', { mode: 0o644 });
  logOn(open)[Symbol.dispose]();
  assert.equal(statSync(open).mode & 0o7777, 0o600);
});

test('AuditLog leaves the mode of what is no regular file, as /dev/null', (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-audit-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const pipe = path.join(directory, 'pipe');
  assert.equal(spawnSync('mkfifo', ['-m', '0666', pipe]).status, 0);
  const reader = openSync(pipe, constants.O_RDWR);
  t.after(() => closeSync(reader));
  logOn(pipe)[Symbol.dispose]();
  assert.equal(statSync(pipe).mode & 0o7777, 0o666);
});

test('AuditLog refuses a pipe that nobody reads, and is unwritable while its reader does not keep up', (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-audit-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const pipe = path.join(directory, 'pipe');
  assert.equal(spawnSync('mkfifo', [pipe]).status, 0);
  assert.throws(() => logOn(pipe), /nobody reads this pipe; start its reader first/);
  const reader = openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK);
  t.after(() => closeSync(reader));
  using log = logOn(pipe);
  const lines = new Uint8Array(65_536).fill(0x0a);
  let written = 0;
  for (let i = 0; i < 64 && log.writable; i++) written += log.write(lines);
  assert.ok(!log.writable && written > 0);
  assert.equal(readSync(reader, new Uint8Array(written)), written);
  log.probe();
  assert.ok(log.writable);
});

test('AuditLog writes no control character of a name, and the same name', () => {
  let written = '';
  const writeStdout = (text: string) => {
    written += text;
    return true;
  };
  using log = new AuditLog({ target: '-', writeStdout, onHealth: () => {} });
  const path = '/guest/\u009B2J\u001B[2J\u202E';
  log.record({
    timeMs: Date.UTC(2026, 0, 1),
    vm: 'web',
    way: 'virtiofs',
    operation: 'open',
    path,
    uid: 0,
    gid: 0,
    pid: 1,
    revision: 1,
    verdict: 'denied',
    rule: 'default',
  });
  assert.doesNotMatch(written.trimEnd(), /[\p{Cc}\p{Cf}]/u);
  assert.equal(JSON.parse(written).path, path);
});

test('AuditLog ends half a line that somebody left, unless its rest comes', (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-audit-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const file = path.join(directory, 'audit.jsonl');
  const encode = (text: string) => new TextEncoder().encode(text);
  writeFileSync(file, 'half');
  {
    using log = logOn(file);
    assert.equal(log.write(encode('a line\n')), 7);
  }
  assert.equal(readFileSync(file, 'utf8'), 'half\na line\n');
  writeFileSync(file, 'half');
  {
    using log = logOn(file);
    log.write(encode(' of a line\n'), true);
    const { offset, ...place } = log.place()!;
    assert.equal(offset, 15);
    assert.equal(Buffer.from(log.readFrom({ ...place, offset: 5 }, 4)).toString(), 'of a');
    assert.equal(log.readFrom({ ...place, inode: 0, offset: 5 }, 4).length, 0);
  }
  assert.equal(readFileSync(file, 'utf8'), 'half of a line\n');
});
