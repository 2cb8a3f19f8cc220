/** A VM of ours with its metadata: QEMU of one user, the device process's socket for that user's group. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { serve } from '../../src/host/index.ts';
import { bootLimitMs, OwnVm, shell, testUid } from './own-vm.ts';

test('Vm mounts its metadata at boot, and sees a change after a reboot', async () => {
  await using own = await OwnVm.make();
  const file = join(own.dir, 'tiny.yaml');
  const spec = (word: string): void =>
    writeFileSync(file, `porthole: 1\nmetadata: { instance: { word: ${word} }, secrets: { key: hidden } }\n`);
  spec('first');
  const socket = join(own.paths.run, 'fs.sock');
  await using server = await serve({
    file,
    vhostUser: [socket],
    socketGroup: String(testUid),
    mounts: [],
    writeStdout: () => true,
    onEvent: () => {},
  });
  own.change({ virtiofs: { socket } });
  own.vm.start();
  await own.ready();
  assert.match(await shell(own, 'cat /run/metadata/instance/word'), /first/);
  spec('second');
  own.vm.reboot();
  await own.vm.until(() => own.boots.length === 2, AbortSignal.timeout(bootLimitMs));
  await own.ready(2);
  assert.match(await shell(own, 'cat /run/metadata/instance/word; stat -c %a /run/metadata/secrets/key'), /second400/);
  assert.ok(server);
});
