/** `npm start`, as it runs where nobody watches. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../until.ts';

/** It takes about 20 s where nothing else runs, and longer where the image must be built first. */
const limitMs = 400_000;

/** `scripts/start.ts` without a terminal, with everything temporary in a directory of its own. */
class Started {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'ph-st-'));
  readonly child: ChildProcess;
  readonly closed: Promise<unknown>;
  output = '';

  constructor(t: TestContext) {
    // VMs run as users of their own.
    chmodSync(this.directory, 0o711);
    const root = path.join(import.meta.dirname, '../..');
    this.child = spawn(process.execPath, ['scripts/start.ts'], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, TMPDIR: this.directory },
    });
    for (const stream of [this.child.stdout!, this.child.stderr!])
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.output += text;
      });
    this.closed = once(this.child, 'close', { signal: AbortSignal.timeout(limitMs) });
    this.closed.catch(() => {});
    t.after(async () => {
      if (this.child.exitCode === null && this.child.signalCode === null) {
        this.child.kill('SIGTERM');
        await this.closed;
      }
      rmSync(this.directory, { recursive: true, force: true });
    });
  }

  /** Asserts that no process, mount or file of it is there any more. */
  async checkNothingIsLeft(): Promise<void> {
    await until('every process to be gone', () => processesWith(`${this.directory}/`).length === 0);
    assert.doesNotMatch(readFileSync('/proc/self/mounts', 'utf8'), new RegExp(this.directory));
    assert.deepEqual(readdirSync(this.directory), [], 'files that are left');
  }
}

/** Command lines that have `text` in them. */
const processesWith = (text: string): string[] =>
  readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const command = readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ');
      return command.includes(text) ? [command] : [];
    } catch {
      return [];
    }
  });

test('npm start tells the whole story without a terminal and leaves nothing behind', async (t) => {
  const started = new Started(t);
  await started.closed;
  assert.equal(started.child.exitCode, 0, started.output);
  // Each behind the one before it.
  let rest = started.output;
  for (const line of [
    /^ {2}\$ \.\/porthole up --state/m,
    /^ {2}\$ \.\/porthole image build tiny\n {2}added tiny:1$/m,
    /^ {2}\$ \.\/porthole vm create web --image tiny --type nano \\\n {6}--metadata examples\/web\.yaml$/m,
    /^ {2}-r--r-----\+ .* root +ssl-cert .* tls\.key$/m,
    /^ {2}alice@web\$ cat instance\/hostname\n {2}web-1$/m,
    /^ {2}postgres@web\$ cat secrets\/db-password\n {2}hunter2$/m,
    /^ {2}alice@web\$ cat secrets\/db-password\n {2}cat: .*: Permission denied$/m,
    /^ {2}root@web# cat secrets\/tls\.key\n {2}cat: .*: Permission denied$/m,
    /Z {2}web {2}0 {2}open {2}denied EACCES {2}\/secrets\/tls\.key\n {4}\/secrets\/tls\.key \(spec:\d+\)$/m,
    /^ {2}app@web\$ cat secrets\/api-token\n {2}t-5f2c9a$/m,
    /^ {2}alice@web\$ cat secrets\/api-token\n {2}cat: .*: Permission denied$/m,
    /Z {2}web {2}1001 {2}open {2}denied EACCES {2}\/secrets\/api-token\n {4}\/secrets\/api-token \(spec:\d+\)$/m,
    /^ {2}uid 1001; read: denied \(mode 0400\); .*decide: host$/ms,
    /^ {2}\$ \.\/porthole metadata get web \/guest\/status\n {2}ready since boot$/m,
    /^ {2}alice@web\$ cat instance\/hostname\n {2}web-2$/m,
    /^ {2}\.\/porthole vm console web +# /m,
  ]) {
    const found = line.exec(rest);
    assert.ok(found, `${line} is not where it belongs in:\n${started.output}`);
    rest = rest.slice(found.index + found[0].length);
  }
  assert.deepEqual(
    started.output.split('\n').filter((line) => line.length > 80),
    [],
    'lines that do not fit on a terminal',
  );
  for (const noise of ['trouble', '\u001b', '\r', '\u0004'])
    assert.ok(!started.output.includes(noise), `${JSON.stringify(noise)} in:\n${started.output}`);
  await started.checkNothingIsLeft();
});

test('npm start leaves nothing behind when it is ended in the middle', async (t) => {
  const started = new Started(t);
  await until(
    'QEMU',
    () => {
      assert.equal(started.child.exitCode, null, started.output);
      return processesWith(`${started.directory}/`).some(
        (line) => line.startsWith('qemu') && line.includes('guest=web'),
      );
    },
    limitMs,
  );
  started.child.kill('SIGTERM');
  await started.closed;
  assert.equal(started.child.exitCode, 130, started.output);
  assert.doesNotMatch(started.output, /failed|Error/);
  await started.checkNothingIsLeft();
});
