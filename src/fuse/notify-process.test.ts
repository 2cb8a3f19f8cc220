import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../../test/until.ts';
import { close, POLLIN, pollOne, read, setNonBlocking, socketPair } from '../sys/index.ts';
import { NotifyProcess } from './notify-process.ts';

for (const shell of ['/bin/sh', '/bin/bash'])
  test(`NotifyProcess writes each message at once by ${shell}`, async () => {
    const pair = socketPair('packets');
    assert.ok(typeof pair !== 'number');
    const [fd, kernelFd] = pair;
    setNonBlocking(kernelFd, true);
    const notifier = new NotifyProcess(fd, { abortFd: undefined, onBusy: () => {}, shell });
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
    notifier.close();
    await until('its end', () => notifier.hasEnded);
    close(fd);
    close(kernelFd);
  });
