/** The lives of ring, session and guest, each ended with mutations in flight and readers of `/.changes` waiting. */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { until } from '../until.ts';
import { acknowledged, Stage, type Writer } from './stage.ts';

/** QEMU's main loop stands still until the rings have stopped; a device that waited for its answers would take 5 s. */
const PROMPT_MS = 4000;

describe('a guest with mutations in flight', () => {
  let stage: Stage;
  before(async () => {
    stage = await Stage.start();
  });
  afterEach(() => stage.releaseLink());
  after(() => stage?.[Symbol.asyncDispose]());

  const writersAt = async (at?: string): Promise<Writer[]> => {
    const writers: Writer[] = [];
    for (const kind of ['lines', 'lines', 'directories', 'lines'] as const) writers.push(await stage.write(kind, at));
    return writers;
  };
  const reader = () => stage.guest.spawn('exec cat /run/metadata/.changes');
  const prompt = async (command: string): Promise<number> => {
    const start = performance.now();
    await stage.guest.qmp(command);
    return performance.now() - start;
  };
  /** Takes most of the guest's free memory, all zero. */
  const takeMemory = () => stage.guest.sh('dd if=/dev/zero of=/dev/shm/zero bs=1M count=80 2>/dev/null');
  const memoryIsUntouched = async (): Promise<void> => {
    assert.equal(await stage.guest.sh("tr -d '\\0' < /dev/shm/zero | wc -c", { timeoutMs: 60_000 }), '0\n');
    await stage.guest.sh('rm /dev/shm/zero');
  };
  const nothingBroke = async (): Promise<void> => {
    const counters = await stage.counters();
    for (const name of ['badChains', 'brokenQueues', 'sessionFaults', 'fuse.bugs'])
      assert.equal(counters[name], 0, name);
  };
  /** Answers that the session or the device kept back: their request was made in an earlier life. */
  const droppedReplies = async (): Promise<number> => {
    const counters = await stage.counters();
    return counters['fuse.droppedReplies']! + counters['droppedReplies']!;
  };

  test('stop and cont answers every request once, and stops promptly', async (t) => {
    const dropped = await droppedReplies();
    const writers = await writersAt();
    const readers = [reader(), reader(), reader()];
    for (const job of readers) await job.waitForOutput(/\n/);
    const stops: number[] = [];
    for (const releasedWhile of ['stopped', 'running', 'stopped', 'running'] as const) {
      stage.holdLink();
      await stage.inFlight(writers);
      stops.push(await prompt('stop'));
      if (releasedWhile === 'stopped') {
        stage.releaseLink();
        // The answers have come to the device process, where they wait for the ring.
        await stage.answered();
      }
      await stage.guest.qmp('cont');
      stage.releaseLink();
      await stage.goesOn(writers);
    }
    for (const job of readers) {
      const before = job.stdoutText.length;
      await until('a reader of /.changes to go on', () => job.stdoutText.length > before);
    }
    await stage.end(writers);
    for (const job of readers) job.kill(9);
    for (const writer of writers) stage.check(writer);
    t.diagnostic(`stop took ${stops.map((ms) => ms.toFixed(0)).join(', ')} ms`);
    assert.ok(Math.max(...stops) < PROMPT_MS, `stop took ${stops.join(', ')} ms`);
    assert.equal(await droppedReplies(), dropped);
    await nothingBroke();
  });

  test('two mounts of one tag go on when one of them ends', async () => {
    await stage.guest.mount('metadata', '/run/other');
    const writers = [...(await writersAt()), ...(await writersAt('/run/other'))];
    stage.holdLink();
    await stage.inFlight(writers);
    await stage.guest.sh('umount -l /run/other');
    stage.releaseLink();
    await stage.goesOn(writers.slice(0, 4));
    await stage.end(writers);
    for (const writer of writers) stage.check(writer);
    await nothingBroke();
  });

  test('umount and mount keeps what was acknowledged, and the new mount works', async () => {
    for (let round = 0; round < 2; round++) {
      const writers = await writersAt();
      const waiting = reader();
      await waiting.waitForOutput(/\n/);
      stage.holdLink();
      await stage.inFlight(writers);
      await stage.guest.sh('umount -l /run/metadata');
      stage.releaseLink();
      for (const { job } of writers) assert.equal((await job.done).exitCode, 3);
      waiting.kill(9);
      await waiting.done;
      await stage.guest.mount('metadata', '/run/metadata');
      assert.equal(await stage.guest.sh('cat /run/metadata/instance/id'), 'i-1');
      for (const writer of writers) stage.check(writer);
    }
    await nothingBroke();
  });

  test('unbind and bind of the driver keeps what was acknowledged, and a new mount works', async () => {
    const writers = await writersAt();
    const waiting = reader();
    await waiting.waitForOutput(/\n/);
    stage.holdLink();
    await stage.inFlight(writers);
    const rebind = stage.guest.spawn(
      'cd /sys/bus/virtio/drivers/virtiofs; d=$(basename virtio*); echo $d >unbind; echo $d >bind; echo bound',
    );
    await rebind.pid;
    stage.releaseLink();
    await rebind.waitForOutput(/bound/);
    for (const { job } of writers) assert.equal((await job.done).exitCode, 3);
    await waiting.done;
    await stage.guest.sh('umount -l /run/metadata');
    await stage.guest.mount('metadata', '/run/metadata');
    assert.equal(await stage.guest.sh('cat /run/metadata/instance/id'), 'i-1');
    for (const writer of writers) stage.check(writer);
    await nothingBroke();
  });

  for (const [how, boot] of [
    [
      'system_reset',
      async (hold) => {
        await hold();
        await stage.guest.reset();
      },
    ],
    ['kexec', (hold) => stage.guest.kexec(60_000, hold)],
  ] as const satisfies [string, (hold: () => Promise<void>) => Promise<void>][])
    test(`${how} leaves the next boot alone: late answers are dropped, and what was acknowledged is kept`, async (t) => {
      const before = await droppedReplies();
      const writers = await writersAt();
      const waiting = reader();
      await waiting.waitForOutput(/\n/);
      let told: number[] = [];
      await boot(async () => {
        stage.holdLink();
        await stage.inFlight(writers);
        told = writers.map(acknowledged);
      });
      await takeMemory();
      await stage.guest.mount('metadata', '/run/metadata');
      assert.equal(await stage.guest.sh('cat /run/metadata/instance/id'), 'i-1');
      stage.releaseLink();
      await stage.answered();
      const dropped = (await droppedReplies()) - before;
      t.diagnostic(`${dropped} late answers were dropped`);
      await memoryIsUntouched();
      // A kernel that boots anew by kexec resets the device late; what had expired by then was answered before.
      if (how === 'system_reset') assert.ok(dropped >= writers.length, `${dropped} late answers were dropped`);
      assert.deepEqual(writers.map(acknowledged), told);
      for (const writer of writers) stage.check(writer);
      const next = await writersAt();
      await stage.goesOn(next);
      await stage.end(next);
      for (const writer of next) stage.check(writer);
      await nothingBroke();
    });
});
