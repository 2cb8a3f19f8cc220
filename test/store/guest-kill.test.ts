/**
 * What a killed process had written is still in the kernel's page cache, so killing processes never tests whether the store
 * syncs. Here the writer runs in a guest, on a disk of its own, and QEMU is killed: the guest's page cache goes with it, and
 * what it had not flushed.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { Guest } from '../../images/tiny/guest.ts';
import { until } from '../until.ts';
import type { Found } from './guest-writer.ts';
import { lanes } from './writer.ts';

/** Also by hand: `PORTHOLE_STORE_GUEST_KILLS=20`. */
const kills = Number(process.env['PORTHOLE_STORE_GUEST_KILLS'] ?? 2);
const root = join(import.meta.dirname, '../..');
/** Node starts slowly on an emulated CPU. */
const startLimitMs = 180_000;
const writeLimitMs = 120_000;

/** Where this machine has the libraries that Node needs and the tiny guest does not have. */
const libraries = (): string => {
  const path = /libstdc\+\+\S* => (\S+)/.exec(execFileSync('ldd', [process.execPath], { encoding: 'utf8' }))?.[1];
  assert.ok(path !== undefined, 'this Node needs no libstdc++: run it from /mnt/node alone');
  return dirname(path);
};

const setUp = `
modprobe virtio_blk; modprobe ext4; mkdir -p /disk
mount -t ext4 /dev/vda /disk
for tag in node lib repository; do
  mkdir -p /mnt/$tag; mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose $tag /mnt/$tag
done`;

test('openStores finds all that was acknowledged and nothing half done when its writer lost the page cache', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-store-guest-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const [raw, disk] = [join(directory, 'raw'), join(directory, 'disk')];
  execFileSync('mke2fs', ['-q', '-t', 'ext4', raw, '128M']);
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, disk]);
  rmSync(raw);

  const acknowledged = Array.from({ length: lanes }, () => 0);
  let appended = 0;
  let lost = 0;
  const check = ({ lanes: found, unsynced }: Found): void => {
    for (const [lane, { numbers, revisions }] of found.entries()) {
      assert.deepEqual([numbers.length, revisions.length], [1, 1], `lane ${lane} is half done: ${numbers.join()}`);
      const [n] = numbers as [number];
      assert.ok(n >= acknowledged[lane]!, `lane ${lane}: ${n}, told ${acknowledged[lane]}`);
      acknowledged[lane] = n;
    }
    lost += Math.max(0, appended - unsynced);
  };
  /** Boots, checks what is there, and writes on until `most` were acknowledged; then the machine is switched off. */
  const live = async (most: number): Promise<void> => {
    await using guest = await Guest.start({
      memory: '768M',
      translatedMiB: 256,
      shares: [
        { tag: 'node', path: dirname(process.execPath) },
        { tag: 'lib', path: libraries() },
        { tag: 'repository', path: root },
      ],
      qemuArgs: ['-drive', `file=${disk},format=qcow2,if=virtio,cache=writeback`],
    });
    await guest.sh(setUp);
    const writer = guest.spawn(
      'LD_LIBRARY_PATH=/mnt/lib exec /mnt/node/node /mnt/repository/test/store/guest-writer.ts /disk',
    );
    let rest = '';
    let isChecked = false;
    let told = 0;
    let failure: unknown;
    const take = (line: string): void => {
      if (!isChecked) {
        check(JSON.parse(line) as Found);
        isChecked = true;
      } else if (told < most) {
        const [lane, n] = line.split(' ').map(Number) as [number, number];
        acknowledged[lane] = n;
        if (++told === most) process.kill(guest.qemuPid, 'SIGKILL');
      }
    };
    writer.stream((chunk) => {
      const lines = (rest + chunk.toString()).split('\n');
      rest = lines.pop()!;
      try {
        for (const line of lines) take(line);
      } catch (error) {
        failure ??= error;
      }
    });
    const follow = async (): Promise<void> => {
      try {
        const { errorText } = await writer.done;
        failure ??= new Error(`the writer ended: ${errorText}`);
      } catch (error) {
        if (told < most) failure ??= error;
      }
    };
    void follow();
    const reached = async (what: string, is: () => boolean, withinMs: number): Promise<void> => {
      await until(what, () => is() || failure !== undefined, withinMs);
      if (failure !== undefined) throw failure;
    };
    await reached('the store to open', () => isChecked, startLimitMs);
    await reached(`${most} acknowledgements`, () => told >= most, writeLimitMs);
    if (most > 0) await guest.ended;
    appended = most;
  };
  for (let kill = 0; kill < kills; kill++) await live(1 + Math.floor(Math.random() * 300));
  await live(0);
  const kept = acknowledged.reduce((sum, n) => sum + n);
  assert.ok(lost > 0, 'nothing of a file that was never synced was lost, so neither was a page cache');
  t.diagnostic(`${kills} kills, ${kept} transactions kept; ${lost} bytes of the file that was not synced lost`);
});
