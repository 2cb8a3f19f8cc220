import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { until } from '../../test/until.ts';
import { close, POLLIN, pollOne, read, setNonBlocking, socketPair } from '../sys/index.ts';
import { NotifyProcess } from './notify-process.ts';

/** Processes that this one has started and not yet waited for. */
const children = (): number[] =>
  readdirSync('/proc/self/task').flatMap((task) =>
    readFileSync(`/proc/self/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  );

for (const shell of ['/bin/sh', '/bin/bash'])
  test(`NotifyProcess writes each message at once, and goes on when it was killed: ${shell}`, async () => {
    const pair = socketPair('packets');
    assert.ok(typeof pair !== 'number');
    const [fd, kernelFd] = pair;
    setNonBlocking(kernelFd, true);
    const notifier = new NotifyProcess(fd, shell);
    const arrived = async (): Promise<Uint8Array> => {
      await until('a message', () => pollOne(kernelFd, POLLIN, 0) > 0);
      const bytes = new Uint8Array(new ArrayBuffer(4096));
      return bytes.slice(0, read(kernelFd, bytes));
    };
    const messages = [
      Uint8Array.of(10),
      Uint8Array.from({ length: 256 }, (_, i) => i),
      Uint8Array.from({ length: 300 }, (_, i) => 255 - (i % 256)),
      new TextEncoder().encode('n\\n%s%%\\\\'),
    ];
    for (const message of messages) notifier.notify(message);
    for (const message of messages) assert.deepEqual(await arrived(), message);
    const [pid] = children();
    process.kill(pid!, 'SIGKILL');
    await until('its end', () => !children().includes(pid!));
    notifier.notify(messages[1]!);
    assert.deepEqual(await arrived(), messages[1]);
    notifier.close();
    await until('the other’s end', () => children().length === 0);
    close(fd);
    close(kernelFd);
  });
