/** A guard with a program of this machine in QEMU's place. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/until.ts';
import { guarded, guardedPid } from './guard.ts';
import { bootClockMs, leaseEnded, leaseLeftMs, writeLease } from './lease-file.ts';
import { endingInWords, type LastingProcess } from './process-identity.ts';
import { lastLine, SessionLauncher } from './units.ts';

const longMs = 3_600_000;
const id = 'a'.repeat(16);

interface Scene {
  readonly file: string;
  readonly log: string;
  start(): Promise<LastingProcess>;
}

const scene = (t: TestContext): Scene => {
  const directory = mkdtempSync(join(tmpdir(), 'ph-guard-'));
  const started: LastingProcess[] = [];
  t.after(() => {
    for (const process of started) process.signal('SIGKILL');
    for (const process of started) process.release();
    rmSync(directory, { recursive: true, force: true });
  });
  const [file, log] = [join(directory, 'lease'), join(directory, 'log')];
  const start = async (): Promise<LastingProcess> => {
    const spec = {
      name: 'guarded',
      description: 'a guard in a test',
      command: ['sleep', '3600'] as const,
      logFile: log,
    };
    const process = await new SessionLauncher().launch(guarded(spec, { file, id }));
    started.push(process);
    return process;
  };
  return { file, log, start };
};

const isGone = (pid: number): boolean => {
  try {
    return /^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return true;
  }
};

const childOf = (guard: LastingProcess): Promise<number> =>
  until('what is guarded', () => {
    const pid = guardedPid(guard.identity.pid);
    return pid !== guard.identity.pid && readFileSync(`/proc/${pid}/comm`, 'latin1').trim() === 'sleep'
      ? pid
      : undefined;
  });

test('leaseLeftMs is 0 for whatever is not that lease', (t) => {
  const { file } = scene(t);
  assert.equal(leaseLeftMs(file, id), 0);
  writeLease(file, id, bootClockMs() + longMs);
  assert.ok(leaseLeftMs(file, id) > longMs / 2);
  assert.equal(leaseLeftMs(file, 'b'.repeat(16)), 0);
  for (const text of ['', id, `${id} 1`, `${id} -5\n`, `${id} 99999999999999 \n`, `${id} 1e99\n`, `${id} 10\n`]) {
    writeFileSync(file, text);
    assert.equal(leaseLeftMs(file, id), 0, JSON.stringify(text));
  }
});

test('a guard starts nothing without a lease', async (t) => {
  const { file, log, start } = scene(t);
  writeLease(file, 'b'.repeat(16), bootClockMs() + longMs);
  const guard = await start();
  assert.equal(endingInWords(await guard.ended), `ended with status ${leaseEnded.status}`);
  assert.equal(lastLine(log), leaseEnded.words);
});

test('a guard ends what it guards when the lease is over, or another, or not to be read', async (t) => {
  const { file, log, start } = scene(t);
  const breaks = [
    () => writeLease(file, id, bootClockMs() - 10),
    () => writeLease(file, 'b'.repeat(16), bootClockMs() + longMs),
    () => rmSync(file),
  ];
  for (const breakIt of breaks) {
    writeLease(file, id, bootClockMs() + longMs);
    const guard = await start();
    const child = await childOf(guard);
    breakIt();
    assert.equal(endingInWords(await guard.ended), `ended with status ${leaseEnded.status}`);
    assert.ok(isGone(child), 'before its guard');
    assert.equal(lastLine(log), leaseEnded.words);
  }
});

test('a guard that is killed takes along what it guards', async (t) => {
  const { file, start } = scene(t);
  writeLease(file, id, bootClockMs() + longMs);
  const guard = await start();
  const child = await childOf(guard);
  guard.signal('SIGKILL');
  await until('it to end', () => isGone(child));
});
