import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, rmSync, statSync, writeFileSync } from 'node:fs';
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
