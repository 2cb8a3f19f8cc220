import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ImageStore, makeVmDirectories, vmPaths } from '../qemu/index.ts';
import { devicePaths, makeDeviceDirectories } from './device-paths.ts';

test('directories that the users of VMs go through are open to them whatever the umask is', async (t) => {
  const before = process.umask(0o077);
  const directory = mkdtempSync(join(tmpdir(), 'ph-paths-'));
  t.after(() => {
    process.umask(before);
    rmSync(directory, { recursive: true });
  });
  const [state, run] = [join(directory, 'state'), join(directory, 'run')];
  const mode = (...names: readonly string[]): string => (statSync(join(...names)).mode & 0o777).toString(8);

  makeDeviceDirectories(devicePaths(state, run, 'one'), { uid: undefined, gid: undefined });
  makeVmDirectories(vmPaths(state, run, 'two'), undefined);
  for (const path of [state, run].flatMap((top) => [
    [top, 'vms'],
    [top, 'vms/one'],
    [top, 'vms/two'],
  ]))
    assert.equal(mode(...path), '711', path.join('/'));
  for (const own of ['vms/one/device', 'vms/one/fs', 'vms/two/qemu']) assert.equal(mode(run, own), '700', own);

  const images = new ImageStore({ directory: join(state, 'images') });
  writeFileSync(join(directory, 'kernel'), 'kernel');
  const image = await images.addKernel({ kernel: join(directory, 'kernel'), commandLine: '' });
  assert.deepEqual([mode(state, 'images'), mode(image.path)], ['711', '711']);
});
